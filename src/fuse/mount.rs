//! One directory in which a file system is mounted.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::connection::{Connection, MountError, Options};
use super::kernel::{self, MountPoint};
use super::places::Places;
use crate::fs::FileSystem;
use crate::oci::Printable;

/// Who looks at a mount, as df(1) does, uses it for so long and is not found afterwards: a mount that is in use by nobody
/// who can be seen is tried again after this, so often.
const GLANCE: Duration = Duration::from_millis(20);
const GLANCES: u32 = 10;

/// A mounted file system.
#[derive(Debug)]
pub struct Mount {
    point: MountPoint,
    connection: Arc<Connection>,
    places: Places,
    /// True when it is gone from the mount table.
    gone: watch::Receiver<bool>,
}

/// Why a mount could not be ended.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// Processes still use it, or other mounts are below it.
    #[error("{path} is in use by {}", describe(holders, mounts))]
    Busy {
        /// The mount point.
        path: PathBuf,
        /// Process number and name of those found.
        holders: Vec<(u32, String)>,
        /// Where something is mounted below it.
        mounts: Vec<PathBuf>,
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

fn describe(holders: &[(u32, String)], mounts: &[PathBuf]) -> String {
    if holders.is_empty() && mounts.is_empty() {
        return "a process that cannot be seen from here".to_owned();
    }
    let holders = holders.iter().map(|(pid, name)| format!("{name} (pid {pid})"));
    let mounts = mounts.iter().map(|path| format!("the mount {}", Printable::path(path)));
    holders.chain(mounts).collect::<Vec<_>>().join(", ")
}

/// What is mounted below `dir`, by the kernel's table; nothing if that cannot be read.
fn below(dir: &Path) -> Vec<PathBuf> {
    let table = std::fs::read(kernel::TABLE).unwrap_or_default();
    let paths = kernel::parse(&table).map(|point| point.path);
    paths.filter(|path| path.starts_with(dir) && path != dir).collect()
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

/// The mounts whose daemons are gone, of those that this user may look at; `served` are known to be alive. Asks each other
/// mount of this program, so it may block as long as [`is_dead`].
pub fn abandoned(served: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read(kernel::TABLE)?;
    let points = kernel::parse(&table).filter(MountPoint::is_ocifs).map(|point| point.path);
    Ok(points.filter(|path| !served.contains(path) && is_dead(path)).collect())
}

/// Ends a mount that no [`Mount`] of this process owns.
pub fn unmount_stale(dir: &Path, lazy: bool) -> Result<(), UnmountError> {
    unmount(dir, lazy)
}

/// Ends whatever is mounted on `dir`; a mount that is already gone is no error.
fn unmount(dir: &Path, lazy: bool) -> Result<(), UnmountError> {
    let path = dir.to_owned();
    let mut glances = 0;
    loop {
        let result = if rustix::process::geteuid().is_root() {
            kernel::unmount(&path, lazy)
        } else {
            fusermount_unmount(&path, lazy)
        };
        return match result {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                let (holders, mounts) = (kernel::holders(&path), below(&path));
                if holders.is_empty() && mounts.is_empty() && glances < GLANCES {
                    glances += 1;
                    std::thread::sleep(GLANCE);
                    continue;
                }
                Err(UnmountError::Busy { path, holders, mounts })
            }
            // Somebody else was faster.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            Err(source) => Err(UnmountError::Refused { path, source }),
        };
    }
}

impl Mount {
    /// Mounts `fs` on `dir`, an absolute path of an existing directory, and starts serving it.
    ///
    /// Root mounts by itself, others through fusermount3. The tree can be used when this returns. Blocks for a few
    /// milliseconds.
    pub fn new(
        fs: Arc<FileSystem>,
        runtime: Handle,
        dir: &Path,
        options: Options<'_>,
        places: &Places,
    ) -> Result<Self, MountError> {
        let connection = Arc::new(Connection::new(fs, runtime, dir, options)?);
        if connection.outlives_its_mounts() {
            connection.put(dir).map_err(|source| MountError::Refused { path: dir.to_owned(), source })?;
        }
        Ok(Self::found(connection, dir, places))
    }

    /// Mounts what `connection` serves on `dir` as well; none if that is not possible here.
    pub fn again(connection: &Arc<Connection>, dir: &Path, places: &Places) -> Result<Option<Self>, MountError> {
        match connection.put(dir) {
            Ok(true) => Ok(Some(Self::found(Arc::clone(connection), dir, places))),
            Ok(false) => Ok(None),
            Err(source) => Err(MountError::Refused { path: dir.to_owned(), source }),
        }
    }

    fn found(connection: Arc<Connection>, dir: &Path, places: &Places) -> Self {
        let found = kernel::find(dir).ok().flatten();
        let gone = match &found {
            Some(point) if connection.outlives_its_mounts() => places.enter(point),
            // Somebody was faster to end it.
            None if connection.outlives_its_mounts() => watch::channel(true).1,
            // It ends with its only mount.
            _ => connection.ended(),
        };
        let point = found.unwrap_or_else(|| MountPoint {
            id: 0,
            path: dir.to_owned(),
            device: String::new(),
            file_system: String::new(),
            user: None,
        });
        connection.tune(&point.device);
        Self { point, connection, places: places.clone(), gone }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.point.path
    }

    /// What serves it.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Ends the mount. `lazy` takes it out of the mount table even if it is in use. A mount that is already gone is no
    /// error.
    pub fn unmount(&self, lazy: bool) -> Result<(), UnmountError> {
        if *self.gone.borrow() {
            return Ok(());
        }
        unmount(self.path(), lazy)?;
        self.places.look();
        Ok(())
    }

    /// Returns once it is gone from the mount table, by whatever hand. Who still uses it is served on.
    pub async fn ended(&self) {
        let mut gone = self.gone.clone();
        if gone.wait_for(|gone| *gone).await.is_err() {
            tracing::debug!("nobody looks at the mount table any more");
        }
    }
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
    Err(io::Error::other(on_one_line(&message)))
}

/// What a program said in some lines.
pub(super) fn on_one_line(message: &str) -> String {
    message.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_a_program_said_is_told_on_one_line() {
        let said = "fusermount3: mounting over filesystem type 0x1 is forbidden\n  try another\n\n";
        assert_eq!(
            super::on_one_line(said),
            "fusermount3: mounting over filesystem type 0x1 is forbidden; try another"
        );
    }
}
