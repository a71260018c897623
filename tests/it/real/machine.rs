//! A machine that knows one more name: `registry.test` is this one.
//!
//! What is known to be this machine is spoken to without proxies and without asking for its certificate, so the rules for all
//! others need a name that does not tell. `/etc/hosts` is the place for it, and a mount namespace makes that a private one;
//! what is mounted in there can be seen from outside through `/proc`.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Mount, Ocifs, Ran, run};

/// A name for this machine that does not tell so.
pub(super) const NAME: &str = "registry.test";

/// An installation of ocifs on such a machine, with one mount point.
pub(super) struct Machine {
    pub(super) ocifs: Ocifs,
    point: Mount,
    hosts: PathBuf,
    /// What programs find in their environment.
    environment: Vec<(&'static str, String)>,
}

impl Machine {
    pub(super) fn new() -> Self {
        let ocifs = Ocifs::new();
        let hosts = ocifs.home().join("hosts");
        fs::write(&hosts, format!("127.0.0.1 localhost {NAME} other.test\n")).expect("a file");
        Self { point: ocifs.mount_point("m"), hosts, ocifs, environment: Vec::new() }
    }

    /// The same with a variable in the environment of its programs.
    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    /// A command on this machine.
    pub(super) fn command(&self, inner: &Command) -> Command {
        let mut command = Command::new("unshare");
        let script = r#"mount --bind "$0" /etc/hosts && exec "$@""#;
        command.args(["--mount", "--propagation", "private", "--", "sh", "-c", script]).arg(&self.hosts);
        command.arg(inner.get_program()).args(inner.get_args());
        command.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
    }

    /// Mounts; the daemon is started on this machine if there is none.
    pub(super) fn mount(&self, options: &[&str], reference: &str) -> Ran {
        let arguments = [&["mount", "--fill=off", "--profile-until=0"], options, &[reference]].concat();
        let arguments = arguments.into_iter().map(OsStr::new).chain([self.point.path().as_os_str()]);
        run(&mut self.command(&self.ocifs.command(arguments)))
    }

    pub(super) fn umount(&self) {
        self.ocifs.umount(&self.point);
    }

    /// What is mounted, as seen from outside.
    pub(super) fn root(&self) -> PathBuf {
        let daemon = self.ocifs.daemon().expect("it serves the mount").as_raw_nonzero();
        let inside = self.point.path().strip_prefix("/").expect("it is absolute");
        Path::new("/proc").join(daemon.to_string()).join("root").join(inside)
    }

    /// Mounts again with nothing here but indexes.
    pub(super) fn mount_lazily(&self, options: &[&str], reference: &str) -> Ran {
        self.umount();
        self.ocifs.drop_bytes();
        assert!(self.ocifs.end_daemon(), "it ends when it is told to");
        self.mount(options, reference)
    }
}
