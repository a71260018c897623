//! Failures as users see them: what failed, why, what to do about it, and the exit code that scripts read.

use std::error::Error as StdError;

use serde::{Deserialize, Serialize};

use crate::fuse::{MountError, UnmountError};
use crate::oci::{ManifestError, Message};
use crate::source::ErrorKind;
use crate::{fetch, image, parcel, share, source, store};

/// The class of a failure; its number is the exit code of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// Anything not listed below.
    Other = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The image, tag, platform or path does not exist.
    NotFound = 3,
    /// Credentials are missing or do not suffice, or a file may not be accessed.
    Denied = 4,
    /// The registry cannot be reached, or the mount is offline and the cache does not have it.
    Unreachable = 5,
    /// The image is damaged, hostile or of a kind that cannot be used.
    BadImage = 6,
    /// The mount point or the FUSE device cannot be used.
    Mount = 7,
    /// The mount is in use.
    Busy = 8,
    /// The cache directory cannot be used.
    Cache = 9,
}

/// A failure to show: `error:`, `cause:` lines and `hint:`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Its class.
    pub code: Code,
    /// What failed, on what.
    pub error: String,
    /// Why, from the outermost cause inwards.
    #[serde(default)]
    pub causes: Vec<String>,
    /// What the user could do.
    #[serde(default)]
    pub hint: Option<String>,
}

impl Failure {
    /// A failure without a further cause.
    pub fn new(code: Code, error: impl Into<String>) -> Self {
        Self { code, error: error.into(), causes: Vec::new(), hint: None }
    }

    /// Adds advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a cause in words.
    #[must_use]
    pub fn because(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// The same failure under another class.
    #[must_use]
    pub fn coded(mut self, code: Code) -> Self {
        self.code = code;
        self
    }

    /// A failure with the chain of causes of `error`, itself included as the error.
    pub fn of(code: Code, error: &dyn StdError) -> Self {
        let mut failure = Self::new(code, plain(&error.to_string()));
        failure.add_causes(error.source());
        failure
    }

    /// A failed system call.
    pub fn io(what: &str, error: &std::io::Error) -> Self {
        let code = match error.kind() {
            std::io::ErrorKind::PermissionDenied => Code::Denied,
            _ => Code::Other,
        };
        let mut failure = Self::new(code, plain(what));
        failure.causes.push(error.to_string());
        failure
    }

    fn add_causes(&mut self, mut cause: Option<&dyn StdError>) {
        while let Some(error) = cause {
            let text = plain(&error.to_string());
            // Transparent wrappers repeat what they wrap.
            if text != self.error && self.causes.last() != Some(&text) {
                self.causes.push(text);
            }
            cause = error.source();
        }
    }

    /// The same failure of work in which the cache cannot stand in for a registry.
    #[must_use]
    pub(super) fn online(mut self) -> Self {
        if self.hint.as_deref() == Some(OFFLINE) {
            self.hint = Some(NETWORK.to_owned());
        }
        self
    }

    /// The same failure about an image the user named.
    #[must_use]
    pub fn about(mut self, what: String) -> Self {
        let inner = std::mem::replace(&mut self.error, what);
        self.causes.insert(0, inner);
        self
    }
}

/// Text without control characters, whoever wrote it (D-070).
fn plain(text: &str) -> String {
    Message(text).to_string()
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.error)
    }
}

impl StdError for Failure {}

impl From<&image::Error> for Failure {
    fn from(error: &image::Error) -> Self {
        let code = match error {
            image::Error::Source(error) => return Self::from(error),
            image::Error::Fetch(error) => return Self::from(error),
            image::Error::Store(error) => return Self::from(error),
            image::Error::Platform(_) => {
                return Self::of(Code::NotFound, error).hint("choose one of them with --platform");
            }
            image::Error::Manifest { source, .. } if matches!(**source, ManifestError::NotRunnable(_)) => {
                return Self::of(Code::BadImage, error).hint("this is an artifact, not a container image");
            }
            image::Error::Lacking { lacking, count } => {
                return super::lacking::failure(lacking, *count).unwrap_or_else(|| Self::of(Code::Unreachable, error));
            }
            image::Error::Offline(_) => {
                return Self::of(Code::Unreachable, error).hint("leave out --offline to fetch it");
            }
            image::Error::Manifest { .. }
            | image::Error::Config { .. }
            | image::Error::Depth(_)
            | image::Error::DiffId(_)
            | image::Error::Tree(_) => Code::BadImage,
            image::Error::Interrupted => Code::Other,
        };
        Self::of(code, error)
    }
}

impl From<&share::Error> for Failure {
    fn from(error: &share::Error) -> Self {
        match error {
            share::Error::Source(error) => Self::from(error),
            share::Error::Manifest { .. } | share::Error::Artifact { .. } | share::Error::Convert { .. } => {
                Self::of(Code::BadImage, error)
            }
            share::Error::Layout { .. } => Self::of(Code::Other, error),
        }
    }
}

impl From<&source::Error> for Failure {
    fn from(error: &source::Error) -> Self {
        let code = match error.kind() {
            ErrorKind::NotFound | ErrorKind::Ambiguous => Code::NotFound,
            ErrorKind::Denied => Code::Denied,
            ErrorKind::Unreachable => Code::Unreachable,
            ErrorKind::Corrupt | ErrorKind::Invalid | ErrorKind::Unsupported => Code::BadImage,
            ErrorKind::Io if is_forbidden(error) => Code::Denied,
            ErrorKind::Io => Code::Other,
            ErrorKind::Misconfigured => Code::Usage,
        };
        let usual = (code == Code::Unreachable).then_some(OFFLINE);
        Self { hint: error.advice().or(usual).map(plain), ..Self::of(code, error) }
    }
}

/// What can be done about somebody who cannot be reached.
const NETWORK: &str = "check the name and the network";

/// The same, where the cache can stand in.
const OFFLINE: &str = "check the name and the network; `ocifs mount --offline` shows what the cache has";

/// True if a file may not be read by this user.
fn is_forbidden(error: &source::Error) -> bool {
    error.source().is_some_and(|cause| {
        let kind = match cause.downcast_ref::<rustix::io::Errno>() {
            Some(errno) => Some(errno.kind()),
            None => cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind),
        };
        kind == Some(std::io::ErrorKind::PermissionDenied)
    })
}

impl From<&fetch::Error> for Failure {
    fn from(error: &fetch::Error) -> Self {
        let code = match error {
            fetch::Error::Source(error) => return Self::from(error),
            fetch::Error::Store(error) => return Self::from(error.as_ref()),
            fetch::Error::Offline { .. } => {
                return Self::of(Code::Unreachable, error).hint("leave out --offline to fetch them");
            }
            fetch::Error::Disproven { .. } => {
                return Self::of(Code::BadImage, error).hint(
                    "nothing is read of this mount any more; mount the image again: its true index is in the cache now",
                );
            }
            fetch::Error::Corrupt { .. } | fetch::Error::Rejected { .. } => Code::BadImage,
            fetch::Error::Index(_) => Code::Cache,
            fetch::Error::Interrupted => Code::Other,
        };
        Self::of(code, error)
    }
}

impl From<&store::Error> for Failure {
    fn from(error: &store::Error) -> Self {
        let failure = Self::of(Code::Cache, error);
        match error {
            store::Error::Busy(_) => {
                failure.hint("use the mounts of its daemon, perhaps with another --runtime-dir, or another --cache-dir")
            }
            store::Error::Version { .. } => failure.hint("use the newer ocifs, or another --cache-dir"),
            store::Error::Io { source, .. }
                if matches!(
                    source.kind(),
                    std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                failure.hint("choose a directory that you may write to with --cache-dir")
            }
            store::Error::Io { .. } if error.is_out_of_space() => failure
                .hint("free some space, e.g. with `ocifs cache drop --files --blobs`, or choose another --cache-dir"),
            store::Error::Size { .. } | store::Error::Mismatch(_) => failure.coded(Code::BadImage),
            store::Error::Foreign { .. } => failure.hint("choose another directory with --cache-dir"),
            store::Error::Incomplete(_) => {
                failure.hint("the cache had no room for what was fetched, or was changed by somebody else")
            }
            store::Error::Io { .. } => failure,
        }
    }
}

impl From<&parcel::Error> for Failure {
    fn from(error: &parcel::Error) -> Self {
        use parcel::Error;
        let code = match error {
            Error::Store(error) => return Self::from(error),
            Error::Write(_) | Error::Read(_) => Code::Other,
            Error::Foreign => {
                return Self::of(Code::Usage, error).hint("`ocifs cache export` writes what can be imported");
            }
            Error::Version { .. } => {
                return Self::of(Code::Usage, error).hint("export it again with the same version of ocifs");
            }
            Error::Truncated | Error::Damaged(_) => {
                return Self::of(Code::BadImage, error)
                    .hint("what came before the fault was verified and is kept; transfer or export the parcel again");
            }
            Error::Malformed(_) | Error::Layer { .. } | Error::Rejected { .. } | Error::Index { .. } => Code::BadImage,
            Error::Windows(_) => return Self::of(Code::Busy, error).hint("try again in a moment"),
            Error::Rotten(_) => {
                return Self::of(Code::Cache, error).hint("`ocifs cache verify` removes what is damaged");
            }
        };
        Self::of(code, error)
    }
}

impl From<&MountError> for Failure {
    fn from(error: &MountError) -> Self {
        let failure = Self::of(Code::Mount, error);
        match error {
            MountError::NoDevice(source) => no_device(failure, source),
            MountError::Refused { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                failure.hint("mounting needs CAP_SYS_ADMIN, or fusermount3 (package fuse3) for other users")
            }
            MountError::Refused { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                failure.hint("users other than root mount through fusermount3: install the package fuse3")
            }
            MountError::Refused { .. } if !rustix::process::geteuid().is_root() => failure.hint(
                "users other than root mount through fusermount3, which must be set-user-ID root, on directories of their own",
            ),
            MountError::Refused { .. } | MountError::Handshake { .. } => failure,
        }
    }
}

/// Adds what to do when /dev/fuse cannot be opened.
pub(super) fn no_device(failure: Failure, source: &std::io::Error) -> Failure {
    match source.kind() {
        std::io::ErrorKind::PermissionDenied => {
            failure.hint("let this user read and write it; everybody may where its mode is 0666, as is usual")
        }
        _ => failure.hint("load the module with `modprobe fuse`; in a container, pass --device /dev/fuse"),
    }
}

impl From<&UnmountError> for Failure {
    fn from(error: &UnmountError) -> Self {
        match error {
            UnmountError::Busy { .. } => {
                Self::of(Code::Busy, error).hint("end what uses it, or detach the mount with `ocifs umount --lazy`")
            }
            UnmountError::Refused { .. } if !rustix::process::geteuid().is_root() => {
                Self::of(Code::Denied, error).hint("only root may end the mounts of other users")
            }
            UnmountError::Refused { .. } => Self::of(Code::Other, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_may_not_be_read_is_denied_and_one_that_cannot_be_is_not() {
        let code = |error: source::Error| Failure::from(&error).code;
        let failed = || source::Error::new(ErrorKind::Io, "cannot open it");
        assert_eq!(code(failed().because(rustix::io::Errno::ACCESS)), Code::Denied);
        assert_eq!(code(failed().because(std::io::Error::from(std::io::ErrorKind::PermissionDenied))), Code::Denied);
        assert_eq!(code(failed().because(rustix::io::Errno::IO)), Code::Other);
        assert_eq!(code(failed()), Code::Other);
    }

    #[test]
    fn an_unreachable_host_is_told_with_advice() {
        let refused = std::io::Error::other("Connection refused");
        let failure =
            Failure::from(&source::Error::new(ErrorKind::Unreachable, "cannot reach r.example").because(refused));
        assert_eq!(failure.causes, ["Connection refused"]);
        assert!(failure.hint.is_some_and(|hint| hint.starts_with("check the name and the network")));
    }

    #[test]
    fn a_cache_that_is_read_only_is_told_with_advice() {
        let source = std::io::ErrorKind::ReadOnlyFilesystem.into();
        let failure = Failure::from(&store::Error::Io { action: "create", path: "/c".into(), source });
        assert_eq!(failure.hint.as_deref(), Some("choose a directory that you may write to with --cache-dir"));
    }

    #[test]
    fn d_070_what_was_escaped_is_not_escaped_again() {
        let name = crate::oci::Printable(b"a\xff\n").to_string();
        let error = source::Error::new(ErrorKind::Io, format!("cannot open {name}"));
        assert_eq!(Failure::from(&error).error, "cannot open a\\xff\\n");
    }
}
