//! Decompression and the choice of a coding.

use crate::budget::{Budget, Hold};
use crate::codec::inflate::{Encoding, compress, inflate, negotiate};
use crate::model::{Code, Failure};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::DeflateEncoder;
use std::io::Write as _;

const PLAIN: &[u8] = br#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}]}"#;

fn inflated(encoding: &str, body: Bytes, max: usize) -> Result<Bytes, Failure> {
    inflate(encoding, body, max, &Hold::uncounted())
}

fn raw_deflate(plain: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn compressed_bodies_are_restored() {
    let gzip = compress(Encoding::Gzip, PLAIN);
    let members =
        [compress(Encoding::Gzip, &PLAIN[..9]), compress(Encoding::Gzip, b""), compress(Encoding::Gzip, &PLAIN[9..])];
    for (encoding, body) in [
        ("gzip", gzip.clone()),
        ("GZIP", gzip.clone()),
        (" x-gzip ", gzip),
        ("gzip", members.concat()),
        ("deflate", compress(Encoding::Deflate, PLAIN)),
        ("deflate", raw_deflate(PLAIN)),
        ("identity", PLAIN.to_vec()),
        ("", PLAIN.to_vec()),
    ] {
        assert_eq!(inflated(encoding, body.into(), PLAIN.len()).unwrap(), PLAIN, "{encoding}");
    }
    let empty = inflated("gzip", compress(Encoding::Gzip, b"").into(), 0).unwrap();
    assert!(empty.is_empty());
}

#[test]
fn a_body_that_expands_past_the_limit_is_rejected() {
    let bomb = vec![0u8; 50 << 20];
    let raw = raw_deflate(&bomb);
    for (encoding, body) in
        [("gzip", compress(Encoding::Gzip, &bomb)), ("deflate", compress(Encoding::Deflate, &bomb)), ("deflate", raw)]
    {
        assert!(body.len() < 1 << 20, "the compressed body is small");
        let failure = inflated(encoding, body.into(), 1 << 20).unwrap_err();
        assert_eq!(failure.code, Code::BodyTooLarge);
        assert!(failure.message.contains("1048576 bytes"), "{failure}");
    }
    assert_eq!(
        inflated("gzip", compress(Encoding::Gzip, PLAIN).into(), PLAIN.len() - 1).unwrap_err().code,
        Code::BodyTooLarge
    );
}

#[test]
fn corrupt_streams_are_rejected() {
    for encoding in [Encoding::Gzip, Encoding::Deflate] {
        let good = compress(encoding, PLAIN);
        let mut flipped = good.clone();
        let last = flipped.len() - 5;
        flipped[last] ^= 0xff;
        let mut longer = good.clone();
        longer.extend_from_slice(b"more");
        for (body, part) in [
            (good[..good.len() - 1].to_vec(), "cut short"),
            (good[..good.len() / 2].to_vec(), "cut short"),
            (good[..5].to_vec(), "cut short"),
            (Vec::new(), "cut short"),
            (flipped, "corrupt"),
            (longer, ""),
            (PLAIN.to_vec(), "corrupt"),
        ] {
            let failure = inflated(encoding.as_str(), body.clone().into(), 1 << 20).expect_err("a broken stream");
            assert_eq!(failure.code, Code::InvalidRequest);
            assert!(failure.message.contains(part), "{encoding:?} {body:?}: {failure}");
        }
    }
}

#[test]
fn other_codings_are_rejected_with_their_name() {
    for encoding in ["br", "zstd", "gzip, deflate", "compress"] {
        let failure = inflated(encoding, Bytes::from_static(PLAIN), 1 << 20).unwrap_err();
        assert_eq!(failure.code, Code::UnsupportedMediaType);
        assert!(
            failure.message.contains(encoding) && failure.message.contains("gzip, deflate or identity"),
            "{failure}"
        );
    }
}

#[test]
fn the_answer_has_the_coding_with_the_highest_quality() {
    use Encoding::{Deflate, Gzip};
    for (accept, coding) in [
        ("gzip", Some(Gzip)),
        ("GZip", Some(Gzip)),
        ("x-gzip", Some(Gzip)),
        ("deflate", Some(Deflate)),
        ("deflate, gzip", Some(Gzip)),
        ("gzip;q=0.5, deflate;q=0.8", Some(Deflate)),
        ("gzip, deflate, br, zstd", Some(Gzip)),
        ("*", Some(Gzip)),
        ("gzip;q=0, *", Some(Deflate)),
        ("gzip;q=0, *;q=0.1", Some(Deflate)),
        ("*;q=0", None),
        ("gzip;q=0", None),
        ("gzip ; Q=0.000", None),
        ("", None),
        ("br", None),
        ("identity", None),
        ("gzip, identity", Some(Gzip)),
        ("gzip;q=0.5, identity;q=1", None),
        ("gzip;q=0.5, identity;q=0.5", Some(Gzip)),
        ("gzip;q=nonsense", None),
        ("gzip;q=NaN", None),
        ("gzip;level=1", Some(Gzip)),
        (",,;q=1,", None),
    ] {
        assert_eq!(negotiate(accept), coding, "{accept:?}");
    }
}

#[test]
fn what_comes_out_of_a_body_is_counted_and_refused_where_it_does_not_fit() {
    let bomb = Bytes::from(compress(Encoding::Gzip, &vec![b' '; 32 << 20]));
    let budget = Budget::new(16 << 20);
    let hold = Hold::open(&budget, &budget.connection(None)).unwrap();
    hold.grow(bomb.len()).unwrap();
    let failure = inflate("gzip", bomb.clone(), 64 << 20, &hold).unwrap_err();
    assert_eq!((failure.code, hold.used()), (Code::BodyTooLarge, bomb.len()), "only the body is still counted");
    let small = Bytes::from(compress(Encoding::Gzip, &vec![b' '; 3 << 20]));
    hold.shrink_to(0);
    hold.grow(small.len()).unwrap();
    let plain = inflate("gzip", small, 64 << 20, &hold).unwrap();
    assert_eq!(plain.len(), 3 << 20);
    assert!(
        (3 << 20..=6 << 20).contains(&hold.used()),
        "the plain body is counted, without the other: {}",
        hold.used()
    );
}

#[test]
fn a_body_of_many_tiny_members_costs_no_more_than_its_size() {
    let member = compress(Encoding::Gzip, b"x");
    let first = compress(Encoding::Gzip, &vec![b'y'; 8 << 20]);
    let body: Vec<u8> = first.into_iter().chain(member.repeat(50_000)).collect();
    let started = std::time::Instant::now();
    let plain = inflated("gzip", body.into(), 64 << 20).unwrap();
    assert_eq!(plain.len(), (8 << 20) + 50_000);
    assert!(started.elapsed().as_secs() < 20, "50,000 members took {:?}", started.elapsed());
}
