//! A registry that is never well, for ten minutes, under readers that compare every byte.
//!
//! ```text
//! cargo bench --bench soak -- [--minutes N] [--readers N] [--layout DIR] [--tag TAG] [--work DIR] [--cache-size SIZE]
//!                             [--pause SECONDS] [--round SECONDS] [--ocifs PROGRAM]
//! ```
//!
//! An image (by default `python` of the layout that `benches/images build` makes) is mounted from the embedded registry,
//! which fails one request in twenty in one of nine ways, takes its tokens for 20 seconds whatever it promised,
//! and is restarted every minute, away for `--pause` seconds and then with a new key. Readers read files and parts of files at
//! random and compare them with the tree that umoci unpacked. Every `--round` seconds the image is unmounted, all its bytes are
//! forgotten, and it is mounted again by the same daemon, so that they are fetched again and again. What is printed at the
//! end goes into the README: wrong bytes, errors that readers saw, and what the daemon holds of memory, threads and
//! descriptors at the start and at the end. The exit code is 1 if there is a wrong byte or an error, or if the daemon holds
//! more at the end than it may.
//!
//! Needs root, FUSE, and umoci unless the tree is there already. `DIR` of `--work` keeps the tree from run to run.

#![expect(clippy::print_stdout, reason = "figures are what this program is for")]

mod daemon;
mod readers;
mod registry;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ocifs::limits::{OPEN_BLOBS, OPEN_FILES};

use daemon::{Daemon, Held};
use readers::Readers;
use registry::Ailing;

/// How long readers have been at work before the daemon's size counts as that at the start, and how long they have been away
/// before it counts as that at the end.
const SETTLED: Duration = Duration::from_secs(20);

/// Descriptors that the daemon may have at the end: the files and blobs that its store keeps open, and some connections.
const KEPT: u64 = (OPEN_FILES + OPEN_BLOBS + 64) as u64;

/// What is asked for.
struct Options {
    minutes: f64,
    readers: u64,
    layout: PathBuf,
    tag: String,
    work: PathBuf,
    cache_size: String,
    pause: Duration,
    round: Duration,
    ocifs: PathBuf,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self {
            minutes: 10.0,
            readers: 16,
            layout: "/var/tmp/ocifs-bench/images".into(),
            tag: "python".to_owned(),
            work: "/var/tmp/ocifs-soak".into(),
            cache_size: "1G".to_owned(),
            pause: Duration::from_secs(3),
            round: Duration::from_secs(20),
            ocifs: env!("CARGO_BIN_EXE_ocifs").into(),
        };
        while let Some(word) = words.next() {
            // Cargo adds this one.
            if word == "--bench" {
                continue;
            }
            let value = words.next().with_context(|| format!("{word} wants a value"))?;
            match word.as_str() {
                "--minutes" => options.minutes = value.parse()?,
                "--readers" => options.readers = value.parse()?,
                "--layout" => options.layout = value.into(),
                "--tag" => options.tag = value,
                "--work" => options.work = value.into(),
                "--cache-size" => options.cache_size = value,
                "--pause" => options.pause = Duration::try_from_secs_f64(value.parse()?)?,
                "--round" => options.round = Duration::try_from_secs_f64(value.parse()?)?,
                "--ocifs" => options.ocifs = value.into(),
                _ => bail!("unknown option {word}"),
            }
        }
        ensure!(
            options.layout.join("index.json").exists(),
            "no layout in {}: see benches/images",
            options.layout.display()
        );
        Ok(options)
    }
}

/// The tree of the image, unpacked by umoci; made if it is not there yet.
fn unpacked(options: &Options) -> Result<PathBuf> {
    let bundle = options.work.join(format!("{}-unpacked", options.tag));
    if !bundle.exists() {
        let unfinished = bundle.with_extension("unfinished");
        if unfinished.exists() {
            std::fs::remove_dir_all(&unfinished)?;
        }
        let image = format!("{}:{}", options.layout.display(), options.tag);
        let unpacked = Command::new("umoci").args(["unpack", "--image", &image]).arg(&unfinished).status();
        ensure!(unpacked.context("umoci cannot be run")?.success(), "umoci cannot unpack {image}");
        std::fs::rename(&unfinished, &bundle)?;
    }
    Ok(bundle.join("rootfs"))
}

fn main() -> ExitCode {
    match Options::parse(std::env::args().skip(1)).and_then(|options| soak(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs it all; false if something was wrong.
fn soak(options: &Options) -> Result<bool> {
    std::fs::create_dir_all(&options.work)?;
    let tree = unpacked(options)?;
    let registry = Ailing::start(&options.layout, &options.tag, options.pause)?;
    let home = tempfile::Builder::new().prefix("soak-").tempdir_in(&options.work)?;
    let daemon = Daemon::mount(options, home.path(), &registry.reference())?;
    registry.spoil();
    println!(
        "mounted after {:.1} s; {} readers for {} minutes",
        daemon.took.as_secs_f64(),
        options.readers,
        options.minutes
    );
    let readers = Readers::start(options.readers, &tree, &daemon.mounted)?;
    let mut rounds = Rounds { options, daemon: &daemon, readers: &readers, reference: registry.reference(), failed: 0 };
    let first = rounds.watch(SETTLED)?;
    let length = Duration::from_secs_f64(options.minutes * 60.0).saturating_sub(SETTLED);
    let most = first.most(&rounds.watch(length)?);
    let failed = rounds.failed;
    readers.stop();
    std::thread::sleep(SETTLED);
    let last = daemon.held()?;
    println!("{}; {failed} mounts had to be tried again", readers.line());
    registry.tell();
    tell_held(&[("at the start", &first), ("at most", &most), ("at the end", &last)]);
    let (wrong, errors) = (readers.seen.wrong.load(Ordering::Relaxed), readers.seen.errors.load(Ordering::Relaxed));
    daemon.end()?;
    Ok(wrong == 0
        && errors == 0
        && last.own <= first.own * 2
        && last.descriptors <= KEPT
        && last.threads <= most.threads)
}

/// The same again and again.
struct Rounds<'a> {
    options: &'a Options,
    daemon: &'a Daemon,
    readers: &'a Readers,
    reference: String,
    /// Mounts that failed.
    failed: u64,
}

impl Rounds<'_> {
    /// Lets readers read for so long; the most that the daemon held.
    fn watch(&mut self, length: Duration) -> Result<Held> {
        let begun = Instant::now();
        let mut most = self.daemon.held()?;
        while begun.elapsed() < length {
            std::thread::sleep(self.options.round.min(length.saturating_sub(begun.elapsed())));
            let held = self.daemon.held()?;
            eprintln!("{}; {held}", self.readers.line());
            most = most.most(&held);
            self.failed += self.readers.aside(|| self.daemon.again(self.options, &self.reference))?;
        }
        Ok(most)
    }
}

fn tell_held(all: &[(&str, &Held)]) {
    for (when, held) in all {
        println!("{:14} {held}", format!("{when}:"));
    }
}

/// `path` below `root`, whether it is absolute or not.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}
