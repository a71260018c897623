//! The `ocifs` program as a user runs it, with directories of its own so that tests do not meet.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{Mount, detach_below, temp_dir};

/// Longest that one command may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// An installation of ocifs: cache, run-time directory, home and mount points in one temporary directory.
///
/// Dropping it unmounts what is mounted there. Daemons end by themselves when they have nothing mounted.
#[derive(Debug)]
pub(crate) struct Ocifs {
    home: TempDir,
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Ran {
    /// The exit code; a signal counts as 128 and its number, as shells have it.
    pub(crate) fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        self.status.code().or_else(|| self.status.signal().map(|signal| 128 + signal)).expect("it ended")
    }

    /// Panics unless the command succeeded; returns it for more questions.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert!(self.status.success(), "it ended with {}:\n{}{}", self.status, self.stdout, self.stderr);
        self
    }
}

impl Ocifs {
    pub(crate) fn new() -> Self {
        Self { home: temp_dir() }
    }

    /// The temporary directory of this installation.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.home().join("cache")
    }

    pub(crate) fn runtime(&self) -> PathBuf {
        self.home().join("run")
    }

    /// A directory to mount on, made here.
    pub(crate) fn mount_point(&self, name: &str) -> Mount {
        Mount::new(self.home().join("mnt").join(name))
    }

    /// The command, ready to be run or changed. Of the caller's environment only `PATH` stays, and what decides about
    /// temporary files and about backtraces.
    pub(crate) fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ocifs"));
        command.env_clear();
        for name in ["PATH", "TMPDIR", "RUST_BACKTRACE", "LLVM_PROFILE_FILE"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        command
            .env("HOME", self.home())
            .env("OCIFS_CACHE_DIR", self.cache())
            .env("OCIFS_RUNTIME_DIR", self.runtime())
            .args(args);
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Ran {
        run(&mut self.command(args))
    }
}

impl Drop for Ocifs {
    fn drop(&mut self) {
        detach_below(self.home());
    }
}

/// Runs a command to its end, or kills it after two minutes and panics.
///
/// Its output goes through files, not pipes: a daemon that it leaves behind may keep them open.
pub(crate) fn run(command: &mut Command) -> Ran {
    let dir = temp_dir();
    let (stdout, stderr) = (dir.path().join("stdout"), dir.path().join("stderr"));
    let create = |path: &Path| File::create(path).expect("a temporary file can be made");
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(create(&stdout))
        .stderr(create(&stderr))
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?} cannot be run: {error}"));
    let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return Ran { status, stdout: read(&stdout), stderr: read(&stderr), took: started.elapsed() };
        }
        if started.elapsed() > PATIENCE {
            child.kill().and_then(|()| child.wait()).expect("a child can be killed");
            panic!("{command:?} did not end in {PATIENCE:?}:\n{}{}", read(&stdout), read(&stderr));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
