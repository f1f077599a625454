//! Reads the files of a directory as an archive.

use super::{BLOCK, MAX_DEPTH, MAX_ENTRIES};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};

/// The largest size that eleven octal digits can say.
const MAX_OCTAL: u64 = 0o77_777_777_777;

/// An archive that is made while it is read. Each file is opened when its turn comes.
#[derive(Debug)]
pub(crate) struct Packed {
    /// Sorted by name.
    files: VecDeque<Entry>,
    now: Part,
    /// The content that follows the header that is being read.
    opened: Option<Part>,
    /// The mark of the end is given out.
    ended: bool,
}

#[derive(Debug)]
struct Entry {
    name: String,
    path: PathBuf,
}

/// What is being read.
#[derive(Debug)]
enum Part {
    /// Headers, or what fills up a block.
    Bytes(Cursor<Vec<u8>>),
    Content {
        file: File,
        left: u64,
        size: u64,
        name: String,
    },
    /// The mark of the end is read.
    End,
}

/// The files below a directory, without hidden ones. Links are followed. `also`: a file from elsewhere, with its name in the archive.
///
/// # Errors
/// When the directory cannot be read, is too deep, or has too many files.
pub(crate) fn pack(dir: &Path, also: Option<(&str, &Path)>) -> io::Result<Packed> {
    let mut files = Vec::new();
    list(dir, "", 1, &mut files)?;
    if let Some((name, path)) = also {
        if files.iter().any(|entry| entry.name == name) {
            let message = format!("{} has a {name} already", dir.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        files.push(Entry { name: name.to_owned(), path: path.to_owned() });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Packed { files: files.into(), now: Part::Bytes(Cursor::default()), opened: None, ended: false })
}

fn list(dir: &Path, prefix: &str, depth: usize, files: &mut Vec<Entry>) -> io::Result<()> {
    let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidInput, format!("{}: {why}", dir.display()));
    if depth > MAX_DEPTH {
        return Err(wrong(format!("it is more than {MAX_DEPTH} directories deep")));
    }
    let at = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", dir.display()));
    for entry in std::fs::read_dir(dir).map_err(at)? {
        let entry = entry.map_err(at)?;
        let file_name = entry.file_name();
        let Some(name) = file_name.to_str() else {
            return Err(wrong(format!("the name {} is not UTF-8", file_name.display())));
        };
        if name.starts_with('.') {
            continue;
        }
        let (path, name) = (entry.path(), format!("{prefix}{name}"));
        let kind =
            std::fs::metadata(&path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        if kind.is_dir() {
            list(&path, &format!("{name}/"), depth + 1, files)?;
        } else if kind.is_file() {
            files.push(Entry { name, path });
        } else {
            return Err(wrong(format!("{name} is not a regular file")));
        }
        if files.len() > MAX_ENTRIES / 2 {
            return Err(wrong(format!("it has more than {} files", MAX_ENTRIES / 2)));
        }
    }
    Ok(())
}

impl Read for Packed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match &mut self.now {
                Part::Bytes(bytes) => {
                    let n = bytes.read(buffer)?;
                    if n > 0 {
                        return Ok(n);
                    }
                    self.now = self.next_part()?;
                }
                Part::Content { file, left, size, name } if *left > 0 => {
                    let most = usize::try_from(*left).map_or(buffer.len(), |left| left.min(buffer.len()));
                    let n = file.read(&mut buffer[..most])?;
                    if n == 0 {
                        let message = format!("{name} became shorter while it was read; it had {size} bytes");
                        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
                    }
                    *left -= n as u64;
                    return Ok(n);
                }
                Part::Content { size, .. } => {
                    let used = usize::try_from(*size % BLOCK as u64).unwrap_or(0);
                    self.now = Part::Bytes(Cursor::new(vec![0; (BLOCK - used) % BLOCK]));
                }
                Part::End => return Ok(0),
            }
        }
    }
}

impl Packed {
    /// The part after one of bytes: the content whose header was read, the next header, the mark of the end, or nothing.
    fn next_part(&mut self) -> io::Result<Part> {
        if let Some(content) = self.opened.take() {
            return Ok(content);
        }
        let Some(Entry { name, path }) = self.files.pop_front() else {
            let is_first = !std::mem::replace(&mut self.ended, true);
            return Ok(if is_first { Part::Bytes(Cursor::new(vec![0; 2 * BLOCK])) } else { Part::End });
        };
        let at = |e: io::Error| io::Error::new(e.kind(), format!("cannot read {}: {e}", path.display()));
        let file = File::open(&path).map_err(at)?;
        let size = file.metadata().map_err(at)?.len();
        let header = headers(&name, size);
        self.opened = Some(Part::Content { file, left: size, size, name });
        Ok(Part::Bytes(Cursor::new(header)))
    }
}

/// The header of a file, after an extended one where its name or its size needs that.
fn headers(name: &str, size: u64) -> Vec<u8> {
    let mut records = Vec::new();
    if name.len() > 100 {
        record(&mut records, "path", name);
    }
    if size > MAX_OCTAL {
        record(&mut records, "size", &size.to_string());
    }
    let mut all = Vec::new();
    if !records.is_empty() {
        all.extend_from_slice(&header("pax", records.len() as u64, b'x'));
        all.extend_from_slice(&records);
        all.resize(all.len().next_multiple_of(BLOCK), 0);
    }
    let mut end = name.len().min(100);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    all.extend_from_slice(&header(&name[..end], size.min(MAX_OCTAL), b'0'));
    all
}

/// A record of an extended header. Its length counts its own digits.
fn record(records: &mut Vec<u8>, key: &str, value: &str) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} {key}={value}\n").as_bytes());
}

/// `name` has at most 100 bytes.
fn header(name: &str, size: u64, kind: u8) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}
