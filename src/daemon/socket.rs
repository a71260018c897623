//! The control socket: where it is, and who may speak there.
//!
//! Whoever reaches the socket of a daemon has all that its user may mount and read, and whoever owns the name of a socket
//! can pretend to be the daemon. So its directory must be one in which only this user makes names, the socket is closed
//! to everybody else whatever the umask is, and each side of a connection looks who is at the other end.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};

use super::{Code, Failure};
use crate::oci::{Digest, Printable};

/// How often the socket is looked for while nobody comes.
const LOOK: Duration = Duration::from_secs(5);

/// Permission bits of a directory by which others make names in it.
const OTHERS_WRITE: u32 = 0o022;

/// The control socket of the daemon that owns `cache_dir`.
///
/// The name is made from the cache directory, so that each has its own, and short, because socket paths are limited to
/// 107 bytes (unix(7)).
pub fn socket_path(cache_dir: &Path, runtime_dir: &Path) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let name = Digest::sha256(cache_dir.as_os_str().as_bytes());
    runtime_dir.join(format!("{}.sock", name.short()))
}

/// Creates the directory of the control socket unless it is there; it is only for this user in any case.
pub fn make_runtime_dir(dir: &Path) -> Result<(), Failure> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| {
        Failure::io(&format!("cannot create the runtime directory {}", Printable::path(dir)), &error)
            .hint("choose one that you may write to with --runtime-dir")
    })?;
    check_runtime_dir(dir)
}

/// Fails if somebody else could make names in the directory of the control socket. One that is not there is nobody's.
pub(super) fn check_runtime_dir(dir: &Path) -> Result<(), Failure> {
    let what = || format!("cannot use the runtime directory {}", Printable::path(dir));
    let known = match std::fs::symlink_metadata(dir) {
        Ok(known) => known,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Failure::io(&what(), &error)),
    };
    let me = rustix::process::geteuid().as_raw();
    if known.is_dir() && known.uid() == me && known.mode() & OTHERS_WRITE == 0 {
        return Ok(());
    }
    Err(Failure::new(Code::Denied, what())
        .because("it must be a directory of this user that nobody else may write to")
        .hint("choose another with --runtime-dir, or set XDG_RUNTIME_DIR"))
}

/// The failure for a socket that cannot be used.
pub(super) fn unusable(what: &str, socket: &Path, error: &io::Error) -> Failure {
    let failure = Failure::io(&format!("cannot {what} {}", Printable::path(socket)), error);
    match error.kind() {
        // Its address holds 107 bytes (unix(7)).
        io::ErrorKind::InvalidInput => failure.hint("choose a directory with a shorter path with --runtime-dir"),
        _ => failure,
    }
}

/// The control socket of a daemon that runs; its name goes with it.
#[derive(Debug)]
pub(super) struct Listener {
    inner: UnixListener,
    path: PathBuf,
    /// Device and number of the socket.
    place: Option<(u64, u64)>,
}

impl Listener {
    /// Binds the socket. The cache's lock is held, so whatever is at its path is a leftover.
    pub(super) fn bind(path: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| unusable("bind the control socket", path, &error);
        match std::fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let inner = UnixListener::bind(path).map_err(failed)?;
        let listener = Self { inner, place: place(path), path: path.to_owned() };
        // Between the two calls the umask decides; who slips in is found by `is_ours`.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(listener)
    }

    /// The next client of this user. A socket that somebody removes meanwhile is made anew: whatever cleans temporary
    /// directories must not put the daemon and its mounts out of reach.
    pub(super) async fn accept(&mut self) -> io::Result<UnixStream> {
        loop {
            let accepted = tokio::time::timeout(LOOK, self.inner.accept()).await;
            match accepted {
                Ok(client) => {
                    let (client, _) = client?;
                    if is_ours(&client) {
                        return Ok(client);
                    }
                }
                Err(_) => self.restore(),
            }
        }
    }

    /// Binds the socket again if nothing is at its path. What is there by now is somebody else's.
    fn restore(&mut self) {
        let is_gone = self.path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        let dir = self.path.parent().filter(|_| is_gone);
        match dir.map(|dir| make_runtime_dir(dir).and_then(|()| Self::bind(&self.path))) {
            None => {}
            Some(Ok(listener)) => {
                tracing::warn!(path = %self.path.display(), "the control socket was removed; it was made anew");
                // The one before has nothing to remove.
                self.place = None;
                *self = listener;
            }
            Some(Err(failure)) => tracing::debug!(%failure, "the control socket cannot be made anew"),
        }
    }
}

/// Device and number of what is at `path`.
fn place(path: &Path) -> Option<(u64, u64)> {
    path.symlink_metadata().map(|metadata| (metadata.dev(), metadata.ino())).ok()
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.place.is_none() || place(&self.path) != self.place {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "control socket is gone already");
        }
    }
}

/// True if the other end is this user, or root, who may do everything anyway.
fn is_ours(client: &UnixStream) -> bool {
    let me = rustix::process::geteuid().as_raw();
    match client.peer_cred() {
        Ok(peer) if peer.uid() == me || peer.uid() == 0 => true,
        Ok(peer) => {
            tracing::debug!(user = peer.uid(), "a client of another user is refused");
            false
        }
        Err(error) => {
            tracing::debug!(%error, "a client that cannot be known is refused");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
    }

    #[test]
    fn a_runtime_directory_must_be_one_in_which_nobody_else_makes_names() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a/ocifs");
        assert_eq!(check_runtime_dir(&path), Ok(()), "what is not there is nobody's");
        assert_eq!(make_runtime_dir(&path), Ok(()), "it is made");
        assert_eq!(std::fs::metadata(&path).expect("it is there").mode() & 0o7777, 0o700);
        let code = || make_runtime_dir(&path).map_err(|failure| failure.code);
        for mode in [0o700, 0o755] {
            set_mode(&path, mode);
            assert_eq!(code(), Ok(()), "{mode:o}");
        }
        for mode in [0o777, 0o1777, 0o770, 0o707] {
            set_mode(&path, mode);
            assert_eq!(code(), Err(Code::Denied), "{mode:o}");
        }
        set_mode(&path, 0o700);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        assert_eq!(make_runtime_dir(&link).map_err(|failure| failure.code), Err(Code::Denied));
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(65534), None).expect("root may");
            assert_eq!(code(), Err(Code::Denied), "it belongs to somebody else");
        }
    }

    #[test]
    fn a_path_that_is_too_long_for_a_socket_is_told_with_what_to_do() {
        let error = std::os::unix::net::UnixStream::connect(format!("/{}", "x".repeat(200))).expect_err("too long");
        assert!(unusable("reach", Path::new("/x"), &error).hint.is_some(), "{error:?}");
    }

    #[tokio::test]
    async fn the_socket_is_closed_to_others_whatever_was_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("s");
        std::fs::write(&socket, "left over").expect("it is ours");
        let listener = Listener::bind(&socket).expect("it can be bound");
        assert_eq!(std::fs::metadata(&socket).expect("it is there").mode() & 0o777, 0o600);
        drop(listener);
        assert!(!socket.exists(), "its name goes with it");
    }

    #[tokio::test]
    async fn a_socket_that_was_removed_is_made_anew_with_its_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("run/s");
        make_runtime_dir(socket.parent().expect("a directory")).expect("it can be made");
        let mut listener = Listener::bind(&socket).expect("it can be bound");
        std::fs::remove_dir_all(dir.path().join("run")).expect("its user may");
        listener.restore();
        let client = std::os::unix::net::UnixStream::connect(&socket).expect("it is there again");
        listener.accept().await.expect("it is heard");
        drop(client);
        std::fs::remove_file(&socket).expect("its user may");
        std::fs::write(&socket, "of somebody else").expect("a file");
        listener.restore();
        drop(listener);
        assert_eq!(std::fs::read(&socket).expect("it is left alone"), b"of somebody else");
    }
}
