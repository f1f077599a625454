use super::{MAX_ENTRIES, Refused, pack, unpack, unpack_below};
use std::io::Read as _;
use std::path::Path;

/// A header with a right checksum.
fn header(name: &[u8], size: &[u8], kind: u8) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name);
    block[124..124 + size.len()].copy_from_slice(size);
    block[148..156].fill(b' ');
    block[156] = kind;
    block[257..263].copy_from_slice(b"ustar\0");
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn entry(name: &str, content: &[u8], kind: u8) -> Vec<u8> {
    let mut bytes = header(name.as_bytes(), format!("{:011o}", content.len()).as_bytes(), kind);
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 1024]].concat()
}

fn unpacked(bytes: &[u8]) -> Result<Vec<String>, String> {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("to");
    std::fs::create_dir(&inside).unwrap();
    let result = unpack(&mut &bytes[..], &inside);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is written beside the directory");
    result.map_err(|refused| match refused {
        Refused::Invalid(message) => message,
        Refused::Disk(error) => panic!("{error}"),
    })
}

#[test]
fn what_is_packed_is_unpacked_unchanged() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let long = format!("weights/{}é.bin", "w".repeat(150));
    let files = [
        ("model.onnx", vec![7; 1300]),
        ("golden.json", b"{}".to_vec()),
        ("empty", Vec::new()),
        ("block", vec![1; 512]),
        (&long, vec![2; 5]),
    ];
    std::fs::create_dir(from.path().join("weights")).unwrap();
    for (name, content) in &files {
        std::fs::write(from.path().join(name), content).unwrap();
    }
    std::fs::write(from.path().join(".hidden"), "x").unwrap();
    std::os::unix::fs::symlink(from.path().join("block"), from.path().join("link")).unwrap();
    std::fs::write(to.path().join("signature"), "s").unwrap();
    let mut packed = pack(from.path(), Some(("model.sig", &to.path().join("signature")))).unwrap();
    let mut bytes = Vec::new();
    packed.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() % 512, 0);
    let inside = to.path().join("to");
    std::fs::create_dir(&inside).unwrap();
    let names = unpack(&mut bytes.as_slice(), &inside).unwrap();
    assert_eq!(names.len(), files.len() + 2, "{names:?}");
    for (name, content) in &files {
        assert_eq!(&std::fs::read(inside.join(name)).unwrap(), content, "{name}");
    }
    assert_eq!(std::fs::read(inside.join("link")).unwrap(), vec![1; 512], "what a link leads to");
    assert_eq!(std::fs::read(inside.join("model.sig")).unwrap(), b"s");

    // Every archive that is cut off is refused, wherever that is.
    for length in [0, 1, 511, 512, 600, bytes.len() - 1024, bytes.len() - 2048] {
        let error = unpacked(&bytes[..length]).unwrap_err();
        assert!(error.contains("it is incomplete"), "{length}: {error}");
    }
    std::fs::write(from.path().join("model.sig"), "another").unwrap();
    assert!(
        pack(from.path(), Some(("model.sig", Path::new("signature"))))
            .unwrap_err()
            .to_string()
            .contains("has a model.sig already")
    );
}

#[test]
fn a_file_that_shrinks_while_it_is_read_ends_the_archive_with_an_error() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("model.onnx"), vec![1; 2000]).unwrap();
    let mut packed = pack(dir.path(), None).unwrap();
    let mut header = vec![0; 512];
    packed.read_exact(&mut header).unwrap();
    std::fs::write(dir.path().join("model.onnx"), "short").unwrap();
    let error = packed.read_to_end(&mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("model.onnx became shorter"), "{error}");
}

#[test]
fn directories_and_hidden_files_are_left_out() {
    let bytes = archive(&[
        entry("./", b"", b'5'),
        entry("./a", b"1", b'0'),
        entry("./.git/config", b"2", b'0'),
        entry("sub//b", b"3", 0),
    ]);
    assert_eq!(unpacked(&bytes).unwrap(), ["a", "sub/b"]);
}

#[test]
fn hostile_archives_are_refused_by_name() {
    let refused = |bytes: &[u8], words: &str| {
        let error = unpacked(bytes).unwrap_err();
        assert!(error.contains(words), "{words:?} in {error:?}");
    };
    let one = |name: &str, kind: u8| archive(&[entry(name, b"x", kind)]);
    refused(&one("../x", b'0'), "entry \"../x\" leaves the directory of the version");
    refused(&one("a/../../x", b'0'), "leaves the directory");
    refused(&one("/etc/passwd", b'0'), "has an absolute path");
    refused(&one("a\\..\\b", b'0'), "has a name that is not allowed");
    refused(&one("a/b/c/d/e/f/g/h/i", b'0'), "more than 8 directories deep");
    refused(&one("./", b'0'), "has no name");
    refused(&one("x", b'2'), "\"x\" is a symbolic link; expected regular files");
    refused(&one("x", b'1'), "a hard link");
    refused(&one("x", b'3'), "a device");
    refused(&one("x", b'6'), "a named pipe");
    refused(&one("x", b'S'), "a sparse file");
    refused(&one("x", b'Z'), "of an unknown kind");
    refused(&archive(&[entry("x", b"1", b'0'), entry("./x", b"2", b'0')]), "file \"x\" is there more than once");
    refused(&archive(&[entry("x", b"1", b'0'), entry("x/y", b"2", b'0')]), "\"x/y\" is both a file and a directory");
    refused(&archive(&[entry("x/y", b"1", b'0'), entry("x", b"2", b'0')]), "\"x\" is both a file and a directory");
    refused(&archive(&vec![entry("d", b"", b'5'); MAX_ENTRIES + 1]), "more than 10000 entries");
    refused(&archive(&[header(b"x", b"00000000009z", b'0')]), "a size that is no number");
    refused(&archive(&[header(b"x", &[0xff; 12], b'0')]), "a size that is no number");
    refused(&archive(&[header(b"x", b"77777777777", b'0')]), "it ends within \"x\"");
    refused(&archive(&[header(b"x", b"77777777777", b'x')]), "the limit is 65536");
    refused(&archive(&[header(b"\xff\xfe", b"0", b'0')]), "a name is not UTF-8");
    refused(&archive(&[entry("pax", b"99 path=a\n", b'x')]), "an extended header cannot be read");
    refused(
        &archive(&[entry("pax", b"12 path=../x\n", b'x'), entry("x", b"", b'0')]),
        "an extended header cannot be read",
    );
    refused(&archive(&[entry("pax", b"13 path=../x\n", b'x'), entry("x", b"", b'0')]), "entry \"../x\" leaves");
    refused(
        &archive(&[entry("long", b"/etc/x\0", b'L'), entry("x", b"", b'0')]),
        "entry \"/etc/x\" has an absolute path",
    );
    refused(&archive(&[entry("pax", b"18 size=9999999999\n", b'x')]), "an extended header cannot be read");
    refused(&[archive(&[]), vec![1; 2 << 20]].concat(), "bytes follow its end");
    refused(&[7; 512], "it is not a tar archive");
    refused(&[&[0x1f, 0x8b][..], &[0; 600]].concat(), "it is compressed");
    let mut wrong = archive(&[entry("x", b"1", b'0')]);
    wrong[0] = b'y';
    refused(&wrong, "a wrong checksum");
}

#[test]
fn the_files_below_a_directory_are_taken_out_of_a_layer_and_the_rest_is_left_out() {
    let layer = archive(&[
        entry("bin/", b"", b'5'),
        entry("bin/sh", b"", b'2'),
        entry("../outside", b"x", b'0'),
        entry("dev/null", b"", b'3'),
        entry("models/", b"", b'5'),
        entry("models/model.onnx", b"model", b'0'),
        entry("./models/w/a.bin", b"weights", b'0'),
        entry("modelsx/model.onnx", b"other", b'0'),
        entry("models/.wh.old", b"", b'0'),
    ]);
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(unpack_below(&mut &layer[..], dir.path(), "models").unwrap(), ["model.onnx", "w/a.bin"]);
    assert_eq!(std::fs::read(dir.path().join("w/a.bin")).unwrap(), b"weights");
    for wrong in [("models/link", b'2'), ("models/../../x", b'0'), ("models/pipe", b'6')] {
        let dir = tempfile::tempdir().unwrap();
        let hostile = archive(&[entry(wrong.0, b"", wrong.1)]);
        assert!(matches!(unpack_below(&mut &hostile[..], dir.path(), "models"), Err(Refused::Invalid(_))), "{wrong:?}");
    }
}
