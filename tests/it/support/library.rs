//! Libraries that tests compile, as the build needs a C compiler anyway; and a server whose calendar a test moves.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Compiles a source file of this directory into a library.
pub fn compile(source: &str, library: &Path, flags: &[&str]) {
    std::fs::create_dir_all(library.parent().unwrap()).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support").join(source);
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror"]).args(flags).arg("-o").arg(library).arg(&source);
    let output = compiler.arg("-ldl").output().expect("a C compiler is installed, as for the build");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The calendar time of a server that is started with [`Clock::environment`]: hours pass when a test says so.
pub struct Clock {
    library: PathBuf,
    path: PathBuf,
    file: File,
    ahead: Duration,
}

impl Clock {
    /// Its files are in this directory.
    pub fn new(dir: &Path) -> Clock {
        let (library, path) = (dir.join("libclock.so"), dir.join("clock"));
        compile("clock.c", &library, &[]);
        let file = File::create(&path).unwrap();
        file.write_all_at(&0_i64.to_ne_bytes(), 0).unwrap();
        Clock { library, path, file, ahead: Duration::ZERO }
    }

    pub fn environment(&self) -> [(&str, &str); 2] {
        [("LD_PRELOAD", self.library.to_str().unwrap()), ("TEST_CLOCK", self.path.to_str().unwrap())]
    }

    /// For the server this time passes at once.
    pub fn pass(&mut self, time: Duration) {
        self.ahead += time;
        self.file.write_all_at(&self.ahead.as_secs().cast_signed().to_ne_bytes(), 0).unwrap();
    }

    /// The time of the server.
    pub fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::now() + self.ahead
    }
}
