//! Containers run from a mount: an OCI runtime bundle whose root is the mount, under runc and crun, read-only and with a
//! kernel overlay on top.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ocifs::demo::image::{self, Options};
use ocifs::demo::registry::Content;
use serde_json::{Value, json};

use crate::support::{Embedded, Mount, Ocifs, Overlay, Ran, require, require_fuse, require_root, run};

/// The demo image, mounted lazily: of its layers only the indexes are here.
#[derive(Debug)]
struct Demo {
    ocifs: Ocifs,
    point: Mount,
    _registry: Embedded,
}

impl Demo {
    fn mounted() -> Option<Self> {
        if !require_fuse() || !require_root() {
            return None;
        }
        let content = Content::new();
        let options = Options { large_bytes: 4 << 20, ..Options::default() };
        image::build(&content, "demo", "latest", &options).expect("this host has a shell");
        let registry = Embedded::start(content);
        let ocifs = Ocifs::new();
        let point = ocifs.mount_point("root");
        ocifs.mount(&registry.name("demo:latest"), &point);
        ocifs.umount(&point);
        ocifs.drop_bytes();
        ocifs.mount(&registry.name("demo:latest"), &point);
        Some(Self { ocifs, point, _registry: registry })
    }
}

/// A container runtime.
#[derive(Debug, Clone, Copy)]
enum Runtime {
    Runc,
    Crun,
}

impl Runtime {
    const ALL: [Self; 2] = [Self::Runc, Self::Crun];

    fn program(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
        }
    }

    /// A command of this runtime with a state directory of its own.
    fn command(self, state: &Path, args: &[&str]) -> Command {
        let mut command = match self {
            Self::Runc => Command::new("runc"),
            // crun refuses hosts that mount both versions of cgroups, even if it is to use none, so that it gets a mount
            // namespace with one version only.
            Self::Crun if Path::new("/sys/fs/cgroup/unified").exists() => {
                let mut command = Command::new("unshare");
                let script = "mount -t cgroup2 none /sys/fs/cgroup && exec crun --cgroup-manager=disabled \"$@\"";
                command.args(["--mount", "sh", "-c", script, "crun"]);
                command
            }
            Self::Crun => {
                let mut command = Command::new("crun");
                command.arg("--cgroup-manager=disabled");
                command
            }
        };
        command.arg("--root").arg(state).args(args);
        command
    }
}

/// A bundle and its one container, which is deleted with it.
#[derive(Debug)]
struct Container {
    runtime: Runtime,
    directory: PathBuf,
    id: String,
}

impl Container {
    /// Writes a bundle for `root` that runs a shell script as a user.
    fn new(
        runtime: Runtime,
        home: &Path,
        name: &str,
        root: &Path,
        readonly: bool,
        (user, script): (u32, &str),
    ) -> Self {
        let directory = home.join(format!("{}-{name}", runtime.program()));
        fs::create_dir_all(directory.join("bundle")).expect("a directory");
        let config = configuration(root, readonly, user, script).to_string();
        fs::write(directory.join("bundle/config.json"), config).expect("a bundle can be written");
        // The identifier is also the name of a control group, which all tests of the machine share.
        let id = format!("ocifs-it-{}-{}-{name}", std::process::id(), runtime.program());
        Self { runtime, directory, id }
    }

    fn run(&self) -> Ran {
        let bundle = self.directory.join("bundle");
        let args = ["run", "--bundle", &bundle.to_string_lossy(), &self.id];
        run(&mut self.runtime.command(&self.directory.join("state"), &args))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // After a good run there is nothing left to delete, which the runtime calls an error.
        let args = ["delete", "--force", &self.id];
        run(&mut self.runtime.command(&self.directory.join("state"), &args));
    }
}

/// The configuration of a container (runtime-spec config.md), as little as a shell needs.
fn configuration(root: &Path, readonly: bool, user: u32, script: &str) -> Value {
    let tmpfs = ["nosuid", "mode=755", "size=1m"];
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": root, "readonly": readonly },
        "hostname": "ocifs-it",
        "process": {
            "terminal": false,
            "user": { "uid": user, "gid": user },
            "args": ["/bin/sh", "-c", script],
            "env": ["PATH=/bin:/usr/bin"],
            "cwd": "/",
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": tmpfs },
        ],
        "linux": {
            "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }],
        },
    })
}

/// Shows what the layers made of the tree, reads all programs the image has, and tries to write.
const LOOK: &str = "cat /srv/demo/replaced.txt; ls -R /srv/demo; id -u; cat /bin/* >/dev/null && echo read; \
                    (echo new >/srv/demo/new.txt) 2>/dev/null || echo refused";

const TREE: &str = "This is the second layer's version.\n\
                    /srv/demo:\nkept.txt\nlarge.log\nopaque\nreplaced.txt\n\n/srv/demo/opaque:\nnew.txt\n";

#[test]
fn a_container_runs_on_the_mount() {
    if !require(&["runc", "crun", "unshare"]) {
        return;
    }
    let Some(demo) = Demo::mounted() else { return };
    for runtime in Runtime::ALL {
        for (name, user) in [("root", 0), ("user", 1000)] {
            let home = demo.ocifs.home();
            let container = Container::new(runtime, home, name, demo.point.path(), true, (user, LOOK));
            let said = container.run().ok();
            assert_eq!(said.stdout, format!("{TREE}{user}\nread\nrefused\n"), "{runtime:?}: {}", said.stderr);
        }
    }
    let status = demo.ocifs.status(&demo.point);
    let fetched: Vec<u64> = status["mounts"][0]["layers"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|layer| layer["fetched"].as_u64())
        .collect();
    assert!(fetched[0] > 0 && fetched[2] == 0, "nobody read the large file, so its layer stays away: {fetched:?}");
    demo.ocifs.umount(&demo.point);
}

#[test]
fn a_container_ends_with_its_own_exit_code() {
    if !require(&["runc", "crun", "unshare"]) {
        return;
    }
    let Some(demo) = Demo::mounted() else { return };
    for runtime in Runtime::ALL {
        let script = "test -s /srv/demo/large.log && exit 42";
        let container = Container::new(runtime, demo.ocifs.home(), "exit", demo.point.path(), true, (0, script));
        assert_eq!(container.run().code(), 42, "{runtime:?}");
    }
}

#[test]
fn a_211_a_container_writes_to_an_overlay_on_the_mount() {
    if !require(&["runc", "crun", "unshare"]) {
        return;
    }
    let Some(demo) = Demo::mounted() else { return };
    let script = "echo new >/srv/demo/new.txt && echo more >>/srv/demo/kept.txt && tail -n1 /srv/demo/kept.txt && \
                  cat /srv/demo/new.txt && wc -c </srv/demo/large.log && id -u";
    for runtime in Runtime::ALL {
        let home = demo.ocifs.home().join(runtime.program());
        let overlay = Overlay::over(demo.point.path(), &home);
        let container = Container::new(runtime, &home, "overlay", overlay.root(), false, (0, script));
        let said = container.run().ok();
        assert_eq!(said.stdout, format!("more\nnew\n{}\n0\n", 4 << 20), "{runtime:?}: {}", said.stderr);
        assert_eq!(fs::read(overlay.upper().join("srv/demo/new.txt")).expect("it is kept there"), b"new\n");
    }
    assert!(!demo.point.path().join("srv/demo/new.txt").exists(), "the image is as it was");
    let kept = fs::read_to_string(demo.point.path().join("srv/demo/kept.txt")).expect("a file");
    assert!(!kept.contains("more"));
    demo.ocifs.umount(&demo.point);
}
