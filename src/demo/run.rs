//! The demo: shows on a small image what ocifs does, and says in plain words what was read and what was not.
//!
//! Nothing here is special: the image comes from a registry on the loopback interface, and a daemon of its own, started
//! and asked like any other, mounts it with a cache of its own. All of it lives below one temporary directory that is
//! gone afterwards.

use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::signal::unix::{SignalKind, signal};

use super::image::{self, Image, LARGE_FILE};
use super::registry::{Content, Record, Registry};
use crate::daemon::control::{self, CacheReport, Drop as DropRequest, Fill, MountReport, Request, StatusReport};
use crate::daemon::{Client, Code, Failure, Program, socket_path};

/// What runs inside the mounted tree: shows the merge rules and the shell itself at work.
const SCRIPT: &str = "cat /srv/demo/kept.txt /srv/demo/replaced.txt; \
                      echo \"hidden.txt: $( [ -e /srv/demo/hidden.txt ] && echo there || echo hidden by a whiteout )\"; \
                      echo \"opaque/: $( cd /srv/demo/opaque && echo * )\"";

/// How long the demo's daemon may take to end before its directory is removed all the same.
const END: Duration = Duration::from_secs(5);

/// How long is waited at most for what is fetched ahead.
const AHEAD: Duration = Duration::from_secs(5);

/// Longest path of a socket (unix(7)).
const SOCKET_PATH: usize = 107;

/// How the demo is run.
#[derive(Debug)]
pub struct Demo {
    /// Where to mount; none for a directory of its own.
    pub dir: Option<PathBuf>,
    /// Where temporary files go.
    pub temporary: PathBuf,
    /// Starts the demo's daemon when `--cache-dir DIR --runtime-dir DIR` is put behind its arguments.
    pub daemon: Program,
    /// Runs a command with another root when `DIR COMMAND…` is put behind its arguments.
    pub enter: Program,
    /// Stays mounted until Enter or Ctrl-C.
    pub interactive: bool,
}

/// The demo under way.
struct Stage<'a> {
    demo: &'a Demo,
    base: PathBuf,
    dir: PathBuf,
    client: Client,
    registry: Registry,
    image: Image,
}

/// Runs the demo, telling its story to `out`.
pub fn run(demo: &Demo, out: &mut dyn Write) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::io("cannot start threads", &error))?;
    let base = demo.temporary.join(format!("ocifs-demo-{}", std::process::id()));
    let Client { cache_dir, runtime_dir, .. } = client(demo, &base);
    if socket_path(&cache_dir, &runtime_dir).as_os_str().len() > SOCKET_PATH {
        let what = format!("cannot run the demo in {}", demo.temporary.display());
        return Err(Failure::new(Code::Usage, what)
            .because("the path is too long for the socket of a daemon in it")
            .hint("set TMPDIR to a directory with a shorter path"));
    }
    let outcome = runtime.block_on(async {
        let told = told_to_end()?;
        tokio::select! {
            outcome = play(demo, &base, out) => outcome,
            () = told => Ok(()),
        }
    });
    // A daemon that is being started just now must be there when it is told to end.
    runtime.shutdown_timeout(END);
    let cleaned = clear(demo, &base);
    outcome.and(cleaned)
}

/// Is done when the user presses Ctrl-C, closes the terminal, or has the demo ended in another way that can be noticed.
fn told_to_end() -> Result<impl Future<Output = ()>, Failure> {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
    let signals = kinds.into_iter().map(signal).collect::<io::Result<Vec<_>>>();
    let mut signals = signals.map_err(|error| Failure::io("cannot wait for signals", &error))?;
    Ok(std::future::poll_fn(move |context| {
        let is_told = signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
        if is_told { Poll::Ready(()) } else { Poll::Pending }
    }))
}

async fn play(demo: &Demo, base: &Path, out: &mut dyn Write) -> Result<(), Failure> {
    let stage = prepare(demo, base).await?;
    let total: u64 = stage.image.layers.iter().map(|layer| layer.size).sum();
    let reference = stage.reference();
    say(out, &format!("A registry of this demo serves {reference}: 3 layers, {} compressed.", ByteSize(total)))?;
    for (command, why) in &stage.image.missing {
        say(out, &format!("  ({command} is not in the image: {why})"))?;
    }

    say(out, "\n1. First contact: nobody has indexed these layers, so they are streamed once.")?;
    let started = Instant::now();
    stage.mount().await?;
    let took = started.elapsed();
    let cache: CacheReport = stage.ask(Request::CacheUsage).await?;
    say(out, &format!("   mounted in {} ms; {}", took.as_millis(), traffic(&stage.registry.requests(), &stage.image)))?;
    say(out, &format!("   the index of all 3 layers takes {}", ByteSize(cache.indexes.bytes)))?;

    say(out, "\n2. Forget every byte of the image, keep the index, and mount again.")?;
    stage.unmount().await?;
    let dropped = DropRequest { blobs: true, files: true, ..DropRequest::default() };
    stage.ask::<control::DropReport>(Request::CacheDrop(dropped)).await?;
    stage.registry.forget_requests();
    let started = Instant::now();
    stage.mount().await?;
    let took = started.elapsed();
    stage.fetched_ahead().await?;
    let asked = traffic(&stage.registry.requests(), &stage.image);
    say(out, &format!("   mounted in {} ms, and the entry point fetched ahead;\n   {asked}", took.as_millis()))?;

    say(out, "\n3. Run a command from the tree:")?;
    say(out, &format!("   $ chroot {} /bin/sh -c '...'", stage.dir.display()))?;
    for line in stage.run_inside().await?.lines() {
        say(out, &format!("   | {line}"))?;
    }

    say(out, "\n4. What was read, and what was never fetched:")?;
    let report = stage.status().await?;
    for (number, layer) in (1..).zip(&report.layers) {
        let share = if layer.fetched == 0 { "nothing".to_owned() } else { ByteSize(layer.fetched).to_string() };
        say(out, &format!("   layer {number} ({}): {share} of {} fetched", layer.compression, ByteSize(layer.size)))?;
    }
    say(out, &format!("   {LARGE_FILE} is there with all its attributes; its bytes stay in the registry until read."))?;
    if demo.interactive {
        say(
            out,
            &format!("\nThe image is mounted on {}. Look around; press Enter or Ctrl-C to end.", stage.dir.display()),
        )?;
        enter_pressed().await?;
    }
    stage.unmount().await?;
    say(out, "\nUnmounted. Your own: ocifs mount IMAGE DIRECTORY")
}

/// Returns when a line or the end of input comes from the terminal. The thread that reads may outlive the wait, because
/// nothing interrupts a read of a terminal; it ends with the process.
async fn enter_pressed() -> Result<(), Failure> {
    let (said, heard) = tokio::sync::oneshot::channel();
    let read = move || {
        let result = io::stdin().read_line(&mut String::new());
        if said.send(result).is_err() {
            tracing::debug!("nobody waits for the terminal any more");
        }
    };
    let thread = std::thread::Builder::new().name("terminal".to_owned()).spawn(read);
    thread.map_err(|error| Failure::io("cannot start threads", &error))?;
    match heard.await {
        Ok(Err(error)) => Err(Failure::io("cannot read the terminal", &error)),
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}

/// Makes the image and everything that serves it.
async fn prepare<'a>(demo: &'a Demo, base: &Path) -> Result<Stage<'a>, Failure> {
    let layers = base.join("layers");
    let own = base.join("rootfs");
    for dir in [base, &layers, &own] {
        let made = std::fs::DirBuilder::new().mode(0o700).create(dir);
        made.map_err(|error| Failure::io(&format!("cannot create {}", dir.display()), &error))?;
    }
    let content = Content::new();
    let building = content.clone();
    let options = image::Options { directory: Some(layers), ..image::Options::default() };
    let image = tokio::task::spawn_blocking(move || image::build(&building, "demo", "latest", &options)).await;
    let image = image
        .map_err(|_| Failure::new(Code::Other, "making the demo image was interrupted"))?
        .map_err(|error| Failure::of(Code::Other, &error))?;
    let registry = Registry::start(content).await;
    let registry =
        registry.map_err(|error| Failure::io("cannot serve the demo image on the loopback interface", &error))?;
    let dir = demo.dir.clone().unwrap_or(own);
    Ok(Stage { demo, base: base.to_owned(), dir, client: client(demo, base), registry, image })
}

/// The client of the demo's own daemon.
fn client(demo: &Demo, base: &Path) -> Client {
    let (cache_dir, runtime_dir) = (base.join("cache"), base.join("run"));
    let mut program = demo.daemon.clone();
    program.arguments.extend(["--cache-dir".into(), cache_dir.clone().into()]);
    program.arguments.extend(["--runtime-dir".into(), runtime_dir.clone().into()]);
    Client { cache_dir, runtime_dir, program }
}

impl Stage<'_> {
    fn reference(&self) -> String {
        format!("localhost:{}/demo:latest", self.registry.addr().port())
    }

    async fn mount(&self) -> Result<MountReport, Failure> {
        let image = control::Image {
            reference: self.reference().replace("localhost", "127.0.0.1"),
            platform: None,
            offline: false,
            plain_http: true,
            auth_files: Vec::new(),
            hosts: control::HostFiles::default(),
            trust_index: control::TrustIndex::default(),
            index_keys: Vec::new(),
        };
        self.ask(Request::Mount(control::Mount {
            image,
            dir: self.dir.clone(),
            fill: Fill::Off,
            io: control::Io::Auto,
            low_latency: true,
            on_outage: control::OnOutage::Eio,
            profile_until: Some(0),
            cache_size: None,
        }))
        .await
    }

    async fn unmount(&self) -> Result<(), Failure> {
        self.ask(Request::Unmount { dir: self.dir.clone(), lazy: false }).await
    }

    async fn status(&self) -> Result<MountReport, Failure> {
        let mut status: StatusReport = self.ask(Request::Status { dir: Some(self.dir.clone()) }).await?;
        status.mounts.pop().ok_or_else(|| Failure::new(Code::Other, "the demo's mount is gone"))
    }

    /// Waits, for a moment at most, until what the entry point needs is fetched, so that it can be counted.
    async fn fetched_ahead(&self) -> Result<(), Failure> {
        let begun = Instant::now();
        while !self.status().await?.profile.ahead_done && begun.elapsed() < AHEAD {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Asks the demo's daemon without holding up the registry, which runs beside.
    async fn ask<T: serde::de::DeserializeOwned + Send + 'static>(&self, request: Request) -> Result<T, Failure> {
        let client = self.client.clone();
        let asked = tokio::task::spawn_blocking(move || client.request(&request)?.finish(|_| {})).await;
        asked.map_err(|_| Failure::new(Code::Other, "interrupted"))?
    }

    /// Runs the script inside the tree and returns what it printed.
    async fn run_inside(&self) -> Result<String, Failure> {
        let enter = &self.demo.enter;
        // Only root may change its root directory; others become root of a user namespace of their own first.
        let mut command = if rustix::process::geteuid().is_root() {
            Command::new(&enter.path)
        } else {
            let mut unshare = Command::new("unshare");
            unshare.args(["--user", "--map-root-user", "--"]).arg(&enter.path);
            unshare
        };
        command.args(&enter.arguments).arg(&self.dir).args(["/bin/sh", "-c", SCRIPT]).current_dir(&self.base);
        let output = tokio::task::spawn_blocking(move || command.output()).await;
        let output = output
            .map_err(|_| Failure::new(Code::Other, "interrupted"))?
            .map_err(|error| Failure::io("cannot run a command from the tree", &error))?;
        if !output.status.success() {
            return Err(Failure::new(Code::Other, format!("the command in the tree ended with {}", output.status))
                .because(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// What the registry was asked for and how much of the layers it sent.
fn traffic(requests: &[Record], image: &Image) -> String {
    let is_layer = |record: &&Record| {
        image.layers.iter().any(|layer| record.request.path.ends_with(&format!("/blobs/{}", layer.digest)))
    };
    let total: u64 = image.layers.iter().map(|layer| layer.size).sum();
    let sent: u64 = requests.iter().filter(is_layer).map(|record| record.sent).sum();
    let ranges = requests.iter().filter(is_layer).count();
    let others = requests.len() - ranges;
    format!(
        "requests for manifest and configuration: {others}; for layers: {ranges}, which sent {} of {}",
        ByteSize(sent),
        ByteSize(total)
    )
}

/// Tells a process to end, and waits until it has. Where nobody collects the children of others, as in many containers, it
/// then has a number for ever; its descriptor knows.
fn end(pid: Pid) {
    let ended = pidfd_open(pid, PidfdFlags::empty()).and_then(|process| {
        pidfd_send_signal(&process, Signal::TERM)?;
        let patience = Timespec { tv_sec: END.as_secs().cast_signed(), tv_nsec: 0 };
        poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience))
    });
    if let Err(error) = ended {
        tracing::debug!(%error, "the demo's daemon is gone already");
    }
}

/// Ends the demo's daemon, which unmounts, and removes the demo's directory.
fn clear(demo: &Demo, base: &Path) -> Result<(), Failure> {
    let asked = client(demo, base).request_if_running(&Request::Status { dir: None });
    let status = asked.ok().flatten().and_then(|connection| connection.finish::<StatusReport>(|_| {}).ok());
    if let Some(pid) = status.and_then(|status| Pid::from_raw(i32::try_from(status.pid).ok()?)) {
        end(pid);
    }
    match std::fs::remove_dir_all(base) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Failure::io(&format!("cannot remove {}", base.display()), &error))
        }
        _ => Ok(()),
    }
}

fn say(out: &mut dyn Write, line: &str) -> Result<(), Failure> {
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|error| Failure::io("cannot write", &error))
}
