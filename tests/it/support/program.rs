//! The `ocifs` program as a user runs it, with directories of its own so that tests do not meet.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;
use tempfile::TempDir;

use super::{Mount, detach_below, eventually, temp_dir};

/// Longest that one command may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Longest that a daemon may take to end.
const FAREWELL: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// The value of `OCIFS_LOG` for daemons whose requests are counted.
pub(crate) const REPEATS_LOG: &str = "ocifs::fetch=debug";

/// An installation of ocifs: cache, run-time directory, home and mount points in one temporary directory.
///
/// Dropping it ends its daemon, which unmounts what it serves, and then whatever is still mounted there.
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

    /// Runs a command that answers in JSON; panics if it fails.
    #[track_caller]
    pub(crate) fn json<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Value {
        serde_json::from_str(&self.run(args).ok().stdout).expect("JSON on standard output")
    }

    /// Mounts an image without background fetching and without recording what is read, so that a test alone decides what
    /// is fetched, now and by later mounts.
    #[track_caller]
    pub(crate) fn mount(&self, reference: &str, point: &Mount) -> Ran {
        let options = ["--fill=off", "--profile-until=0"].map(OsStr::new);
        self.run([&[OsStr::new("mount")], &options[..], &[reference.as_ref(), point.path().as_ref()]].concat()).ok()
    }

    /// Ends a mount that no test uses any more.
    ///
    /// A process that another test forks has its files open until it runs a program, so a mount may be in use for a moment.
    #[track_caller]
    pub(crate) fn umount(&self, point: &Mount) {
        let begun = Instant::now();
        loop {
            let ran = self.run([OsStr::new("umount"), point.path().as_ref()]);
            if !ran.stderr.contains(" is in use by ") || begun.elapsed() > PATIENCE / 2 {
                ran.ok();
                return;
            }
        }
    }

    /// What `status` tells of one mount.
    #[track_caller]
    pub(crate) fn status(&self, point: &Mount) -> Value {
        self.json([OsStr::new("status"), "--json".as_ref(), point.path().as_ref()])
    }

    /// Removes what a lazy mount does not need: the bytes, not the indexes.
    ///
    /// What a mount uses stays. One that has just ended may live on for a while in the mount namespace of a container that
    /// another test began meanwhile.
    #[track_caller]
    pub(crate) fn drop_bytes(&self) {
        self.drop_cache(&["--blobs", "--files"]);
    }

    /// Removes everything that no mount uses.
    #[track_caller]
    pub(crate) fn drop_all(&self) {
        self.drop_cache(&["--all"]);
    }

    #[track_caller]
    fn drop_cache(&self, parts: &[&str]) {
        let begun = Instant::now();
        loop {
            let dropped = self.json([&["cache", "drop", "--json"][..], parts].concat());
            let kept = dropped["kept"].as_array().expect("a list");
            // Files are open in the kernel for whoever reads them, which a mount may do.
            if kept.iter().all(|kept| kept["used_by"] == "mount" || kept["part"] == "files") {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "nobody lets go of {dropped}");
        }
    }

    /// The daemon's process, if one is running. Asks no more than the program tells, and panics never.
    pub(crate) fn daemon(&self) -> Option<Pid> {
        let output = self.command(["status", "--json"]).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        let status: Value = serde_json::from_slice(&output.stdout).ok()?;
        Pid::from_raw(status["pid"].as_i64()?.try_into().ok()?)
    }

    /// Waits until no temporary file is left in the cache: whoever decodes files in the background may be at one.
    #[track_caller]
    pub(crate) fn await_no_temporary(&self, what: &str) {
        let is_left = || fs::read_dir(self.cache().join("tmp")).is_ok_and(|mut entries| entries.next().is_some());
        eventually(PATIENCE / 2, &format!("no temporary file is left: {what}"), || !is_left());
    }

    /// How often daemons here asked for the rest of an answer again because nothing of it came for seconds, as they do
    /// when this machine stands still. They tell of it if they were started with [`REPEATS_LOG`].
    pub(crate) fn repeats(&self) -> usize {
        let log = self.log();
        log.lines().filter(|line| line.contains("asking again") || line.contains("asking for the rest")).count()
    }

    /// What the daemons have logged.
    pub(crate) fn log(&self) -> String {
        let files = fs::read_dir(self.runtime()).expect("a directory").map(|entry| entry.expect("an entry").path());
        let logs = files.filter(|path| path.extension().is_some_and(|kind| kind == "log"));
        logs.map(|path| fs::read_to_string(path).expect("a text")).collect()
    }

    /// Tells the daemon to end and waits until it has; false if it had to be killed.
    pub(crate) fn end_daemon(&self) -> bool {
        // A process that ended between the question and the answer is as good as one that was told to.
        let Some(daemon) = self.daemon().and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else { return true };
        for signal in [Signal::TERM, Signal::KILL] {
            pidfd_send_signal(&daemon, signal).ok();
            if has_ended_within(&daemon, FAREWELL) {
                return signal == Signal::TERM;
            }
        }
        false
    }
}

/// True if a process has ended, whether its parent has heard of it or not.
pub(crate) fn has_ended(pid: Pid) -> bool {
    let process = pidfd_open(pid, PidfdFlags::empty());
    process.map_or(true, |process| has_ended_within(&process, Timespec { tv_sec: 0, tv_nsec: 0 }))
}

/// Waits until a process has ended, with all of its threads; panics if that takes too long.
#[track_caller]
pub(crate) fn wait_for_end(pid: Pid) {
    let process = pidfd_open(pid, PidfdFlags::empty());
    let has_ended = process.map_or(true, |process| has_ended_within(&process, FAREWELL));
    assert!(has_ended, "process {pid:?} does not end in {} seconds", FAREWELL.tv_sec);
}

/// The descriptor becomes readable when the process has ended, whoever its parent is.
fn has_ended_within(process: &OwnedFd, patience: Timespec) -> bool {
    let deadline = Instant::now() + Duration::from_secs(patience.tv_sec.unsigned_abs());
    loop {
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&patience)) {
            // A test that was stopped for a while (signal(7), "Interruption of system calls").
            Err(Errno::INTR) if Instant::now() < deadline => {}
            outcome => return outcome.is_ok_and(|ready| ready > 0),
        }
    }
}

impl Drop for Ocifs {
    fn drop(&mut self) {
        let ended = self.end_daemon();
        detach_below(self.home());
        // A second panic would abort the process, and the first one says more.
        assert!(ended || std::thread::panicking(), "the daemon did not end when it was told to");
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
