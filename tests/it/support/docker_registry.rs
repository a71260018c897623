//! A real registry: Debian's docker-registry, with a store of its own, on a port the kernel chose.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use tempfile::TempDir;

use super::{require, skopeo_copy, temp_dir};

/// Longest that it may take to listen.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running docker-registry; dropping it kills it and removes its store.
#[derive(Debug)]
pub(crate) struct DockerRegistry {
    child: Child,
    addr: String,
    store: TempDir,
}

impl DockerRegistry {
    /// Starts one without authentication; none, loudly, if there is no docker-registry or no skopeo.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with("")
    }

    /// Like [`Self::start`], with more lines of configuration (YAML, top level).
    pub(crate) fn start_with(configuration: &str) -> Option<Self> {
        if !require(&["docker-registry", "skopeo"]) {
            return None;
        }
        let store = temp_dir();
        let root = store.path().join("data");
        let config = store.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: info, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: '127.0.0.1:0'}}\n{configuration}\n",
            root.display(),
        );
        std::fs::write(&config, text).expect("the configuration can be written");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("REGISTRY_")) {
            command.env_remove(name);
        }
        let mut child = command.spawn().expect("docker-registry can be started");
        let stderr = child.stderr.take().expect("stderr is a pipe");
        let (send, receive) = mpsc::channel();
        // The thread goes on reading, so that the registry never waits for its log, and ends with it.
        std::thread::spawn(move || {
            let mut said = String::new();
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let addr = line.split_once("listening on ").and_then(|(_, rest)| rest.split(['"', ',', ' ']).next());
                if let Some(addr) = addr {
                    send.send(Ok(addr.to_owned())).ok();
                } else if said.len() < 4096 {
                    said.push_str(&line);
                    said.push('\n');
                }
            }
            send.send(Err(said)).ok();
        });
        let mut registry = Self { child, addr: String::new(), store };
        registry.addr = match receive.recv_timeout(PATIENCE) {
            Ok(Ok(addr)) => addr,
            Ok(Err(said)) => panic!("docker-registry ended: {said}"),
            Err(_) => panic!("docker-registry does not listen after {PATIENCE:?}"),
        };
        Some(registry)
    }

    /// Where it listens, as `127.0.0.1:PORT`.
    pub(crate) fn addr(&self) -> &str {
        &self.addr
    }

    /// Its store, for tests that damage it.
    pub(crate) fn store(&self) -> &Path {
        self.store.path()
    }

    /// Pushes an image of a layout, byte for byte; `name` is `REPOSITORY:TAG`.
    pub(crate) fn push(&self, layout: &Path, tag: &str, name: &str) {
        skopeo_copy(&format!("oci:{}:{tag}", layout.display()), &format!("docker://{}/{name}", self.addr));
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        // It may have ended by itself, which is no news here.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
