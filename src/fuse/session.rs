//! One mount from its first request to its last.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use fuser::{Config, INodeNo, MountOption, Notifier, Session, SessionACL};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::adapter::{Adapter, Shared};
use super::io::{Chosen, Io, Mode, Opens, Plan};
use super::kernel::{self, MountPoint};
use crate::fs::{FileSystem, Ino};

/// Threads that take requests of one mount. Each answers from memory or hands the request on, so few are enough.
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
}

/// A mounted file system.
#[derive(Debug)]
pub struct Mount {
    point: MountPoint,
    shared: Arc<Shared>,
    opens: Arc<Opens>,
    notifier: Notifier,
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

/// Why a mount could not be ended.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// Processes still use it.
    #[error("{path} is in use by {}", describe(holders))]
    Busy {
        /// The mount point.
        path: PathBuf,
        /// Process number and name of those found.
        holders: Vec<(u32, String)>,
    },
    /// The kernel or fusermount3 refused.
    #[error("cannot unmount {path}")]
    Refused {
        /// The mount point.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
}

fn describe(holders: &[(u32, String)]) -> String {
    if holders.is_empty() {
        return "a process that cannot be seen from here, or another mount below it".to_owned();
    }
    holders.iter().map(|(pid, name)| format!("{name} (pid {pid})")).collect::<Vec<_>>().join(", ")
}

/// What is mounted on top at `dir`, by the kernel's table, without touching it.
pub fn mounted_at(dir: &Path) -> io::Result<Option<MountPoint>> {
    kernel::find(dir)
}

/// True if a FUSE mount's daemon is gone. Asks the mount, so it may block as long as a daemon that is alive takes to
/// answer.
///
/// Only a request that the kernel cannot answer from what it remembers tells: attributes are kept for ever, so stat(2)
/// succeeds long after the daemon's death, but statfs(2) always goes to the daemon and fails with ENOTCONN.
pub fn is_dead(dir: &Path) -> bool {
    let answer = rustix::fs::statfs(dir);
    answer.is_err_and(|error| error == rustix::io::Errno::NOTCONN || error == rustix::io::Errno::CONNABORTED)
}

/// Ends a mount that no [`Mount`] of this process owns.
pub fn unmount_stale(dir: &Path, lazy: bool) -> Result<(), UnmountError> {
    unmount(dir, lazy)
}

/// Ends whatever is mounted on `dir`; a mount that is already gone is no error.
fn unmount(dir: &Path, lazy: bool) -> Result<(), UnmountError> {
    let path = dir.to_owned();
    let result = if rustix::process::geteuid().is_root() {
        kernel::unmount(&path, lazy)
    } else {
        fusermount_unmount(&path, lazy)
    };
    match result {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            let holders = kernel::holders(&path);
            Err(UnmountError::Busy { path, holders })
        }
        // Somebody else was faster.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        Err(source) => Err(UnmountError::Refused { path, source }),
    }
}

impl Mount {
    /// Mounts `fs` on `dir`, an absolute path of an existing directory, and starts serving it.
    ///
    /// Root mounts by itself, others through fusermount3. Returns when the kernel has been answered, so that the tree can be
    /// used at once; blocks for a few milliseconds.
    pub fn new(fs: Arc<FileSystem>, runtime: Handle, dir: &Path, options: Options<'_>) -> Result<Self, MountError> {
        let is_root = rustix::process::geteuid().is_root();
        let mut plan = Plan::new(options.io, fs.mean_size(), is_root);
        let shared = Arc::new(Shared::default());
        let sample = fs.sample();
        let passthrough = plan.is_passthrough();
        let adapter = Adapter { fs, runtime, passthrough, shared: Arc::clone(&shared) };
        let mut config = Config::default();
        config.n_threads = Some(THREADS);
        config.acl = match options.access {
            Access::Everyone => SessionACL::All,
            Access::Owner => SessionACL::Owner,
        };
        let session = if is_root {
            mount_as_root(adapter, dir, options, config)?
        } else {
            mount_through_fusermount(adapter, dir, options, config)?
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
        let point = kernel::find(dir).ok().flatten().unwrap_or_else(|| MountPoint {
            path: dir.to_owned(),
            device: String::new(),
            file_system: String::new(),
        });
        let notifier = session.notifier();
        let (ending, ended) = watch::channel(false);
        let serve = move || {
            if let Err(error) = session.run() {
                tracing::warn!(%error, "mount ended with an error");
            }
            ending.send_replace(true);
        };
        let thread = std::thread::Builder::new().name("fuse-session".to_owned()).spawn(serve);
        if let Err(source) = thread {
            return Err(MountError::Handshake { path: dir.to_owned(), source });
        }
        // Around every page of a library that faults the kernel reads as much: in trees of programs that is waste.
        if !point.device.is_empty() && opens.chosen().mode == Mode::Passthrough {
            kernel::raise_read_ahead(&point.device);
        }
        Ok(Self { point, shared, opens, notifier, ended })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.point.path
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

    /// Has the kernel forget the attributes, the listings and the data of the inodes up to `last`, so that it asks for them
    /// again. What a program has open for passthrough it keeps. Blocks while reads that are on their way are answered.
    pub fn forget(&self, last: Ino) {
        for number in 1..=last.0 {
            // Length 0 is to the end; what the kernel does not know is no error.
            if let Err(error) = self.notifier.inval_inode(INodeNo(number), 0, 0) {
                tracing::warn!(path = %self.point.path.display(), %error, "the kernel keeps what it was told");
                return;
            }
        }
    }

    /// Ends the mount. `lazy` detaches it at once even if it is in use. A mount that is already gone is no error.
    pub fn unmount(&self, lazy: bool) -> Result<(), UnmountError> {
        if *self.ended.borrow() {
            return Ok(());
        }
        unmount(self.path(), lazy)
    }

    /// Returns once the kernel has ended the connection, by whatever hand.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        if ended.wait_for(|ended| *ended).await.is_err() {
            tracing::debug!("the session thread is gone");
        }
    }
}

fn mount_as_root(
    adapter: Adapter,
    dir: &Path,
    options: Options<'_>,
    config: Config,
) -> Result<Session<Adapter>, MountError> {
    let device = kernel::open_device().map_err(MountError::NoDevice)?;
    kernel::mount(&device, dir, options.source, options.access == Access::Everyone)
        .map_err(|source| MountError::Refused { path: dir.to_owned(), source })?;
    let acl = config.acl;
    Session::from_fd(adapter, OwnedFd::from(device), acl, config).map_err(|source| {
        if let Err(error) = kernel::unmount(dir, true) {
            tracing::warn!(%error, "a mount that never began stays behind");
        }
        MountError::Handshake { path: dir.to_owned(), source }
    })
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
    Session::new(adapter, dir, &config).map_err(|source| MountError::Refused { path: dir.to_owned(), source })
}

/// Asks fusermount3, which is set-user-ID, to end a mount of this user.
fn fusermount_unmount(dir: &Path, lazy: bool) -> io::Result<()> {
    let mut command = Command::new("fusermount3");
    command.arg("-u");
    if lazy {
        command.arg("-z");
    }
    let output = command.arg("--").arg(dir).output()?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    if message.contains("busy") {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    Err(io::Error::other(message.trim().to_owned()))
}
