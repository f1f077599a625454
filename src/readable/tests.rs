use super::*;

#[test]
fn values_are_rounded_to_what_is_known() {
    assert_eq!(
        [share(0.0), share(0.05), share(0.123_45), share(0.001_23), share(1.0)],
        ["0 %", "5 %", "12.3 %", "0.12 %", "100 %"]
    );
    assert_eq!(
        [number(0.5), number(12.34), number(123.4), number(12_345.6), number(0.0001)],
        ["0.5", "12.3", "123", "12\u{202f}346", "1.0e-4"]
    );
    assert_eq!(number(f64::NAN), UNKNOWN);
    assert_eq!(
        [since(0), since(61), since(600), since(-30), since(200_000)],
        ["now", "61 s ago", "10 min ago", "in 30 s", "2 days ago"]
    );
    assert!(since(i64::MIN).starts_with("in "), "the least number has no positive one");
    assert_eq!([bytes(4681.0), bytes(3e9), ms_of_us(12_340.0)], ["4.57 KiB", "2.79 GiB", "12.3 ms"]);
}

#[test]
fn texts_cannot_control_hide_or_reorder_what_follows() {
    assert_eq!(text("a\u{202e}b\u{7}c", 10), "a⟨U+202E⟩b⟨U+0007⟩c");
    assert_eq!(line("\u{1b}]0;x\u{9b}31m\r\nnext\u{2028}", 99), "⟨U+001B⟩]0;x⟨U+009B⟩31m⟨U+000D⟩ next⟨U+2028⟩");
    assert_eq!(text("abcdef", 3), "abc…");
    assert_eq!(text("😀😀", 1), "😀…");
}

#[test]
fn states_that_need_somebody_are_not_good() {
    assert_eq!(
        [tone("serving"), tone("paused"), tone("taken_back"), tone("unloaded")],
        [Tone::Good, Tone::Warning, Tone::Bad, Tone::Quiet]
    );
    assert!(Tone::Bad > Tone::Warning && Tone::Warning > Tone::Good);
}
