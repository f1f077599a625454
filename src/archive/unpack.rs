//! Writes the files of an archive into a directory.

use super::{BLOCK, MAX_DEPTH, MAX_ENTRIES, MAX_EXTENDED, MAX_LAYER_ENTRIES};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

/// Why an archive was not unpacked.
#[derive(Debug)]
pub(crate) enum Refused {
    /// What is wrong with it, in words.
    Invalid(String),
    /// The directory cannot be written.
    Disk(io::Error),
}

/// Writes the files of the archive into an empty directory and syncs each. Returns their names, sorted. Hidden files are left out.
///
/// # Errors
/// The first entry that is refused. Files may be left in the directory then.
pub(crate) fn unpack(source: &mut dyn Read, to: &Path) -> Result<Vec<String>, Refused> {
    unpack_entries(source, to, None)
}

/// The same for the files below one directory of the archive, whose names are then relative to it. Everything else is left out, whatever it is: a layer
/// of an image has links and devices too.
///
/// # Errors
/// As [`unpack`].
pub(crate) fn unpack_below(source: &mut dyn Read, to: &Path, below: &str) -> Result<Vec<String>, Refused> {
    unpack_entries(source, to, Some(below))
}

fn unpack_entries(source: &mut dyn Read, to: &Path, below: Option<&str>) -> Result<Vec<String>, Refused> {
    let most = if below.is_some() { MAX_LAYER_ENTRIES } else { MAX_ENTRIES };
    let mut names = BTreeSet::new();
    let mut extended = Extended::default();
    let mut entries = 0;
    while let Some(header) = next_header(source)? {
        entries += 1;
        if entries > most || names.len() > MAX_ENTRIES {
            return Err(invalid(format!("it has more than {most} entries or {MAX_ENTRIES} files")));
        }
        match header.kind {
            b'x' => extended.read_pax(&content(source, header.size)?)?,
            // Of the whole archive: a comment, or times. Nothing that is needed here.
            b'g' => drop(content(source, header.size)?),
            b'L' => {
                extended.path =
                    Some(text(content(source, header.size)?.split(|b| *b == 0).next().unwrap_or_default())?);
            }
            // The target of a long link, which is not followed.
            b'K' if below.is_some() => skip(source, header.size)?,
            kind => {
                let Extended { path, size } = std::mem::take(&mut extended);
                let size = size.unwrap_or(header.size);
                let name = path.map_or_else(|| header.name(), Ok);
                let name = match below {
                    None => name?,
                    // A name that cannot be read is not below the directory.
                    Some(below) => {
                        if let Some(name) = name.ok().and_then(|name| inside(&name, below)) {
                            name
                        } else {
                            skip(source, size)?;
                            continue;
                        }
                    }
                };
                let path = relative(&name)?;
                match kind {
                    b'5' => skip(source, size)?,
                    b'0' | b'7' | 0 if path.iter().any(|part| part.starts_with('.')) => skip(source, size)?,
                    b'0' | b'7' | 0 => {
                        let path = path.join("/");
                        if path.is_empty() {
                            return Err(invalid(format!("entry {} has no name", shown(&name))));
                        }
                        if !names.insert(path.clone()) {
                            return Err(invalid(format!("file {} is there more than once", shown(&path))));
                        }
                        write(source, &to.join(&path), &path, size)?;
                    }
                    kind => {
                        return Err(invalid(format!(
                            "{} is {}; expected regular files",
                            shown(&name),
                            kind_words(kind)
                        )));
                    }
                }
            }
        }
    }
    Ok(names.into_iter().collect())
}

/// The name of an entry below a directory of the archive.
fn inside(name: &str, below: &str) -> Option<String> {
    let name = name.trim_start_matches("./").trim_start_matches('/');
    let rest = name.strip_prefix(below)?.strip_prefix('/')?;
    Some(rest.to_owned())
}

/// A header, with the fields that matter here.
struct Header {
    block: [u8; BLOCK],
    kind: u8,
    size: u64,
}

/// What an extended header says about the next file.
#[derive(Default)]
struct Extended {
    path: Option<String>,
    size: Option<u64>,
}

/// The next header. `None` at the mark of the end, which must be there.
fn next_header(source: &mut dyn Read) -> Result<Option<Header>, Refused> {
    let mut block = [0; BLOCK];
    let mut filled = 0;
    while filled < BLOCK {
        match source.read(&mut block[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Refused::Disk(e)),
        }
    }
    if block.starts_with(&[0x1f, 0x8b]) {
        return Err(invalid("it is compressed; send the tar archive as it is".to_owned()));
    }
    if filled < BLOCK {
        return Err(invalid("it is incomplete: it ends without the mark of its end (two blocks of zeros)".to_owned()));
    }
    if block.iter().all(|byte| *byte == 0) {
        finish(source)?;
        return Ok(None);
    }
    if &block[257..262] != b"ustar" {
        return Err(invalid("it is not a tar archive".to_owned()));
    }
    // The sum of all bytes, with the sum itself as spaces.
    let sum: u64 =
        block.iter().enumerate().map(|(i, b)| u64::from(if (148..156).contains(&i) { b' ' } else { *b })).sum();
    if octal(&block[148..156]) != Some(sum) {
        return Err(invalid("a header has a wrong checksum".to_owned()));
    }
    let size = number(&block[124..136]).ok_or_else(|| invalid("a header has a size that is no number".to_owned()))?;
    Ok(Some(Header { kind: block[156], size, block }))
}

/// Reads what follows the end. Tar programs fill up to 10 KiB, or to the size of a tape's record.
fn finish(source: &mut dyn Read) -> Result<(), Refused> {
    const MOST: u64 = 1 << 20;
    let rest = io::copy(&mut source.take(MOST + 1), &mut io::sink()).map_err(Refused::Disk)?;
    if rest > MOST { Err(invalid(format!("more than {MOST} bytes follow its end"))) } else { Ok(()) }
}

impl Header {
    fn name(&self) -> Result<String, Refused> {
        let until_zero = |field: &[u8]| text(field.split(|b| *b == 0).next().unwrap_or_default());
        let name = until_zero(&self.block[..100])?;
        // GNU tar has other fields in the place of the prefix, and "ustar  " as its mark.
        let prefix = if self.block[262] == 0 { until_zero(&self.block[345..500])? } else { String::new() };
        Ok(if prefix.is_empty() { name } else { format!("{prefix}/{name}") })
    }
}

impl Extended {
    /// Records of the form `LENGTH KEY=VALUE\n`.
    fn read_pax(&mut self, mut records: &[u8]) -> Result<(), Refused> {
        let wrong = || invalid("an extended header cannot be read".to_owned());
        while !records.is_empty() {
            let space = records.iter().position(|b| *b == b' ').ok_or_else(wrong)?;
            let length: usize =
                std::str::from_utf8(&records[..space]).ok().and_then(|n| n.parse().ok()).ok_or_else(wrong)?;
            let record = records.get(space + 1..length).and_then(|r| r.strip_suffix(b"\n")).ok_or_else(wrong)?;
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(wrong)?;
            let value = &record[equals + 1..];
            match &record[..equals] {
                b"path" => self.path = Some(text(value)?),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|n| n.parse().ok());
                    self.size = Some(size.ok_or_else(wrong)?);
                }
                key if key.starts_with(b"GNU.sparse") => {
                    return Err(invalid("it has a sparse file; expected regular files".to_owned()));
                }
                _ => {}
            }
            records = &records[length..];
        }
        Ok(())
    }
}

/// The parts of a path below the directory. `./` in front is what `tar -c .` writes.
fn relative(name: &str) -> Result<Vec<&str>, Refused> {
    let refused = |why: &str| Err(invalid(format!("entry {} {why}", shown(name))));
    if name.starts_with('/') {
        return refused("has an absolute path; expected one below the directory of the version");
    }
    let parts: Vec<&str> = name.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return refused("leaves the directory of the version");
    }
    if name.contains(['\0', '\\']) || parts.iter().any(|part| part.len() > 255) {
        return refused("has a name that is not allowed");
    }
    if parts.len() > MAX_DEPTH {
        return refused(&format!("is more than {MAX_DEPTH} directories deep"));
    }
    Ok(parts)
}

fn write(source: &mut dyn Read, path: &Path, name: &str, size: u64) -> Result<(), Refused> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|e| occupied(e, name))?;
    }
    let created = OpenOptions::new().write(true).create_new(true).open(path);
    let mut file: File = created.map_err(|e| occupied(e, name))?;
    copy(source, &mut file, size, name)?;
    file.sync_all().map_err(Refused::Disk)?;
    fill(source, size)
}

/// A file and a directory of one name.
fn occupied(error: io::Error, name: &str) -> Refused {
    match error.kind() {
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => {
            invalid(format!("{} is both a file and a directory", shown(name)))
        }
        _ => Refused::Disk(error),
    }
}

/// Copies exactly `size` bytes.
fn copy(source: &mut dyn Read, to: &mut dyn Write, size: u64, name: &str) -> Result<(), Refused> {
    let mut buffer = vec![0; 256 << 10];
    let mut left = size;
    while left > 0 {
        let most = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        match source.read(&mut buffer[..most]) {
            Ok(0) => return Err(invalid(format!("it is incomplete: it ends within {}", shown(name)))),
            Ok(n) => {
                to.write_all(&buffer[..n]).map_err(Refused::Disk)?;
                left -= n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Refused::Disk(e)),
        }
    }
    Ok(())
}

/// The content of an extended header.
fn content(source: &mut dyn Read, size: u64) -> Result<Vec<u8>, Refused> {
    if size > MAX_EXTENDED {
        return Err(invalid(format!("an extended header has {size} bytes, the limit is {MAX_EXTENDED}")));
    }
    let mut bytes = Vec::new();
    copy(source, &mut bytes, size, "an extended header")?;
    fill(source, size)?;
    Ok(bytes)
}

fn skip(source: &mut dyn Read, size: u64) -> Result<(), Refused> {
    copy(source, &mut io::sink(), size, "an entry that is left out")?;
    fill(source, size)
}

/// Reads what fills up the last block of a content.
fn fill(source: &mut dyn Read, size: u64) -> Result<(), Refused> {
    let block = BLOCK as u64;
    copy(source, &mut io::sink(), (block - size % block) % block, "its last block")
}

/// An octal number, or one in base 256 as GNU tar writes large ones.
fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 == 0 {
        return octal(field);
    }
    let high = u64::from(first & 0x7f);
    rest.iter().try_fold(high, |n, byte| n.checked_mul(256)?.checked_add(u64::from(*byte)))
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok().filter(|_| !text.starts_with('+')) }
}

fn text(bytes: &[u8]) -> Result<String, Refused> {
    let wrong = |_| invalid(format!("a name is not UTF-8: {}", shown(&String::from_utf8_lossy(bytes))));
    String::from_utf8(bytes.to_vec()).map_err(wrong)
}

fn kind_words(kind: u8) -> &'static str {
    match kind {
        b'1' => "a hard link",
        b'2' => "a symbolic link",
        b'3' | b'4' => "a device",
        b'6' => "a named pipe",
        b'S' => "a sparse file",
        _ => "an entry of an unknown kind",
    }
}

fn shown(name: &str) -> String {
    let short: String = name.chars().take(100).collect();
    format!("{short:?}")
}

fn invalid(message: String) -> Refused {
    Refused::Invalid(message)
}
