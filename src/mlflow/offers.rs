//! The registry as a source of versions.

use super::api::{Api, MAX_MLMODEL, shown};
use super::config::{Config, Credentials};
use super::flavor::{self, Flavor};
use super::memory::{ModelNews, News, NewsSender, VersionNews};
use super::provenance::{Identity, is_of, version_toml};
use super::wire::ModelVersion;
use crate::mirror::{Content, Listing, Offer, Place, RemoteFile, Sink, Source, Trouble};
use crate::model::{ModelName, Version, VersionId};
use crate::outbound::Untrusted;
use crate::registry::{Reader, State};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::Instant;

/// The most aliases of a model that are followed, and files of a version that are listed.
const MAX_ALIASES: usize = 100;
const MAX_FILES: usize = 1000;
/// How deep the directories of a version are listed.
const MAX_DEPTH: usize = 8;
const MAX_VERSION_TOML: u64 = 1 << 20;

/// What MLflow writes beside a model and no engine reads.
const NOT_PART: [&str; 9] = [
    "MLmodel",
    "conda.yaml",
    "python_env.yaml",
    "requirements.txt",
    "constraints.txt",
    "input_example.json",
    "serving_input_example.json",
    "registered_model_meta",
    "version.toml",
];
/// Directories that MLflow writes beside a model: code, and the files of `extra_files`.
const NOT_PART_DIRS: [&str; 3] = ["code", "metadata", EXTRA];
/// Where `log_model(extra_files=…)` puts files.
const EXTRA: &str = "extra_files";
/// The files of a version that `extra_files` may have.
const FROM_EXTRA: [&str; 4] = ["golden.json", "warmup.json", "profile.json", "model.sig"];

/// MLflow's model registry as a source.
pub(super) struct Registry {
    api: Api,
    config: Config,
    uri: String,
    reader: Reader,
    /// The directory into which versions of sources are put.
    mirrored: PathBuf,
    /// What was found out about versions. Their files do not change.
    known: HashMap<VersionId, Known>,
    news: NewsSender,
}

/// The files of a version of the registry, or why it has none that can be served.
struct Known {
    source: String,
    run_id: String,
    files: Result<Vec<RemoteFile>, String>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("models", &self.config.models).finish_non_exhaustive()
    }
}

impl Source for Registry {
    fn list(&mut self, until: Instant) -> Result<Listing, Trouble> {
        let (mut listing, mut news) = (Listing::default(), News::default());
        for name in self.config.models.clone() {
            match self.model(&name, until, &mut listing)? {
                Some(model) => drop(news.models.insert(name, model)),
                None => listing.remark(format!("MLflow has no registered model {name}")),
            }
        }
        self.known.retain(|id, _| news.models.get(&id.model).is_some_and(|m| m.versions.contains_key(&id.version)));
        self.news.send(news);
        Ok(listing)
    }

    fn read(&mut self, place: &Place, from: u64, until: Instant, to: &mut Sink<'_>) -> Result<(), Trouble> {
        self.api.read(&place.location, from, until, to)
    }
}

impl Registry {
    /// `mirrored`: the directory into which versions of sources are put.
    ///
    /// # Errors
    /// When the authorities to trust cannot be read.
    pub(super) fn new(
        uri: &str,
        config: &Config,
        credentials: &Credentials,
        reader: Reader,
        mirrored: PathBuf,
        news: NewsSender,
    ) -> Result<Registry, Untrusted> {
        let api = Api::new(uri, config, credentials)?;
        let (config, uri) = (config.clone(), uri.to_owned());
        Ok(Registry { api, config, uri, reader, mirrored, known: HashMap::new(), news })
    }

    fn model(&mut self, name: &ModelName, until: Instant, into: &mut Listing) -> Result<Option<ModelNews>, Trouble> {
        let Some(registered) = self.api.model(name, until)? else { return Ok(None) };
        let mut aliases = BTreeMap::new();
        for alias in registered.aliases.into_iter().take(MAX_ALIASES) {
            match alias.version.parse::<Version>() {
                Ok(version) => drop(aliases.insert(alias.alias, version)),
                Err(error) => into.remark(format!("{name}: alias {}: {error}", shown(&alias.alias))),
            }
        }
        let mut versions = BTreeMap::new();
        for version in self.api.newest(name, self.config.versions, until)? {
            match version.version.parse::<Version>() {
                Ok(number) => drop(versions.insert(number, version)),
                Err(error) => into.remark(format!("{name}: {error}")),
            }
        }
        for version in aliases.values().filter(|version| !versions.contains_key(version)).collect::<BTreeSet<_>>() {
            if let Some(found) = self.api.version(name, *version, until)? {
                versions.insert(*version, found);
            }
        }
        let chosen = self.choose(name, &aliases, versions);
        let mut news = ModelNews { aliases, versions: BTreeMap::new() };
        for (number, version) in chosen {
            let id = VersionId { model: name.clone(), version: number };
            let files = self.files_of(&id, &version, until)?;
            let unusable = files.as_ref().err().cloned();
            match files {
                Ok(files) => into.versions.push(Offer { id, files }),
                Err(why) => into.remark(format!("{id}: {why}")),
            }
            let tag = version.tag(&format!("{}.version", self.config.tags)).map(str::to_owned);
            news.versions.insert(number, VersionNews { unusable, tag });
        }
        Ok(Some(news))
    }

    /// The versions to offer: those with an alias, then the newest.
    ///
    /// The first version of a model that is ready gets its traffic. So as long as a model has no traffic document, only the version with the alias
    /// `promote_alias` is offered, unless it cannot be served.
    fn choose(
        &self,
        name: &ModelName,
        aliases: &BTreeMap<String, Version>,
        mut versions: BTreeMap<Version, ModelVersion>,
    ) -> BTreeMap<Version, ModelVersion> {
        let promoted = self.config.promote_alias.as_ref().and_then(|alias| aliases.get(alias));
        if let Some(promoted) =
            promoted.filter(|version| versions.contains_key(version) && self.is_first(name, **version))
        {
            versions.retain(|version, _| version == promoted);
            return versions;
        }
        let named: BTreeSet<Version> = aliases.values().copied().collect();
        let room = self.config.versions.saturating_sub(named.len());
        let newest: BTreeSet<Version> =
            versions.keys().rev().filter(|version| !named.contains(version)).take(room).copied().collect();
        versions.retain(|version, _| named.contains(version) || newest.contains(version));
        versions
    }

    /// Whether a model has no traffic document, and this version may still become the first one that serves.
    fn is_first(&self, name: &ModelName, version: Version) -> bool {
        let id = VersionId { model: name.clone(), version };
        if self.known.get(&id).is_some_and(|known| known.files.is_err()) {
            return false;
        }
        let snapshot = self.reader.snapshot();
        let Some(entry) = snapshot.model(name.as_str()) else { return true };
        let failed = entry.versions().get(&version).is_some_and(|status| status.state == State::Failed);
        entry.document().is_none() && !failed
    }

    fn files_of(
        &mut self,
        id: &VersionId,
        version: &ModelVersion,
        until: Instant,
    ) -> Result<Result<Vec<RemoteFile>, String>, Trouble> {
        if !matches!(version.status.as_str(), "" | "READY") {
            return Ok(Err(format!("its status in MLflow is {}", shown(&version.status))));
        }
        let same = |known: &&Known| known.source == version.source && known.run_id == version.run_id;
        if let Some(known) = self.known.get(id).filter(same) {
            return Ok(known.files.clone());
        }
        let mut files = self.find_files(id, until)?;
        if let Ok(files) = &mut files {
            let text = self.version_toml(id, version, until)?;
            files.push(RemoteFile { path: "version.toml".to_owned(), content: Content::Given(text.into_bytes()) });
        }
        let (source, run_id) = (version.source.clone(), version.run_id.clone());
        self.known.insert(id.clone(), Known { source, run_id, files: files.clone() });
        Ok(files)
    }

    /// The files that an engine reads, without `version.toml`. The inner error is about this version alone, and stays.
    fn find_files(&mut self, id: &VersionId, until: Instant) -> Result<Result<Vec<RemoteFile>, String>, Trouble> {
        let uri = self.api.artifact_uri(&id.model, id.version, until)?;
        let root = match artifact_path(&uri) {
            Ok(root) => root,
            Err(why) => return Ok(Err(why)),
        };
        let Some(text) = self.api.text(&format!("{root}/MLmodel"), MAX_MLMODEL, until)? else {
            return Ok(Err("it has no file MLmodel".to_owned()));
        };
        let data = match flavor::read(&text) {
            Ok(Flavor::Onnx(data)) => data,
            Ok(Flavor::Others(names)) => {
                let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                return Ok(Err(format!(
                    "it has no ONNX flavour (its flavours: {names}); log it with mlflow.onnx.log_model"
                )));
            }
            Err(why) => return Ok(Err(format!("its MLmodel cannot be read: {why}"))),
        };
        if !is_plain_path(&data) {
            return Ok(Err(format!("its MLmodel names the file {:?}, which is refused", shown(&data))));
        }
        let (dir, name) = match data.rsplit_once('/') {
            Some((dir, name)) => (format!("{root}/{dir}"), name.to_owned()),
            None => (root.clone(), data),
        };
        let mut walk = Walk { root: dir.clone(), is_top: dir == root, files: Vec::new() };
        if let Err(why) = walk.add(&mut self.api, &dir, "", 0, until)? {
            return Ok(Err(why));
        }
        let mut files = walk.files;
        let Some(model) = files.iter_mut().find(|file| file.path == name) else {
            return Ok(Err(format!("its MLmodel names the file {:?}, which is not there", shown(&name))));
        };
        "model.onnx".clone_into(&mut model.path);
        if files.iter().filter(|file| file.path == "model.onnx").count() > 1 {
            return Ok(Err(format!(
                "it has the files {:?} and model.onnx, and only one can be the model",
                shown(&name)
            )));
        }
        self.add_extra(&root, &mut files, until)?;
        Ok(Ok(files))
    }

    /// The files of a version that somebody added with `extra_files`.
    fn add_extra(&mut self, root: &str, files: &mut Vec<RemoteFile>, until: Instant) -> Result<(), Trouble> {
        let dir = format!("{root}/{EXTRA}");
        for file in self.api.files(&dir, until)? {
            let is_new = !files.iter().any(|known| known.path == file.path);
            if !file.is_dir && is_new && FROM_EXTRA.contains(&file.path.as_str()) {
                files.push(remote(file.path.clone(), format!("{dir}/{}", file.path), file.file_size));
            }
        }
        Ok(())
    }

    /// The text of `version.toml`. Metrics of a run may be added later, and a version's files do not change: what was written once is kept.
    fn version_toml(&mut self, id: &VersionId, version: &ModelVersion, until: Instant) -> Result<String, Trouble> {
        let identity = Identity {
            uri: &self.uri,
            model: &id.model,
            version: id.version,
            source: &version.source,
            run_id: &version.run_id,
        };
        let path = self.mirrored.join(id.model.as_str()).join(id.version.to_string()).join("version.toml");
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(MAX_VERSION_TOML).read_to_string(&mut text));
        if read.is_ok() && is_of(&text, &identity) {
            return Ok(text);
        }
        let run = if version.run_id.is_empty() { None } else { self.api.run(&version.run_id, until)? };
        Ok(version_toml(&identity, version, run.as_ref()))
    }
}

/// Lists the files below a directory.
struct Walk {
    root: String,
    /// Whether the root is where MLflow writes files of its own.
    is_top: bool,
    files: Vec<RemoteFile>,
}

impl Walk {
    fn add(
        &mut self,
        api: &mut Api,
        dir: &str,
        prefix: &str,
        depth: usize,
        until: Instant,
    ) -> Result<Result<(), String>, Trouble> {
        for file in api.files(dir, until)? {
            let name = file.path;
            if name.starts_with('.') && !name.contains('/') && name != ".." {
                continue;
            }
            if !is_plain_path(&name) || name.contains('/') {
                return Ok(Err(format!("its file name {:?} is refused", shown(&name))));
            }
            let at_top = self.is_top && prefix.is_empty();
            let (path, place) = (format!("{prefix}{name}"), format!("{dir}/{name}"));
            if file.is_dir {
                if at_top && NOT_PART_DIRS.contains(&name.as_str()) {
                    continue;
                }
                if depth + 1 >= MAX_DEPTH {
                    return Ok(Err(format!("its directories are more than {MAX_DEPTH} deep")));
                }
                if let Err(why) = self.add(api, &place, &format!("{path}/"), depth + 1, until)? {
                    return Ok(Err(why));
                }
            } else if !(at_top && NOT_PART.contains(&name.as_str())) {
                self.files.push(remote(path, place, file.file_size));
            }
            if self.files.len() > MAX_FILES {
                return Ok(Err(format!("it has more than {MAX_FILES} files below {}", shown(&self.root))));
            }
        }
        Ok(Ok(()))
    }
}

fn remote(path: String, location: String, size: Option<u64>) -> RemoteFile {
    RemoteFile { path, content: Content::At(Place { location, size, tag: None, sha256: None }) }
}

/// The path in the artifact store that the tracking server gives access to.
///
/// # Errors
/// In words, when the files are somewhere else.
pub(super) fn artifact_path(uri: &str) -> Result<String, String> {
    let elsewhere = || {
        let uri = shown(uri);
        format!(
            "its files are at {uri}, and only files that MLflow itself serves are read: start MLflow with --serve-artifacts"
        )
    };
    let rest = uri.strip_prefix("mlflow-artifacts:").ok_or_else(elsewhere)?;
    // With a host the files are those of another server.
    let rest = rest.strip_prefix("///").or_else(|| rest.strip_prefix('/').filter(|rest| !rest.starts_with('/')));
    let path = rest.ok_or_else(elsewhere)?.trim_end_matches('/');
    if is_plain_path(path) { Ok(path.to_owned()) } else { Err(format!("its address {} is refused", shown(uri))) }
}

/// Whether a path only goes down, by names without control characters.
fn is_plain_path(path: &str) -> bool {
    let is_name = |name: &str| {
        !name.is_empty() && !name.starts_with('.') && !name.contains('\\') && !name.chars().any(char::is_control)
    };
    path.len() <= 1000 && path.split('/').all(is_name)
}
