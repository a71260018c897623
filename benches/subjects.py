"""What benches/mount and benches/coldstart measure: images, the line they come over, ocifs, containerd and runc.

Whatever is started here, or by what is started here, ends up a child of this process, and ends with the `Stage`.
"""
import contextlib, ctypes, fcntl, json, os, pathlib, re, shutil, signal, socket, subprocess, sys, tempfile, time

HERE = pathlib.Path(__file__).resolve().parent
OCIFS = HERE.parent / "target/release/ocifs"
RTT_MS, MBIT = 30, 200
TOOLS = ["containerd", "ctr", "curl", "docker-registry", "runc", "skopeo", "umoci"]
# What is run instead of the image's own command, where that prints no line that starts with "ready".
COMMANDS = {"base": ["/bin/bash", "-c", "echo ready"]}


class Failed(Exception):
    """A command did not do what was asked."""

    def __init__(self, command, code, said):
        super().__init__(f"{' '.join(map(str, command))}: exit code {code}\n{said}")
        self.said = said


def require(parser, *tools):
    """Ends with the parser's error if this is not root, or a program is missing."""
    if os.geteuid():
        parser.error("needs root: it mounts, drops the page cache and runs containers")
    if missing := [tool for tool in tools if not shutil.which(tool)]:
        parser.error(f"not installed: {', '.join(missing)}")


@contextlib.contextmanager
def alone(work):
    """Makes the work directory ours alone; inside, a signal or a failure ends this program after it has cleaned up."""
    def interrupted(number, _):
        for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # nothing interrupts the cleaning up
            signal.signal(other, lambda *_: None)
        sys.exit(128 + number)

    if not OCIFS.exists():
        subprocess.run(["cargo", "build", "--release"], cwd=HERE.parent, check=True)
    work.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    try:
        with open(work / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
    except BlockingIOError:
        sys.exit(f"error: another run uses {work}")
    except Failed as failure:
        sys.exit(f"error: {failure}")


class Stage:
    """A work directory, and everything that was started in it until the `with` is left."""

    def __init__(self, work):
        self.work, self.ends, self.containers = work, contextlib.ExitStack(), 0

    def __enter__(self):
        adopt_orphans()
        self.ends.callback(end_children)
        self.ends.callback(unmount_below, self.work)
        return self

    def __exit__(self, *_):
        self.ends.close()

    def start(self, name, *command, until=None):
        """Starts a server, whose stderr goes to NAME.log, and returns when it has printed the line `until`."""
        with open(self.work / f"{name}.log", "w") as log:
            child = spawn(*command, stdout=subprocess.PIPE if until else log, stderr=log, text=True)
        self.ends.callback(stop, child)
        if until and child.stdout.readline() != f"{until}\n":
            raise Failed(command, stop(child), (self.work / f"{name}.log").read_text())
        return child

    def runc(self, image, root):
        """Seconds that runc takes to run the image's command, in the tree at `root`, until it is ready."""
        self.containers += 1
        name = f"ocifs-bench-{os.getpid()}-{self.containers}"
        runc = ["runc", "--root", str(self.work / "runc")]
        try:
            return until_ready(*runc, "run", "--bundle", image.bundle(self.work / "bundle", root), name)
        finally:  # it is there only if this was interrupted
            subprocess.run([*runc, "delete", "--force", name], capture_output=True, check=False)


class Image:
    """One tag of an OCI layout."""

    def __init__(self, layout, tag):
        self.layout, self.tag = layout, tag
        name = "org.opencontainers.image.ref.name"
        manifests = json.loads((layout / "index.json").read_text())["manifests"]
        self.digest = next(one["digest"] for one in manifests if one.get("annotations", {}).get(name) == tag)
        manifest = json.loads(self.blob(self.digest).read_text())
        self.layers = manifest["layers"]
        self.size = sum(layer["size"] for layer in self.layers)
        self.config = json.loads(self.blob(manifest["config"]["digest"]).read_text()).get("config", {})

    def blob(self, digest):
        return self.layout / "blobs" / digest.replace(":", "/")

    def unpacked(self, work):
        """The image as umoci unpacks it, or as tar does if it has one layer; kept for the next time."""
        kept = work / "unpacked" / self.digest.partition(":")[2]
        if not kept.exists():
            unfinished = fresh(work / "unpacked/unfinished")
            if len(self.layers) == 1:
                (unfinished / "rootfs").mkdir()
                run("tar", "-xzf", self.blob(self.layers[0]["digest"]), "-C", unfinished / "rootfs")
            else:
                run("umoci", "unpack", "--image", f"{self.layout}:{self.tag}", unfinished / "bundle")
                (unfinished / "bundle/rootfs").rename(unfinished / "rootfs")
            unfinished.rename(kept)
        return kept / "rootfs"

    def bundle(self, directory, root):
        """Writes a bundle that runs the image's command in the tree at `root`, read-only."""
        def mount(destination, kind, *options):
            return {"destination": destination, "type": kind, "source": kind, "options": ["nosuid", *options]}

        command = (self.config.get("Entrypoint") or []) + (self.config.get("Cmd") or [])
        config = {
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "args": COMMANDS.get(self.tag, command),
                        "env": self.config.get("Env", []), "cwd": self.config.get("WorkingDir") or "/"},
            "root": {"path": str(root), "readonly": True},
            "mounts": [mount("/proc", "proc"), mount("/dev", "tmpfs", "mode=755", "size=64k"),
                       mount("/dev/shm", "tmpfs"), mount("/sys", "sysfs", "ro")],
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
        }
        (fresh(directory) / "config.json").write_text(json.dumps(config))
        return directory


class Registry:
    """The images of a layout, served on loopback with a log of all requests (benches/images serve)."""

    def __init__(self, stage, layout):
        self.stage, self.layout, self.port, self.store = stage, layout, free_port(), stage.work / "registry"
        self.start()

    def start(self):
        self.server = self.stage.start("registry", HERE / "images", "serve", self.layout, self.port, self.store,
                                       until="ready")
        self.known = (self.store / "access").stat().st_size

    @contextlib.contextmanager
    def down(self):
        stop(self.server)
        try:
            yield
        finally:
            self.start()

    def count(self):
        """Bytes and requests that were answered since the last time this was asked."""
        time.sleep(0.05)  # an answer is logged just after its last byte
        with open(self.store / "access") as log:
            log.seek(self.known)
            answers = re.findall(r'" \d{3} (\d+)', log.read())
            self.known = log.tell()
        return sum(map(int, answers)), len(answers)


class Line:
    """What is between a registry and its clients: a slow line (benches/link), or nothing if `mbit` is zero."""

    def __init__(self, stage, registry, rtt=RTT_MS, mbit=MBIT):
        self.registry, self.rtt, self.mbit, self.directory = registry, rtt, mbit, stage.work / "curl"
        self.port = free_port() if mbit else registry.port
        if mbit:
            self.counts = stage.work / f"link-{mbit}-{rtt}.counts"
            self.counts.write_text("")
            self.link = stage.start("link", HERE / "link", self.port, registry.port, "--rtt", rtt, "--mbit", mbit,
                                    "--log", self.counts, until="ready")

    def reference(self, image):
        return f"127.0.0.1:{self.port}/{image.tag}:latest"

    def count(self):
        """Bytes that came over the line since the last time this was asked, and requests that were answered."""
        size, requests = self.registry.count()
        if self.mbit:
            known = len(self.counts.read_text())
            self.link.send_signal(signal.SIGUSR1)
            while not (said := self.counts.read_text()[known:]).endswith("\n"):
                time.sleep(0.01)
            size = int(said.split()[1])
        return size, requests

    def bytes(self):
        return self.count()[0]

    def settle(self, quiet):
        """Waits until nothing was answered for some seconds."""
        settle(lambda: (self.registry.store / "access").stat().st_size, quiet)

    def download(self, image, *options):
        """Seconds that curl takes for all layers."""
        words = list(options)
        for layer in image.layers:
            words += ["-o", self.directory / layer["digest"]]
            words += [f"http://127.0.0.1:{self.port}/v2/{image.tag}/blobs/{layer['digest']}"]
        fresh(self.directory)
        took = timed("curl", "-sSf", *words)
        shutil.rmtree(self.directory)
        return took

    def download_at_once(self, image):
        """The same with a connection for each layer."""
        return self.download(image, "--parallel", "--parallel-immediate")


class Ocifs:
    """A cache directory, empty at first, and the daemon that serves it."""

    def __init__(self, stage, name):
        self.cache, self.runtime, self.point = (fresh(stage.work / part / name) for part in ("cache", "run", "mnt"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.reset()
        shutil.rmtree(self.cache)

    def command(self, *words):
        return [OCIFS, "--cache-dir", self.cache, "--runtime-dir", self.runtime, *words]

    def ask(self, *words):
        return json.loads(run(*self.command(*words, "--json")))

    def mount(self, reference, *options, fill="off"):
        """Seconds until `ocifs mount` returns."""
        return timed(*self.command("mount", "--fill", fill, *options, reference, self.point))

    def umount(self):
        run(*self.command("umount", self.point))

    def reset(self):
        """Unmounts, if anything is mounted, and ends the daemon."""
        if str(self.point) in mount_points():
            self.umount()
        self.end()

    def drop_bytes(self):
        run(*self.command("cache", "drop", "--blobs", "--files"))

    def end(self):
        """Ends the daemon; the next mount starts one."""
        with contextlib.suppress(Failed, ProcessLookupError, ChildProcessError):  # it may have ended by itself
            if pid := self.ask("status")["pid"]:
                os.kill(pid, signal.SIGTERM)
                os.waitpid(pid, 0)

    def settle(self):
        """Waits until the daemon has nothing left to do, such as checking and publishing what was read."""
        pid = self.ask("status")["pid"]

        def tenths():
            """Of a second that it has computed so far."""
            user, system = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            return (int(user) + int(system)) * 10 // os.sysconf("SC_CLK_TCK")

        settle(tenths, 3)

    def memory(self, *fields):
        """Megabytes of the daemon, by default those that are resident: all, and those that are not a mapped file."""
        return memory(self.ask("status")["pid"], *fields or ("VmRSS", "RssAnon"))


class Containerd:
    """A containerd of our own, without any image."""

    def __init__(self, stage):
        self.root = fresh(stage.work / "containerd")
        config = self.root / "config.toml"
        # cri and opt would write outside of our directory
        config.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]\n')
        self.daemon = stage.start("containerd", "containerd", "--config", config, "--address", self.root / "socket",
                                  "--root", self.root / "root", "--state", self.root / "state", "--log-level", "error")
        while self.daemon.poll() is None and self.try_to("version"):
            time.sleep(0.05)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.try_to("tasks", "rm", "--force", "bench")  # they are there only if this was interrupted
        self.try_to("containers", "rm", "bench")
        stop(self.daemon)
        unmount_below(self.root)
        shutil.rmtree(self.root)

    def command(self, *words):
        return ["ctr", "--address", str(self.root / "socket"), *words]

    def try_to(self, *words):
        return subprocess.run(self.command(*words), capture_output=True, check=False).returncode

    def pull(self, reference):
        """Seconds until the image is downloaded and unpacked."""
        return timed(*self.command("image", "pull", "--plain-http", reference))

    def run(self, reference, image):
        """Seconds until the image's command is ready."""
        return until_ready(*self.command("run", "--rm", "--read-only", reference, "bench", *COMMANDS.get(image.tag, [])))

    @contextlib.contextmanager
    def mounted(self, reference):
        """The image's tree, mounted as for a container."""
        point = fresh(self.root / "view")
        run(*self.command("image", "mount", reference, point))
        yield point
        run(*self.command("image", "unmount", "--rm", point))


def memory(pid, *fields):
    """Fields of a process's status that are sizes, in megabytes."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return tuple(int(values[name].split()[0]) * 1024 / 1e6 for name in fields)


def spawn(*command, **options):
    # A session of its own: Ctrl-C reaches this process alone, which then ends the others in order.
    return subprocess.Popen([str(word) for word in command], start_new_session=True, **options)


def run(*command):
    """The output of a command that must succeed."""
    # Files and no pipes: what is awaited is the end of the command, not of a daemon that it left behind.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = spawn(*command, stdout=out, stderr=err)
        try:
            code = child.wait()
        except BaseException:
            stop(child)
            raise
        out.seek(0)
        err.seek(0)
        if code:
            raise Failed(command, code, err.read() or out.read())
        return out.read()


def timed(*command):
    start = time.monotonic()
    run(*command)
    return time.monotonic() - start


def until_ready(*command):
    """Seconds until a command prints a line that starts with 'ready'; returns when it has ended."""
    start, took, said = time.monotonic(), None, []
    child = spawn(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for line in child.stdout:
            said.append(line)
            if took is None and line.startswith("ready"):
                took = time.monotonic() - start
        code = child.wait()
    except BaseException:
        stop(child)
        raise
    if took is None or code:
        raise Failed(command, code, "".join(said))
    return took


def settle(value, quiet=4):
    """Waits until a value has not changed for some seconds."""
    last, since = value(), time.monotonic()
    while time.monotonic() - since < quiet:
        time.sleep(0.5)
        if (now := value()) != last:
            last, since = now, time.monotonic()


def stop(child):
    """Ends a process and its group; killed if it takes long. Returns its exit code."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(subprocess.TimeoutExpired):
            if child.poll() is None:
                os.killpg(child.pid, number)
            return child.wait(10)


def adopt_orphans():
    """Daemons and shims that leave their parents become children of this process, so that none is forgotten."""
    PR_SET_CHILD_SUBREAPER = 36
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_children():
    with contextlib.suppress(ChildProcessError):
        while True:
            for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
                with contextlib.suppress(OSError):  # it has just ended
                    if int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                        os.kill(int(stat.parent.name), signal.SIGKILL)
            os.waitpid(-1, 0)


def mount_points():
    return [line.split()[1] for line in pathlib.Path("/proc/self/mounts").read_text().splitlines()]


def unmount_below(directory):
    for point in reversed(mount_points()):
        if point.startswith(f"{directory}/"):
            subprocess.run(["umount", "--lazy", point], check=False)


def drop_page_cache():
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3\n")


def fresh(directory):
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
