//! The mirror with a source in memory: what is stored, what is removed, and what is told.

use super::offer::{Content, Listing, Offer, Place, RemoteFile, Sink, Source, Trouble};
use super::report::VersionState;
use super::{Beside, Config, Mirror, Other, Stop, models_in};
use crate::model::VersionId;
use crate::source::Awaited;
use crate::telemetry::Telemetry;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What a source has, and what goes wrong with it. Shared with its test.
#[derive(Debug, Clone, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is one thing that a source does, in any combination")]
struct Fake {
    /// By path: `m/1/model.onnx`.
    files: BTreeMap<String, Vec<u8>>,
    away: bool,
    /// Reads end with an error after so many bytes, as often as `cuts` says.
    cut_after: usize,
    cuts: u32,
    /// The bytes that arrive have another content.
    wrong_bytes: bool,
    with_digests: bool,
    is_final: bool,
    /// The starts of all reads.
    reads: Vec<(String, u64)>,
    lists: u32,
}

#[derive(Clone, Default)]
struct Remote(Arc<Mutex<Fake>>);

impl Source for Remote {
    fn list(&mut self, _: Instant) -> Result<Listing, Trouble> {
        let mut fake = self.0.lock().unwrap();
        fake.lists += 1;
        if fake.away {
            return Err(Trouble::new("it is away"));
        }
        let place = |path: &String, bytes: &Vec<u8>| Place {
            location: path.clone(),
            size: Some(bytes.len() as u64),
            tag: Some(format!("{:x}", Sha256::digest(bytes))),
            sha256: fake.with_digests.then(|| format!("{:x}", Sha256::digest(bytes))),
        };
        let listing = super::layout::group(fake.files.iter().map(|(path, bytes)| (path.clone(), place(path, bytes))));
        Ok(Listing { is_final: fake.is_final, ..listing })
    }

    fn read(&mut self, place: &Place, from: u64, _: Instant, to: &mut Sink<'_>) -> Result<(), Trouble> {
        let mut fake = self.0.lock().unwrap();
        fake.reads.push((place.location.clone(), from));
        let mut bytes = fake.files.get(&place.location).cloned().ok_or_else(|| Trouble::new("it is gone"))?;
        if fake.wrong_bytes {
            for byte in &mut bytes {
                *byte ^= 1;
            }
        }
        let cut = fake.cuts > 0;
        let end = if cut { (usize::try_from(from).unwrap() + fake.cut_after).min(bytes.len()) } else { bytes.len() };
        if cut {
            fake.cuts -= 1;
        }
        drop(fake);
        for piece in bytes[usize::try_from(from).unwrap()..end].chunks(1000) {
            to(piece)?;
        }
        if cut { Err(Trouble::new("the connection broke")) } else { Ok(()) }
    }
}

impl Remote {
    fn with(&self, change: impl FnOnce(&mut Fake)) {
        change(&mut self.0.lock().unwrap());
    }

    fn put(&self, path: &str, bytes: &[u8]) {
        self.with(|fake| drop(fake.files.insert(path.to_owned(), bytes.to_vec())));
    }

    fn reads_of(&self, path: &str) -> Vec<u64> {
        self.0.lock().unwrap().reads.iter().filter(|(read, _)| read == path).map(|(_, from)| *from).collect()
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    named: Arc<Mutex<BTreeSet<VersionId>>>,
    config: Config,
}

struct Running {
    mirror: Mirror,
    stop: Stop,
    dir: PathBuf,
}

impl Fixture {
    fn new() -> Fixture {
        let config = Config { interval: Duration::from_millis(10), ..Config::default() };
        Fixture { dir: tempfile::tempdir().unwrap(), named: Arc::default(), config }
    }

    fn name(&self, version: &str) {
        let (model, version) = version.split_once('/').unwrap();
        let id = VersionId { model: model.parse().unwrap(), version: version.parse().unwrap() };
        self.named.lock().unwrap().insert(id);
    }

    fn local(&self, path: &str) {
        let path = self.dir.path().join("models").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "local").unwrap();
    }

    fn start(&self, remotes: &[&Remote]) -> Running {
        let other = |(number, remote): (usize, &&Remote)| {
            let remote = (*remote).clone();
            Other {
                name: format!("fake{number}"),
                make: Box::new(move || -> Result<Box<dyn Source>, Trouble> { Ok(Box::new(remote.clone())) }),
            }
        };
        let named = Arc::clone(&self.named);
        let dir = self.dir.path().join("sources");
        let beside = Beside {
            dir: dir.clone(),
            models_dir: self.dir.path().join("models"),
            settle: Duration::from_millis(5),
            first: Vec::new(),
            others: remotes.iter().enumerate().map(other).collect(),
            named: Box::new(move || named.lock().unwrap().clone()),
            awaited: Awaited::default(),
            telemetry: Telemetry::new(),
        };
        let (mirror, stop) = Mirror::start(&self.config, beside).unwrap();
        Running { mirror, stop, dir }
    }
}

impl Running {
    fn path(&self, path: &str) -> PathBuf {
        models_in(&self.dir).join(path)
    }

    fn text(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.path(path)).ok()
    }

    #[track_caller]
    fn wait(&self, what: &str, is_so: impl Fn(&Running) -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        while !is_so(self) {
            assert!(Instant::now() < until, "{what}: {:#?}", self.mirror.report());
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }

    fn version(&self, source: usize, version: &str) -> Option<(VersionState, String)> {
        let report = self.mirror.report();
        let found = report.sources[source].versions.iter().find(|v| format!("{}/{}", v.model, v.version) == version)?;
        Some((found.state, found.message.clone().unwrap_or_default()))
    }

    #[track_caller]
    fn wait_for(&self, source: usize, version: &str, state: VersionState, message: &str) {
        self.wait(&format!("{version} is {state:?} with {message:?}"), |running| {
            running.version(source, version).is_some_and(|(s, m)| s == state && m.contains(message))
        });
    }

    fn stop(mut self) {
        self.stop.stop(Duration::from_secs(10));
    }
}

fn files_in(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[test]
fn a_version_is_stored_whole_with_its_files_and_settings_and_its_place_is_remembered() {
    let (fixture, remote) = (Fixture::new(), Remote::default());
    remote.put("m/1/model.onnx", b"model");
    remote.put("m/1/weights/a.bin", &[7; 5000]);
    remote.put("m/2/weights.bin", b"no model here");
    remote.put("m/model.toml", b"versions = \"all\"");
    let running = fixture.start(&[&remote]);
    running.wait_for(0, "m/1", VersionState::Stored, "");
    running.wait_for(0, "m/2", VersionState::Waiting, "no model.onnx");
    assert_eq!(running.text("m/1/model.onnx").as_deref(), Some("model"));
    assert_eq!(running.text("m/model.toml").as_deref(), Some("versions = \"all\""));
    assert_eq!(std::fs::read(running.path("m/1/weights/a.bin")).unwrap(), [7; 5000]);
    assert!(running.text("m/2/.told").unwrap().contains("it has no model.onnx"));
    assert_eq!(running.text("m/1/.told"), None);
    let dir = running.dir.clone();
    running.stop();
    assert_eq!(files_in(&dir.join("blobs")), 2);
    assert_eq!(files_in(&dir.join("partial")), 0);

    // The next start has it without the source.
    remote.with(|fake| fake.away = true);
    let running = fixture.start(&[&remote]);
    assert_eq!(running.version(0, "m/1").unwrap().0, VersionState::Stored);
    running.wait("it is away", |running| running.mirror.report().sources[0].state() == "failing");
    assert_eq!(running.mirror.report().sources[0].message.as_deref(), Some("it is away"));
    assert_eq!(running.text("m/1/model.onnx").as_deref(), Some("model"));
    remote.with(|fake| fake.away = false);
    running.wait("it is back", |running| running.mirror.report().sources[0].state() == "ok");
    assert_eq!(remote.reads_of("m/1/model.onnx").len(), 1, "it is not read again");
    running.stop();
}

#[test]
fn a_download_goes_on_where_it_was_cut_also_after_a_restart() {
    let (fixture, remote) = (Fixture::new(), Remote::default());
    remote.put("m/1/model.onnx", &[5; 10_000]);
    remote.put("m/1/a.bin", b"first");
    remote.with(|fake| (fake.cut_after, fake.cuts) = (400, u32::MAX));
    let running = fixture.start(&[&remote]);
    running.wait("the model was cut", |_| remote.reads_of("m/1/model.onnx").len() > 1);
    running.wait_for(0, "m/1", VersionState::Failed, "the connection broke");
    running.wait("it is told", |r| {
        r.text("m/1/.told").is_some_and(|told| told.starts_with("waits: it cannot be read from fake0"))
    });
    assert!(running.text("m/1/model.onnx").is_none());
    running.stop();
    remote.with(|fake| fake.cuts = 0);
    let running = fixture.start(&[&remote]);
    running.wait_for(0, "m/1", VersionState::Stored, "");
    assert_eq!(std::fs::read(running.path("m/1/model.onnx")).unwrap(), [5; 10_000]);
    let reads = remote.reads_of("m/1/model.onnx");
    assert!(reads[0] == 0 && reads.windows(2).all(|pair| pair[1] == pair[0] + 400), "{reads:?}");
    assert_eq!(remote.reads_of("m/1/a.bin"), [0], "a file that was complete is not read again");
    running.stop();
}

#[test]
fn other_bytes_than_the_digest_are_refused_and_read_again() {
    let (fixture, remote) = (Fixture::new(), Remote::default());
    remote.put("m/1/model.onnx", b"model");
    remote.put("n/1/model.onnx", b"model of n");
    remote.put("n/1/version.toml", format!("sha256 = \"{}\"", "a".repeat(64)).as_bytes());
    remote.with(|fake| (fake.wrong_bytes, fake.with_digests) = (true, true));
    let running = fixture.start(&[&remote]);
    running.wait_for(0, "m/1", VersionState::Failed, "its SHA-256 is");
    assert!(running.text("m/1/model.onnx").is_none());
    remote.with(|fake| fake.wrong_bytes = false);
    running.wait_for(0, "m/1", VersionState::Stored, "");
    running.wait_for(0, "n/1", VersionState::Failed, "version.toml expects aaaa");
    running.stop();
}

#[test]
fn a_named_version_keeps_its_bytes_and_stays_and_others_follow_the_source() {
    let (fixture, remote) = (Fixture::new(), Remote::default());
    fixture.name("m/1");
    for version in ["m/1", "m/2", "m/3"] {
        remote.put(&format!("{version}/model.onnx"), version.as_bytes());
    }
    let running = fixture.start(&[&remote]);
    for version in ["m/1", "m/2", "m/3"] {
        running.wait_for(0, version, VersionState::Stored, "");
    }
    remote.put("m/1/model.onnx", b"other");
    remote.put("m/2/model.onnx", b"other");
    remote.with(|fake| drop(fake.files.remove("m/3/model.onnx")));
    running.wait_for(0, "m/1", VersionState::Stored, "other bytes");
    running.wait("m/2 is replaced", |running| running.text("m/2/model.onnx").as_deref() == Some("other"));
    running.wait("m/3 is removed", |running| !running.path("m/3").exists());
    assert_eq!(running.text("m/1/model.onnx").as_deref(), Some("m/1"));
    assert!(running.text("m/1/.told").unwrap().starts_with("note: fake0 has other bytes"));

    remote.with(|fake| drop(fake.files.remove("m/1/model.onnx")));
    running.wait("m/1 says so", |r| r.text("m/1/.told").is_some_and(|told| told.contains("does not have it any more")));
    remote.with(|fake| fake.files.clear());
    running.wait("an empty source is refused", |running| {
        running.mirror.report().sources[0]
            .message
            .as_ref()
            .is_some_and(|message| message.contains("no version any more"))
    });
    assert!(running.path("m/1/model.onnx").exists() && running.path("m/2/model.onnx").exists());
    running.stop();

    // Without the source in the configuration the named one stays, and the rest goes.
    let running = fixture.start(&[]);
    assert!(running.text("m/1/.told").unwrap().contains("not configured any more"));
    assert!(running.path("m/1/model.onnx").exists() && !running.path("m/2").exists());
    running.stop();
}

#[test]
fn the_models_directory_and_earlier_sources_come_first_and_the_cache_is_bounded() {
    let (mut fixture, first, second) = (Fixture::new(), Remote::default(), Remote::default());
    fixture.config.cache = 25_000;
    fixture.local("m/1/model.onnx");
    first.put("m/1/model.onnx", b"first");
    first.put("m/2/model.onnx", b"first");
    second.put("m/2/model.onnx", b"second");
    for version in 3..6_u8 {
        second.put(&format!("m/{version}/model.onnx"), &[version; 10_000]);
    }
    let running = fixture.start(&[&first, &second]);
    running.wait_for(0, "m/1", VersionState::NotKept, "the models directory");
    running.wait_for(0, "m/2", VersionState::Stored, "");
    running.wait_for(1, "m/2", VersionState::NotKept, "fake0 gives it");
    running.wait_for(1, "m/5", VersionState::Stored, "");
    running.wait_for(1, "m/4", VersionState::Stored, "");
    running.wait_for(1, "m/3", VersionState::NotKept, "no room");
    assert_eq!(running.text("m/2/model.onnx").as_deref(), Some("first"));
    second.put("m/6/model.onnx", &[6; 10_000]);
    running.wait_for(1, "m/6", VersionState::Stored, "");
    running.wait_for(1, "m/4", VersionState::NotKept, "no room");
    assert!(!running.path("m/4").exists());
    let (used, limit) = running.mirror.report().cache;
    assert!(used <= limit, "{used} of {limit}");
    running.stop();
}

#[test]
fn hostile_names_and_sizes_are_refused_on_their_version_alone() {
    let (fixture, remote) = (Fixture::new(), Remote::default());
    remote.put("m/1/model.onnx", b"good");
    remote.put("m/2/model.onnx", b"x");
    remote.put("m/2/a//b", b"x");
    remote.put("m/3/model.onnx", b"x");
    remote.put("m/3/model.onnx/below", b"x");
    remote.put("m/4/model.onnx", b"x");
    remote.put(&format!("m/4/{}", "d/".repeat(20)), b"x");
    remote.put("m/5/model.onnx", b"x");
    remote.put("m/5/a\\..\\b", b"x");
    let running = fixture.start(&[&remote]);
    running.wait_for(0, "m/1", VersionState::Stored, "");
    running.wait_for(0, "m/2", VersionState::Failed, "is refused");
    running.wait_for(0, "m/3", VersionState::Failed, "a file and a directory");
    running.wait_for(0, "m/4", VersionState::Failed, "is refused");
    running.wait_for(0, "m/5", VersionState::Failed, "is refused");
    running.stop();
}

#[test]
fn an_offer_with_a_path_out_of_its_directory_is_refused() {
    for path in ["../x", "a/../x", "/etc/passwd", ".hidden", "", "a/", "a\0b", &"a".repeat(300)] {
        let file = RemoteFile { path: path.to_owned(), content: Content::Given(Vec::new()) };
        let id = VersionId { model: "m".parse().unwrap(), version: "1".parse().unwrap() };
        let offer = Offer { id, files: vec![file] };
        assert!(offer.check().is_err(), "{path:?}");
    }
}

#[test]
fn pauses_grow_and_end() {
    let pause = |failures| super::state::pause(Duration::from_secs(30), failures).as_secs();
    assert_eq!([1, 2, 3, 5, 6, u32::MAX].map(pause), [30, 60, 120, 480, 600, 600]);
    assert_eq!(super::state::pause(Duration::from_hours(2), 9), Duration::from_hours(2));
}

#[test]
fn a_source_whose_versions_are_final_is_read_at_once_and_may_become_empty() {
    let (mut fixture, remote) = (Fixture::new(), Remote::default());
    // The next round comes when the source is woken, and not before.
    fixture.config.interval = Duration::from_hours(1);
    remote.with(|fake| (fake.is_final, fake.with_digests) = (true, true));
    remote.put("m/1/model.onnx", b"model");
    let running = fixture.start(&[&remote]);
    running.wait_for(0, "m/1", VersionState::Stored, "");
    assert_eq!(running.mirror.unfinished("fake0"), []);
    assert_eq!(running.mirror.unfinished("another"), []);

    // A file that is here already is not read.
    let pushed = fixture.dir.path().join("pushed.onnx");
    std::fs::write(&pushed, "pushed").unwrap();
    running.mirror.adopt(&pushed);
    assert!(!pushed.exists());
    remote.put("m/2/model.onnx", b"pushed");
    running.mirror.read_source("another");
    running.mirror.read_source("fake0");
    running.wait_for(0, "m/2", VersionState::Stored, "");
    assert_eq!(running.text("m/2/model.onnx").as_deref(), Some("pushed"));
    assert_eq!(remote.reads_of("m/2/model.onnx"), Vec::<u64>::new());

    remote.with(|fake| fake.wrong_bytes = true);
    remote.put("m/3/model.onnx", b"a lie");
    running.mirror.read_source("fake0");
    running.wait_for(0, "m/3", VersionState::Failed, "its SHA-256 is");
    let unfinished = running.mirror.unfinished("fake0");
    assert!(unfinished.len() == 1 && unfinished[0].why.as_ref().unwrap().contains("expected"), "{unfinished:?}");

    remote.with(|fake| fake.files.clear());
    running.mirror.read_source("fake0");
    running.wait("nothing is left", |running| running.text("m/1/model.onnx").is_none());
    running.stop();
}
