//! One connection with the kernel, from its first request to its last.
//!
//! What the kernel remembers of a file system (names, attributes, pages) belongs to the connection and not to a directory.
//! So root makes the mount of a connection outside of all directories and puts copies of it where they are wanted: an
//! image that is mounted twice, or again, finds everything remembered, and two containers of it share their pages. The
//! connection lives until nobody has it and its last mount has ended.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fuser::{Config, INodeNo, MountOption, Notifier, Session, SessionACL};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::adapter::{Adapter, Shared};
use super::elsewhere::Elsewhere;
use super::io::{Chosen, Io, Mode, Opens, Plan, Sizes};
use super::kernel;
use super::mount::on_one_line;
use super::push::Pusher;
use super::wakeful::Wakeful;
use crate::fs::{FileSystem, Ino};

/// Threads that take requests of one connection. Each answers from memory or hands the request on, so few are enough.
const THREADS: usize = 4;

/// Who may look into a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Every user, subject to the image's permissions (`allow_other`); for root.
    Everyone,
    /// Only the user who mounted.
    Owner,
}

/// How to mount.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// What the mount table shows as the source.
    pub source: &'a str,
    /// Who may look into it.
    pub access: Access,
    /// How files are to be read.
    pub io: Io,
    /// Whether processors are kept from sleeping while programs start, where that pays.
    pub low_latency: bool,
}

/// A file system that the kernel knows.
#[derive(Debug)]
pub struct Connection {
    shared: Arc<Shared>,
    opens: Arc<Opens>,
    notifier: Notifier,
    /// Protects the mount that is in no directory, of which all others are copies. None if there can be only one.
    spare: Mutex<Option<Elsewhere<OwnedFd>>>,
    /// None if processors may sleep.
    wakeful: Option<Wakeful>,
    ended: watch::Receiver<bool>,
}

/// Why a directory could not be mounted on.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// There is no usable FUSE device.
    #[error("cannot open /dev/fuse")]
    NoDevice(#[source] io::Error),
    /// The kernel or fusermount3 refused.
    #[error("cannot mount on {path}")]
    Refused {
        /// The mount point.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
    /// The kernel ended the connection before it began.
    #[error("the kernel did not complete the mount on {path}")]
    Handshake {
        /// The mount point.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

impl Connection {
    /// Begins to serve `fs`, for a mount in `dir`, an absolute path of an existing directory.
    ///
    /// Root makes the mount by itself and [`put`](Self::put)s it there; for others fusermount3 has put it there when this
    /// returns. The kernel has been answered then. Blocks for a few milliseconds.
    pub(super) fn new(
        fs: Arc<FileSystem>,
        runtime: Handle,
        dir: &Path,
        options: Options<'_>,
    ) -> Result<Self, MountError> {
        let is_root = rustix::process::geteuid().is_root();
        let mut plan = Plan::new(options.io, Sizes::of(fs.tree()), is_root);
        let shared = Arc::new(Shared::default());
        let sample = fs.sample();
        let passthrough = plan.is_passthrough();
        let (files, served, handle) = (Arc::clone(&fs), Arc::downgrade(&fs), runtime.clone());
        let wakeful = options.low_latency.then(|| Wakeful::new(Arc::clone(&shared.pulse), runtime.clone()));
        let adapter = Adapter { fs, runtime, passthrough, shared: Arc::clone(&shared) };
        let mut config = Config::default();
        config.n_threads = Some(THREADS);
        config.acl = match options.access {
            Access::Everyone => SessionACL::All,
            Access::Owner => SessionACL::Owner,
        };
        let (session, spare) = if is_root {
            let (session, spare) = make(adapter, dir, options, config)?;
            (session, Some(spare))
        } else {
            (mount_through_fusermount(adapter, dir, options, config)?, None)
        };
        let offer = shared.offer.get().copied().unwrap_or_default();
        if plan.is_passthrough() {
            plan = match offer.passthrough {
                true => plan.probed(&session, sample),
                false => plan.without("the kernel does not offer passthrough (Linux 6.9 and later do)"),
            };
        }
        let opens = Arc::new(Opens::new(plan, offer.no_open));
        shared.opens.get_or_init(|| Arc::clone(&opens));
        let notifier = session.notifier();
        if opens.kernel_opens() {
            match Pusher::start(files, handle, notifier.clone()) {
                Ok(pusher) => drop(shared.pusher.set(pusher)),
                Err(error) => tracing::warn!(%error, "the kernel is given nothing before it asks"),
            }
        }
        let (ending, ended) = watch::channel(false);
        let serve = move || {
            if let Err(error) = session.run() {
                tracing::warn!(%error, "mount ended with an error");
            }
            // Reads that wait for a registry hold the file system, and nobody wants their bytes any more.
            if let Some(fs) = served.upgrade() {
                fs.patience().end();
            }
            ending.send_replace(true);
        };
        let thread = std::thread::Builder::new().name("fuse-session".to_owned()).spawn(serve);
        if let Err(source) = thread {
            return Err(MountError::Handshake { path: dir.to_owned(), source });
        }
        Ok(Self { shared, opens, notifier, spare: Mutex::new(spare.map(Elsewhere::new)), wakeful, ended })
    }

    /// Mounts it in `dir`, once more if it is mounted already; false if it is and can be mounted only once.
    pub(super) fn put(&self, dir: &Path) -> io::Result<bool> {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(original) = spare.as_ref() else { return Ok(false) };
        match kernel::copy(original)? {
            Some(copy) => kernel::put(&copy, dir)?,
            None => {
                kernel::put(original, dir)?;
                *spare = None;
            }
        }
        if let Some(wakeful) = &self.wakeful {
            wakeful.expect_start();
        }
        Ok(true)
    }

    /// True if it lives as long as somebody has it, whether it is mounted or not.
    pub fn outlives_its_mounts(&self) -> bool {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// How files are read, and why.
    pub fn io(&self) -> Chosen {
        self.opens.chosen()
    }

    /// True if the kernel tells when files are opened and closed.
    pub fn sees_opens(&self) -> bool {
        !self.opens.kernel_opens()
    }

    /// How many requests the kernel has sent, by kind.
    pub fn requests(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.shared.requests.counts()
    }

    /// For how long processors were kept from sleeping.
    pub fn kept_awake(&self) -> Duration {
        self.shared.pulse.held()
    }

    /// Has the kernel forget the attributes, the listings and the data of the inodes up to `last`, so that it asks for them
    /// again. What a program has open for passthrough it keeps. Blocks while reads that are on their way are answered.
    pub fn forget(&self, last: Ino) {
        if let Some(pusher) = self.shared.pusher.get() {
            pusher.finish();
        }
        for number in 1..=last.0 {
            // Length 0 is to the end; what the kernel does not know is no error.
            if let Err(error) = self.notifier.inval_inode(INodeNo(number), 0, 0) {
                tracing::warn!(%error, "the kernel keeps what it was told");
                return;
            }
        }
    }

    /// Gives the kernel nothing more that it has not asked for, before this process ends. Blocks while something is being given.
    pub fn hush(&self) {
        if let Some(pusher) = self.shared.pusher.get() {
            pusher.hush();
        }
    }

    /// True if the kernel has ended it.
    pub fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// True when the kernel has ended it.
    pub(super) fn ended(&self) -> watch::Receiver<bool> {
        self.ended.clone()
    }

    /// Returns when the kernel has ended it: nobody has it, and its last mount is gone, from the mount table and from all
    /// who still used it. The future itself does not keep it.
    pub fn end(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut ended = self.ended.clone();
        async move {
            if ended.wait_for(|ended| *ended).await.is_err() {
                tracing::debug!("the session thread is gone");
            }
        }
    }

    /// Settles what depends on the device that the mounts of this connection show.
    pub(super) fn tune(&self, device: &str) {
        // Around every page of a library that faults the kernel reads as much: in trees of programs that is waste.
        if !device.is_empty() && self.io().mode == Mode::Passthrough {
            kernel::raise_read_ahead(device);
        }
    }
}

/// Makes the connection and its first mount, which is in no directory.
fn make(
    adapter: Adapter,
    dir: &Path,
    options: Options<'_>,
    config: Config,
) -> Result<(Session<Adapter>, OwnedFd), MountError> {
    let device = kernel::open_device().map_err(MountError::NoDevice)?;
    let spare = kernel::make(&device, options.source, options.access == Access::Everyone)
        .map_err(|source| MountError::Refused { path: dir.to_owned(), source })?;
    let acl = config.acl;
    let session = Session::from_fd(adapter, OwnedFd::from(device), acl, config)
        .map_err(|source| MountError::Handshake { path: dir.to_owned(), source })?;
    Ok((session, spare))
}

fn mount_through_fusermount(
    adapter: Adapter,
    dir: &Path,
    options: Options<'_>,
    mut config: Config,
) -> Result<Session<Adapter>, MountError> {
    kernel::is_available().map_err(MountError::NoDevice)?;
    config.mount_options = vec![
        MountOption::FSName(options.source.to_owned()),
        MountOption::Subtype("ocifs".to_owned()),
        MountOption::RO,
        MountOption::NoAtime,
        MountOption::DefaultPermissions,
    ];
    Session::new(adapter, dir, &config).map_err(|error| {
        // What the program said ends with a line break.
        let source = io::Error::new(error.kind(), on_one_line(&error.to_string()));
        MountError::Refused { path: dir.to_owned(), source }
    })
}
