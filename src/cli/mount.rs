//! `ocifs mount`: show an image as a directory.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use clap::{ValueEnum, ValueHint};
use tokio::signal::unix::SignalKind;

use super::context::Context;
use super::duration;
use super::image::ImageArgs;
use super::interrupt::or_interrupted;
use super::logging;
use super::output::Output;
use super::progress::Meter;
use super::settings::settled;
use super::stop::{Stop, usage};
use super::trust::TrustArgs;
use crate::daemon::control::{self, Fill, Io, OnOutage, Request};
use crate::daemon::{self, End};
use crate::oci::Printable;

const EXAMPLES: &str = "\
Examples:
  ocifs mount debian:12 /mnt/debian
  ocifs mount --platform linux/arm64 ghcr.io/owner/name:1.2 rootfs
  ocifs mount --wait debian:12 /mnt/debian               # complete when it returns
  ocifs mount --trust-index registry NAME@sha256:... /mnt  # believe an index beside a pinned image
  ocifs mount --index-key ci.pub NAME@sha256:... /mnt   # believe it if this key signed it
  ocifs mount --on-outage wait:1h debian:12 /mnt/debian # reads outlast a registry that is away for an hour
  ocifs mount --offline --fill off oci:build/image:latest /mnt
  ocifs mount --foreground localhost:5000/name /mnt     # for service managers";

/// Mount an image on a directory
///
/// Returns 0 as soon as the directory shows the image; bytes are fetched when they are read. Layers that were never
/// seen before are streamed once, which is what takes time. The mount is read-only and stays until `ocifs umount`.
///
/// The first mount starts a daemon, which serves all mounts of its cache directory and ends when there are none.
/// Nothing is written to standard output without --json; progress is shown on standard error if that is a terminal.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    image: ImageArgs,

    /// The mount point: an empty directory
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: PathBuf,

    /// When to fetch what nobody has read yet [default: idle]
    #[arg(long, value_enum, value_name = "WHEN")]
    fill: Option<When>,

    /// How files are read [default: auto]
    ///
    /// auto chooses passthrough if the files are 1 MiB or more on average, or if large ones (64 MiB) hold most of the bytes
    /// and at least 1 GiB, else cached: an image of a language has many small files, one with models or databases few large
    /// ones. `ocifs status` shows what was chosen, and why.
    #[arg(long, value_enum, value_name = "MODE")]
    io: Option<How>,

    /// Whether idle processors stay awake while a program starts on the mount [default: auto]
    ///
    /// A program that starts asks for thousands of things, one after the other, and waits each time for processors to wake
    /// up. With auto, no idle processor of the machine sleeps while the mount is asked for things, for 10 seconds at most: a
    /// start takes about a tenth less time. Meanwhile the machine needs the power of a busy one, and where two processors share
    /// a core, or one clocks higher while others sleep, other programs are a little slower. It needs root, 16 processors at
    /// most and /dev/cpu_dma_latency, which containers lack; where one of these is missing it is left out silently.
    /// `ocifs status` shows for how long it was done.
    #[arg(long, value_enum, value_name = "WHEN")]
    low_latency: Option<Latency>,

    /// What a read does while the registry does not answer [default: wait:5m]
    ///
    /// With wait:DURATION it waits, at most so long, and goes on by itself as soon as the registry is back; with wait it waits
    /// without an end. The process that reads can be killed all the same. With eio it fails when the usual attempts are used up,
    /// after some seconds. This is about reading: a mount whose layers are not known yet fails if they cannot be fetched now.
    /// `ocifs status` shows an outage.
    #[arg(long, value_name = "POLICY", value_parser = duration::on_outage)]
    on_outage: Option<OnOutage>,

    /// How long to record what the start reads, such as 30s; 0 for not at all [default: until it is quiet]
    ///
    /// A later mount of the same image fetches what was recorded ahead (see `ocifs profile`). Without this, a start is
    /// over when nothing new was read for 10 seconds.
    #[arg(long, value_name = "DURATION", value_parser = duration::recording)]
    profile_until: Option<u32>,

    /// Return only when every layer is in the cache and verified as a whole
    ///
    /// What is missing is fetched at once, as with --fill now, unless --fill idle is given. A complete image needs no
    /// registry. If a layer cannot be completed, the command fails and the mount stays; so it does when Ctrl-C ends the
    /// waiting, while Ctrl-C before the directory shows the image cancels the mount. With --offline, fails unless the cache
    /// has everything.
    #[arg(long, conflicts_with = "foreground")]
    wait: bool,

    #[command(flatten)]
    trust: TrustArgs,

    /// Print what was mounted as JSON for programs, as `ocifs status` describes it
    #[arg(long, conflicts_with = "foreground")]
    json: bool,

    /// Serve the mount in this process, with its log on standard error, until it is unmounted
    #[arg(long)]
    foreground: bool,
}

/// When the rest of an image is fetched.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum When {
    /// Never
    Off,
    /// While no reader waits
    Idle,
    /// At once
    Now,
}

/// How files are read.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum How {
    /// By what the image holds and the machine can do
    Auto,
    /// Complete files at the speed of the disk, sharing memory between images; needs root and Linux 6.9. Each open asks
    /// the daemon, and only one overlay can be stacked on the mount
    Passthrough,
    /// From memory once they were read; opening asks nobody
    Cached,
}

/// Whether processors stay awake.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Latency {
    /// While a program starts, where that pays
    Auto,
    /// Never
    Off,
}

impl From<Latency> for bool {
    fn from(latency: Latency) -> Self {
        matches!(latency, Latency::Auto)
    }
}

impl From<How> for Io {
    fn from(how: How) -> Self {
        match how {
            How::Auto => Self::Auto,
            How::Passthrough => Self::Passthrough,
            How::Cached => Self::Cached,
        }
    }
}

impl From<When> for Fill {
    fn from(when: When) -> Self {
        match when {
            When::Off => Self::Off,
            When::Idle => Self::Idle,
            When::Now => Self::Now,
        }
    }
}

/// Mounts.
pub(super) fn run(args: Args, context: &Context) -> Result<(), Stop> {
    if args.wait && matches!(args.fill, Some(When::Off)) {
        return Err(usage("cannot use --wait with --fill off", "a mount that is not filled is never complete")
            .hint("leave out one of them")
            .into());
    }
    // A configuration file's choice is for mounts that nobody waits for.
    let fill = if args.wait { Fill::Now } else { context.settings.fill };
    let mount = control::Mount {
        image: args.image.believing(&args.trust, context)?,
        dir: settled(&args.dir)?,
        fill: args.fill.map_or(fill, Fill::from),
        io: args.io.map_or(context.settings.io, Io::from),
        low_latency: args.low_latency.map_or(context.settings.low_latency, bool::from),
        on_outage: args.on_outage.unwrap_or(context.settings.on_outage),
        profile_until: args.profile_until.or(context.settings.profile_until),
        cache_size: context.settings.cache_size,
    };
    if args.foreground { in_foreground(mount, context) } else { in_daemon(mount, &args, context) }
}

fn in_daemon(mount: control::Mount, args: &Args, context: &Context) -> Result<(), Stop> {
    let completing = format!("completing {}", Printable::of(&mount.image.reference));
    let waiting = args.wait.then(|| Request::Wait { dir: mount.dir.clone() });
    let meter = Meter::looking_up(&mount.image.reference);
    let (request, inner, shown) = (Request::Mount(mount), context.clone(), meter.clone());
    let outcome = or_interrupted(move || {
        let report = inner.ask::<control::MountReport>(&request, &shown)?;
        // A request of its own: the mount is made, and giving up this one ends nothing.
        let Some(request) = waiting else { return Ok(report) };
        shown.next(completing);
        inner.ask::<()>(&request, &shown).map(|()| report)
    });
    meter.clear();
    let report = outcome?;
    if !args.json {
        return Ok(());
    }
    let mut output = Output::new();
    output.json(&report)?;
    output.finish()
}

fn in_foreground(mount: control::Mount, context: &Context) -> Result<(), Stop> {
    logging::start(&context.environment, context.environment.wants_colour(io::stderr().is_terminal()));
    let options = daemon::Options { idle: None, ..super::daemon::options(context) };
    daemon::make_runtime_dir(&options.runtime_dir)?;
    let client = context.client()?;
    match client.in_place_of_idle_daemon(|| daemon::run(&options, None, Some(mount.clone())))? {
        End::Finished => Ok(()),
        End::Interrupted => Err(Stop::Interrupted(SignalKind::interrupt())),
    }
}
