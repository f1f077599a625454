//! Finds and loads ONNX Runtime's library, once per process.

use ort::environment::Environment;
use ort::logging::LogLevel;
use std::ffi::{CStr, CString, c_char, c_void};
use std::mem::transmute;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The library's file name.
const FILE: &str = "libonnxruntime.so";

/// ONNX Runtime's library. A process loads one and never unloads it.
#[derive(Debug)]
pub(super) struct Library {
    pub(super) environment: Environment,
    pub(super) version: String,
    /// Where it was found, for people.
    pub(super) origin: String,
}

static LOADED: OnceLock<Library> = OnceLock::new();

/// Loads the library from the first place that has one: `ORT_DYLIB_PATH`, `configured`, `.ort/` in the working
/// directory, `lib/` beside the executable, the system's library path.
///
/// If a path is given, only that path is tried: nobody expects another library than the one they named. Later calls
/// return the library that is loaded.
///
/// # Errors
/// A message for operators: which places were tried, and what was wrong with each.
pub(super) fn load(configured: Option<&Path>) -> Result<&'static Library, String> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(library) = LOADED.get() {
        return Ok(library);
    }
    let mut reasons = Vec::new();
    for place in places(configured) {
        match open(&place) {
            Ok(library) => return Ok(LOADED.get_or_init(|| library)),
            // Most systems have no ONNX Runtime; the message below covers that.
            Err(_) if !place.exists() && !place.named => {}
            Err(reason) => reasons.push(format!("{}: {reason}", place.origin)),
        }
    }
    if reasons.is_empty() {
        return Err(format!(
            "there is no {FILE} in .ort/, in lib/ beside the executable, or in the system's library path"
        ));
    }
    Err(reasons.join("; "))
}

/// A place where the library may be.
struct Place {
    path: PathBuf,
    origin: String,
    /// The environment or the configuration names this path.
    named: bool,
}

impl Place {
    /// Whether the file exists. False for the system's library path, which only the loader knows.
    fn exists(&self) -> bool {
        self.path.exists()
    }
}

fn places(configured: Option<&Path>) -> Vec<Place> {
    let by_environment = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty());
    let named = by_environment.map(|path| (PathBuf::from(path), "ORT_DYLIB_PATH"));
    if let Some((path, named_by)) = named.or_else(|| configured.map(|path| (path.to_owned(), "configured"))) {
        let origin = format!("{} ({named_by})", path.display());
        // Relative to the working directory; the loader would search its own path.
        let path = std::path::absolute(&path).unwrap_or(path);
        return vec![Place { path, origin, named: true }];
    }
    let beside_work = std::path::absolute(Path::new(".ort").join(FILE)).ok();
    let beside_executable = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("lib").join(FILE)));
    let found = [beside_work, beside_executable].into_iter().flatten().filter(|path| path.exists());
    let mut places: Vec<Place> =
        found.map(|path| Place { origin: path.display().to_string(), path, named: false }).collect();
    for name in [FILE, "libonnxruntime.so.1"] {
        places.push(Place { path: name.into(), origin: format!("{name} (system)"), named: false });
    }
    places
}

fn open(place: &Place) -> Result<Library, String> {
    let version = version_of(&place.path)?;
    let minor = version.split('.').nth(1).and_then(|n| n.parse::<u32>().ok());
    if version.starts_with("1.") && minor.is_none_or(|minor| minor < ort::MINOR_VERSION) {
        return Err(format!("ONNX Runtime {version} is too old: 1.{} or newer is needed", ort::MINOR_VERSION));
    }
    let environment = ort::init_from(&place.path)
        .map_err(|e| e.to_string())?
        .with_name("sluicegate")
        .with_telemetry(false)
        .with_logger(Arc::new(log))
        .build()
        .map_err(|e| e.to_string())?;
    // `ort` enables every level, and the engine formats a line for each enabled level.
    environment.set_log_level(LogLevel::Warning);
    Ok(Library { environment, version, origin: place.origin.clone() })
}

/// Logs the engine's own lines at debug level. Failures also come back as errors, which are logged with the model's name.
fn log(level: LogLevel, _category: &str, _id: &str, location: &str, message: &str) {
    tracing::debug!(target: "onnxruntime", ?level, location, "{message}");
}

/// The version of a library.
///
/// `ort` panics when the file is not ONNX Runtime; this checks before.
#[expect(unsafe_code, reason = "the loader's interface is C")]
fn version_of(path: &Path) -> Result<String, String> {
    type GetApiBase = unsafe extern "C" fn() -> *const ort::sys::OrtApiBase;
    let c_path = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| "the path holds a NUL".to_owned())?;
    // SAFETY: the path is a C string. Loading runs the library's initialisers; the operator chose the library.
    let handle = unsafe { libc::dlopen(c_path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        // SAFETY: after a failed dlopen(3), dlerror(3) returns a C string, valid until the next call on this thread.
        let error = unsafe { libc::dlerror() };
        // SAFETY: not null, hence that string.
        let error = (!error.is_null()).then(|| unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned());
        let error = error.unwrap_or_else(|| "cannot be loaded".to_owned());
        return Err(error.trim_start_matches(&format!("{}: ", path.display())).to_owned());
    }
    // SAFETY: a live handle and a C string. The handle is kept open: unloading a library that started threads is not
    // safe.
    let symbol: *mut c_void = unsafe { libc::dlsym(handle, c"OrtGetApiBase".as_ptr()) };
    if symbol.is_null() {
        return Err("is not ONNX Runtime: it has no OrtGetApiBase".to_owned());
    }
    // SAFETY: every version of ONNX Runtime exports this function under this name (onnxruntime_c_api.h).
    let get_base = unsafe { transmute::<*mut c_void, GetApiBase>(symbol) };
    // SAFETY: takes no arguments and returns a pointer to a static.
    let base = unsafe { get_base() };
    if base.is_null() {
        return Err("is not ONNX Runtime: OrtGetApiBase returns nothing".to_owned());
    }
    // SAFETY: the struct begins with these two functions in every version.
    let version: *const c_char = unsafe { ((*base).GetVersionString)() };
    if version.is_null() {
        return Err("is not ONNX Runtime: it has no version".to_owned());
    }
    // SAFETY: a static C string.
    Ok(unsafe { CStr::from_ptr(version) }.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_and_another_library_are_errors() {
        let missing = version_of(Path::new("/nowhere/libonnxruntime.so")).unwrap_err();
        assert!(missing.contains("cannot open shared object file"), "{missing}");
        #[cfg(target_os = "linux")]
        {
            let other = version_of(Path::new("libc.so.6")).unwrap_err();
            assert_eq!(other, "is not ONNX Runtime: it has no OrtGetApiBase");
        }
    }

    #[test]
    fn a_named_path_is_the_only_place_tried() {
        if std::env::var_os("ORT_DYLIB_PATH").is_some() {
            let places = places(Some(Path::new("elsewhere.so")));
            assert!(places.len() == 1 && places[0].named && places[0].origin.ends_with("(ORT_DYLIB_PATH)"));
        } else {
            let named = places(Some(Path::new("elsewhere.so")));
            assert!(named.len() == 1 && named[0].named && named[0].path.is_absolute());
            let found = places(None);
            assert!(found.len() >= 2 && found.iter().all(|p| !p.named));
            assert!(found.last().unwrap().origin.ends_with("(system)"), "the system's library path comes last");
        }
    }
}
