//! A directory on a web server. What is there is in its file `SHA256SUMS`, or else in the HTML listings that servers make of directories.

use super::Config;
use super::address::{Address, Kind};
use super::bucket::{late, runtime, slow, wait};
use super::layout;
use super::offer::{Listing, Place, Sink, Source, Trouble};
use super::wire::{Wire, header};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_RANGE, LAST_MODIFIED, RANGE};
use http::{HeaderMap, Method, StatusCode};
use object_store::client::HttpResponse;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Instant;
use tokio::runtime::Runtime;

pub(super) struct Web {
    client: Client,
    /// What stands before the path of each file.
    model: String,
    runtime: Runtime,
    /// The files of `SHA256SUMS` whose sizes are known, by path and digest.
    sizes: BTreeMap<(String, String), Place>,
}

/// Sends requests below one address.
struct Client {
    wire: Wire,
    /// Ends with `/`.
    base: String,
}

const SUMS: &str = "SHA256SUMS";
/// The largest `SHA256SUMS`: a hundred thousand lines.
const MAX_SUMS: usize = 16 << 20;
/// The largest listing of one directory.
const MAX_INDEX: usize = 4 << 20;
/// The most directories of a source.
const MAX_DIRS: usize = 20_000;
const MAX_DEPTH: usize = 10;
/// The longest path, in bytes, and all paths of a source together.
const MAX_PATH: usize = 1000;
const MAX_PATHS: usize = 32 << 20;
/// A longer tag is kept as its digest.
const MAX_TAG: usize = 256;
/// What stands in a path as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

impl Web {
    /// # Errors
    /// When the client cannot be made.
    pub(super) fn open(address: &Address, config: &Config) -> Result<Web, Trouble> {
        let client = Client { wire: Wire::open(config, address.kind() == Kind::Http)?, base: format!("{address}/") };
        Ok(Web { client, model: address.prefix(), runtime: runtime()?, sizes: BTreeMap::new() })
    }
}

impl Source for Web {
    fn list(&mut self, until: Instant) -> Result<Listing, Trouble> {
        let Web { client, model, runtime, sizes } = self;
        let files = wait(runtime, until, late, async {
            match client.text(SUMS, MAX_SUMS).await? {
                Some(text) => client.summed(&text, sizes).await,
                None => client.crawl().await,
            }
        })?;
        Ok(layout::group(files.into_iter().map(|(path, place)| (format!("{model}{path}"), place))))
    }

    fn read(&mut self, place: &Place, from: u64, until: Instant, to: &mut Sink<'_>) -> Result<(), Trouble> {
        let Web { client, runtime, .. } = self;
        wait(runtime, until, slow, client.read(place, from, to))
    }
}

impl Client {
    /// The files of `SHA256SUMS`. Each one that is new is asked for its size.
    async fn summed(
        &self,
        text: &str,
        sizes: &mut BTreeMap<(String, String), Place>,
    ) -> Result<Vec<(String, Place)>, Trouble> {
        let sums = parse_sums(text)?;
        let mut known = std::mem::take(sizes);
        let (mut files, mut bytes) = (Vec::with_capacity(sums.len()), 0);
        for (path, sha256) in sums {
            check_length(&path, &mut bytes)?;
            let key = (path.clone(), sha256.clone());
            let place = match known.remove(&key) {
                Some(place) => place,
                None => Place { sha256: Some(sha256), ..self.place(&path).await? },
            };
            sizes.insert(key, place.clone());
            files.push((path, place));
        }
        Ok(files)
    }

    /// Follows the listings of directories.
    async fn crawl(&self) -> Result<Vec<(String, Place)>, Trouble> {
        let mut dirs = VecDeque::from([String::new()]);
        let (mut files, mut seen, mut bytes) = (Vec::new(), 1, 0);
        while let Some(dir) = dirs.pop_front() {
            let Some(html) = self.text(&dir, MAX_INDEX).await? else {
                return Err(Trouble::new(format!(
                    "{}{dir} is not there (404); expected a {SUMS} or a listing of the directory",
                    self.base
                )));
            };
            for name in links(&html, &format!("{}{dir}", self.base)) {
                let path = format!("{dir}{name}");
                check_length(&path, &mut bytes)?;
                if !name.ends_with('/') {
                    files.push((path.clone(), self.place(&path).await?));
                } else if path.matches('/').count() <= MAX_DEPTH {
                    dirs.push_back(path);
                    seen += 1;
                }
                if files.len() > layout::MAX_FILES || seen > MAX_DIRS {
                    let most = layout::MAX_FILES;
                    return Err(Trouble::new(format!("it has more than {most} files or {MAX_DIRS} directories")));
                }
            }
        }
        Ok(files)
    }

    /// The size and tag of a file.
    async fn place(&self, path: &str) -> Result<Place, Trouble> {
        let response = self.send(Method::HEAD, path, HeaderMap::new()).await?;
        if response.status().is_client_error() {
            // Not every server answers HEAD. Where the file is not there, its version cannot be read.
            return Ok(Place { location: path.to_owned(), size: None, tag: None, sha256: None });
        }
        if !response.status().is_success() {
            return Err(self.refused(path, response.status()));
        }
        let size = header(response.headers(), &CONTENT_LENGTH).and_then(|length| length.parse().ok());
        Ok(Place { location: path.to_owned(), size, tag: tag(response.headers()), sha256: None })
    }

    /// A small text. `None` where there is none.
    async fn text(&self, path: &str, most: usize) -> Result<Option<String>, Trouble> {
        let response = self.send(Method::GET, path, HeaderMap::new()).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            status => return Err(self.refused(path, status)),
        }
        let bytes = self.wire.body(response, most, &format!("{}{path}", self.base)).await?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    async fn read(&self, place: &Place, from: u64, to: &mut Sink<'_>) -> Result<(), Trouble> {
        let mut headers = HeaderMap::new();
        if from > 0 {
            let invalid = |_| Trouble::changed("its tag cannot be sent");
            headers.insert(RANGE, format!("bytes={from}-").parse().map_err(invalid)?);
            // With another file the whole one comes. A weak tag does not say that the bytes are the same.
            if let Some(tag) = place.tag.as_ref().filter(|tag| !tag.starts_with("W/")) {
                headers.insert(IF_RANGE, tag.parse().map_err(invalid)?);
            }
        }
        let response = self.send(Method::GET, &place.location, headers).await?;
        let headers = response.headers();
        if place.tag.is_some() && tag(headers) != place.tag {
            return Err(Trouble::changed(
                "it is not the file that was listed: its ETag or time of change is another one",
            ));
        }
        let skip = match response.status() {
            StatusCode::OK => from,
            StatusCode::PARTIAL_CONTENT if from > 0 => {
                let range = header(headers, &CONTENT_RANGE).unwrap_or_default();
                if !range.starts_with(&format!("bytes {from}-")) {
                    return Err(Trouble::changed(format!(
                        "the server sent the range {range:?}, and not from byte {from} on"
                    )));
                }
                0
            }
            StatusCode::RANGE_NOT_SATISFIABLE => return Err(Trouble::changed("it is shorter than before")),
            status => return Err(self.refused(&place.location, status)),
        };
        self.wire.pour(response, skip, to).await
    }

    async fn send(&self, method: Method, path: &str, headers: HeaderMap) -> Result<HttpResponse, Trouble> {
        let url = format!("{}{}", self.base, utf8_percent_encode(path, PLAIN));
        self.wire.send(method, &url, headers).await
    }

    fn refused(&self, path: &str, status: StatusCode) -> Trouble {
        Trouble::new(format!("{}{path} was answered with {status}", self.base))
    }
}

/// What changes when the file changes.
fn tag(headers: &HeaderMap) -> Option<String> {
    let tag = header(headers, &ETAG).or_else(|| header(headers, &LAST_MODIFIED))?;
    // It is weak then, so that it is compared and never sent.
    Some(if tag.len() > MAX_TAG { format!("W/{:x}", Sha256::digest(tag)) } else { tag.to_owned() })
}

/// # Errors
/// When a path is too long, or all paths together are. `bytes`: of those before.
fn check_length(path: &str, bytes: &mut usize) -> Result<(), Trouble> {
    *bytes = bytes.saturating_add(path.len());
    if path.len() > MAX_PATH {
        let begin: String = path.chars().take(80).collect();
        return Err(Trouble::new(format!(
            "it lists a path of {} bytes, {begin:?}…; expected at most {MAX_PATH}",
            path.len()
        )));
    }
    if *bytes > MAX_PATHS {
        return Err(Trouble::new(format!("its paths have more than {MAX_PATHS} bytes together")));
    }
    Ok(())
}

/// Reads what `sha256sum` prints.
///
/// # Errors
/// When a line is something else: a part of a listing would remove the other versions.
fn parse_sums(text: &str) -> Result<Vec<(String, String)>, Trouble> {
    let mut sums = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let parsed = line.split_once([' ', '\t']).and_then(|(digest, path)| {
            let path = path.trim_start_matches([' ', '*']);
            let path = path.strip_prefix("./").unwrap_or(path);
            let is_digest = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
            (is_digest && !path.is_empty()).then(|| (path.to_owned(), digest.to_ascii_lowercase()))
        });
        let Some(sum) = parsed else {
            return Err(Trouble::new(format!("line {} of {SUMS} is not `<sha256>  <path>`", number + 1)));
        };
        if sum.0 != SUMS {
            sums.push(sum);
        }
        if sums.len() > layout::MAX_FILES {
            return Err(Trouble::new(format!("{SUMS} has more than {} files", layout::MAX_FILES)));
        }
    }
    Ok(sums)
}

/// The names in a listing of a directory: those of directories end with `/`.
fn links(html: &str, base: &str) -> Vec<String> {
    let path = base.split_once("://").and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..])).unwrap_or("/");
    let (mut names, mut known) = (Vec::new(), HashSet::new());
    // As the letters of the attribute may be large or small, the text is searched for what follows them.
    for part in
        html.split("=\"").zip(html.split("=\"").skip(1)).filter(|(before, _)| is_href(before)).map(|(_, after)| after)
    {
        let target = part.split('"').next().unwrap_or_default().replace("&amp;", "&");
        let target = percent_decode_str(&target).decode_utf8_lossy().into_owned();
        let name = target.strip_prefix(path).or_else(|| target.strip_prefix("./")).unwrap_or(&target);
        let plain = name.strip_suffix('/').unwrap_or(name);
        let is_name = !plain.is_empty() && !plain.starts_with('.') && !plain.contains(['/', '?', '#', '\\', ':']);
        if is_name && known.insert(name.to_owned()) {
            names.push(name.to_owned());
        }
    }
    names
}

fn is_href(before: &str) -> bool {
    let end = before.trim_end();
    end.len() >= 4 && end.is_char_boundary(end.len() - 4) && end[end.len() - 4..].eq_ignore_ascii_case("href")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn names_in_a_listing_stay_in_its_directory(html in "(<a |href=\"|HREF = \"|\\.\\./|%2e|%2F|/models/|[a-z./?#:%&\"<>=\\\\ é]){0,60}") {
            for name in links(&html, "http://h/models/") {
                let plain = name.strip_suffix('/').unwrap_or(&name);
                prop_assert!(!plain.is_empty() && !plain.starts_with('.') && !plain.contains(['/', '\\']), "{name:?}");
            }
        }

        #[test]
        fn lists_of_digests_are_read_whole_or_not_at_all(text in "([0-9a-fA-F]{62,65}|[ *\\t]{1,3}|[a-z./\r]{1,9}|\n){0,20}") {
            if let Ok(sums) = parse_sums(&text) {
                prop_assert!(sums.len() <= text.lines().filter(|line| !line.trim().is_empty()).count());
                prop_assert!(sums.iter().all(|(path, sha256)| sha256.len() == 64 && !path.is_empty()));
            }
        }
    }

    #[test]
    fn listings_of_the_usual_servers_are_read() {
        let python = r#"<ul><li><a href="fraud/">fraud/</a></li><li><a href="a%20b.onnx">a b.onnx</a></li><li><a href="../">..</a></li></ul>"#;
        assert_eq!(links(python, "http://h/models/"), ["fraud/", "a b.onnx"]);
        let apache = r#"<a href="?C=N;O=D">Name</a> <A HREF="/models/">Parent</A><img src="/icons/folder.gif"><a href="1/">1/</a>"#;
        assert_eq!(links(apache, "http://h/models/fraud/"), ["1/"]);
        let absolute = r##"<a href="/models/x&amp;y.onnx">x</a><a href="/other/z">z</a><a href="https://evil/a">a</a><a href="#top">t</a>"##;
        assert_eq!(links(absolute, "http://h/models/"), ["x&y.onnx"]);
        for hostile in
            ["", "href=\"", "href=\"\"", "=\"=\"=\"", "é=\"x\"", "<a href=\"..%2f..%2fetc\">", "<a href=\"%00\">"]
        {
            assert!(links(hostile, "http://h/").iter().all(|name| !name.contains("..")), "{hostile}");
        }
    }

    #[test]
    fn paths_and_tags_that_a_stranger_chose_are_bounded() {
        let mut bytes = 0;
        assert!(check_length(&"a".repeat(MAX_PATH), &mut bytes).is_ok());
        let error = check_length(&"é".repeat(MAX_PATH), &mut bytes).unwrap_err().words;
        assert!(error.starts_with("it lists a path of 2000 bytes") && error.len() < 300, "{error}");
        bytes = MAX_PATHS - 1;
        assert!(check_length("a", &mut bytes).is_ok() && check_length("a", &mut bytes).is_err());
        let of = |text: &str| tag(&HeaderMap::from_iter([(ETAG, text.parse().unwrap())])).unwrap();
        assert_eq!(of("\"x\""), "\"x\"");
        let (one, other) = (of(&"x".repeat(5000)), of(&"y".repeat(5000)));
        assert!(one.starts_with("W/") && one.len() == 66 && one != other, "{one}");
    }

    #[test]
    fn sums_are_read_as_sha256sum_prints_them() {
        let (a, b) = ("a".repeat(64), "B".repeat(64));
        let sums = parse_sums(&format!("{a}  ./m/1/model.onnx\n{b} *m/1/w b.bin\n\n{a}  SHA256SUMS\n")).unwrap();
        let expected = [("m/1/model.onnx".to_owned(), a.clone()), ("m/1/w b.bin".to_owned(), b.to_lowercase())];
        assert_eq!(sums, expected);
        for wrong in ["<html>", a.as_str(), &format!("{}  x", "a".repeat(63)), &format!("{a}  \n")] {
            assert!(parse_sums(wrong).is_err(), "{wrong}");
        }
    }
}
