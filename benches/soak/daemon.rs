//! The daemon under test: an installation of its own, and what it holds.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Options;

/// An installation of ocifs with one mount.
pub(super) struct Daemon {
    program: PathBuf,
    home: PathBuf,
    /// Where the image is mounted.
    pub(super) mounted: PathBuf,
    /// How long mounting took.
    pub(super) took: Duration,
    pid: u32,
}

/// What a process holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    /// Resident memory of its own, in KiB.
    pub(super) own: u64,
    /// All resident memory, mapped files included, in KiB.
    pub(super) resident: u64,
    pub(super) threads: u64,
    pub(super) descriptors: u64,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (own, resident) = (self.own / 1024, self.resident / 1024);
        write!(
            f,
            "{own} MiB of its own, {resident} resident, {} threads, {} descriptors",
            self.threads, self.descriptors
        )
    }
}

impl Held {
    /// The greater of each.
    pub(super) fn most(&self, other: &Self) -> Self {
        Self {
            own: self.own.max(other.own),
            resident: self.resident.max(other.resident),
            threads: self.threads.max(other.threads),
            descriptors: self.descriptors.max(other.descriptors),
        }
    }
}

impl Daemon {
    /// Mounts `reference`. Passthrough is left out, because files that the kernel reads by itself test nothing here.
    pub(super) fn mount(options: &Options, home: &Path, reference: &str) -> Result<Self> {
        let mounted = home.join("mounted");
        fs::create_dir(&mounted)?;
        let mut daemon =
            Self { program: options.ocifs.clone(), home: home.to_owned(), mounted, took: Duration::ZERO, pid: 0 };
        let begun = Instant::now();
        daemon.attach(options, reference)?;
        daemon.took = begun.elapsed();
        let output = daemon.command(&["status", "--json"]).output()?;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let pid = status["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        daemon.pid = pid.context("the daemon does not say which process it is")?;
        Ok(daemon)
    }

    /// Unmounts, forgets all bytes of the image, and mounts it again; how often mounting failed before it worked.
    pub(super) fn again(&self, options: &Options, reference: &str) -> Result<u64> {
        ensure!(self.command(&["umount"]).arg(&self.mounted).status()?.success(), "the image cannot be unmounted");
        ensure!(
            self.command(&["cache", "drop"]).stdout(Stdio::null()).status()?.success(),
            "the cache cannot be emptied"
        );
        let mut failed = 0;
        while let Err(error) = self.attach(options, reference) {
            ensure!(failed < 5, error);
            failed += 1;
        }
        Ok(failed)
    }

    fn attach(&self, options: &Options, reference: &str) -> Result<()> {
        let mut mount = self.command(&["mount", "--fill=off", "--profile-until=0", "--io=cached"]);
        mount.args(["--cache-size", &options.cache_size]).arg(reference).arg(&self.mounted);
        ensure!(mount.status().context("ocifs cannot be run")?.success(), "the image cannot be mounted");
        Ok(())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.env("HOME", &self.home).env("OCIFS_CACHE_DIR", self.home.join("cache"));
        command.env("OCIFS_RUNTIME_DIR", self.home.join("run")).args(arguments);
        command
    }

    /// What it holds now; an error if it is gone, because then it was replaced by another.
    pub(super) fn held(&self) -> Result<Held> {
        let process = Path::new("/proc").join(self.pid.to_string());
        let status = fs::read_to_string(process.join("status")).context("the daemon is gone")?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        let descriptors = fs::read_dir(process.join("fd"))?.count() as u64;
        Ok(Held { own: field("RssAnon"), resident: field("VmRSS"), threads: field("Threads"), descriptors })
    }

    /// Unmounts, which ends it, after showing what it logged as warnings.
    pub(super) fn end(self) -> Result<()> {
        let ended = self.command(&["umount"]).arg(&self.mounted).status()?;
        ensure!(ended.success(), "the image cannot be unmounted");
        let logs = fs::read_dir(self.home.join("run"))?.flatten().map(|entry| entry.path());
        for log in logs.filter(|path| path.extension().is_some_and(|extension| extension == "log")) {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines = text.lines().filter(|line| line.contains("WARN") || line.contains("ERROR"));
            let count = lines.clone().count();
            println!("log: {count} warnings and errors, of which the last are");
            lines.skip(count.saturating_sub(5)).for_each(|line| println!("  {line:.300}"));
        }
        Ok(())
    }
}

impl Drop for Daemon {
    /// Nothing stays mounted, whatever failed.
    fn drop(&mut self) {
        let unmounted = rustix::mount::unmount(&self.mounted, rustix::mount::UnmountFlags::DETACH);
        if let (Ok(()), Some(pid)) = (unmounted, rustix::process::Pid::from_raw(self.pid.cast_signed())) {
            // It was left behind by a failure, and may be gone already.
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap_or_default();
        }
    }
}
