"""How a program starts from an image: the modes of benches/coldstart, which are methods of `Starts`.

Each does the same to its tree: makes it, runs the image's command until that is ready, runs it once more, drops the
page cache and, if asked for, reads the whole tree; and says how long each took, what came over the line, and what the daemon needed.
"""
import contextlib, functools, signal, time

from subjects import Containerd, Failed, Line, Ocifs, Registry, drop_page_cache, memory, run, settle, timed

PROFILE_WAIT = 60  # seconds after a start until its profile must be there
PUBLISHING = 8  # seconds without a new file in the cache until none is expected: readers must be quiet for 5 before the first
PASSES = 10  # over the tree, until all files must be in the cache; one pass need not be enough
LIMIT = 30 * 60  # seconds until a measurement counts as stuck
IDLE = 10  # seconds after a full read until the daemon is looked at again


class Lines:
    """The lines that are asked for, each made when it is first used, with one registry behind all of them."""

    def __init__(self, stage, layout):
        self.stage, self.layout, self.made = stage, layout, {}

    @functools.cached_property
    def registry(self):
        return Registry(self.stage, self.layout)

    def line(self, mbit, rtt):
        if (mbit, rtt) not in self.made:
            self.made[mbit, rtt] = Line(self.stage, self.registry, rtt, mbit)
        return self.made[mbit, rtt]


class Caches:
    """Caches of one image that are made once and serve many measurements; all are filled from the OCI layout."""

    def __init__(self, stage, image):
        self.stage, self.image, self.source = stage, image, f"oci:{image.layout}:{image.tag}"
        self.made, self.ends = {}, contextlib.ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ends.close()

    def take(self, make):
        """The `Ocifs` that `make` fills, without a mount or a daemon. What could not be made is not tried again."""
        name = f"{self.image.tag}-{make.__name__}"
        if name not in self.made:
            ocifs = self.ends.enter_context(Ocifs(self.stage, name))
            try:
                make(ocifs)
                self.made[name] = ocifs
            except Failed as failure:
                self.made[name] = failure
        if isinstance(self.made[name], Failed):
            raise self.made[name]
        self.made[name].reset()
        return self.made[name]

    @property
    def indexes(self):
        """Holds the indexes of all layers and nothing else."""
        def indexes(ocifs):
            ocifs.mount(self.source)

        ocifs = self.take(indexes)
        with contextlib.suppress(Failed):  # there may be none
            run(*ocifs.command("profile", "rm", self.source))
        if not no_profile(ocifs, self.source):
            raise Failed(["ocifs", "profile", "rm"], 0, "the profile is still there")
        ocifs.drop_bytes()
        ocifs.reset()
        return ocifs

    @property
    def profile(self):
        """Holds the indexes of all layers, and the profile of one start."""
        def profile(ocifs):
            ocifs.mount(self.source)
            ocifs.umount()
            ocifs.drop_bytes()
            ocifs.mount(self.source)
            self.start(ocifs)

        ocifs = self.take(profile)
        ocifs.drop_bytes()
        ocifs.reset()
        return ocifs

    def start(self, ocifs):
        """Starts the image's command, and returns when the profile of that is there."""
        self.stage.runc(self.image, ocifs.point)
        given_up = time.monotonic() + PROFILE_WAIT
        while failure := no_profile(ocifs, self.source):
            if time.monotonic() > given_up or "unrecognized subcommand" in failure.said:
                raise failure
            time.sleep(0.2)

    @property
    def complete(self):
        """Holds the whole image, the profile of a start, and as many files as reading all of them again and again puts there."""
        def complete(ocifs):
            def files():
                return ocifs.ask("cache", "du")["files"]["count"]

            ocifs.mount(self.source, fill="now")
            while any(layer["local"] < layer["size"] for layer in ocifs.ask("status")["mounts"][0]["layers"]):
                time.sleep(0.2)
            self.start(ocifs)
            settle(files, PUBLISHING)
            for _ in range(PASSES):
                known = files()
                read_all(ocifs.point)
                settle(files, PUBLISHING)
                if files() == known:
                    break

        return self.take(complete)


class Starts:
    """One image over one line. Every public method is a mode and returns what it measured, in seconds and bytes."""

    def __init__(self, stage, caches, line, native, reads=True):
        self.stage, self.caches, self.image, self.line, self.native = stage, caches, caches.image, line, native
        self.reads = reads
        self.reference = line.reference(caches.image)

    def containerd(self):
        with Containerd(self.stage) as subject:
            result = self.follow(lambda: subject.pull(self.reference), lambda: subject.run(self.reference, self.image))
            with subject.mounted(self.reference) as tree:
                self.read(result, tree)
            return result | {"peak": memory(subject.daemon.pid, "VmHWM")[0]}

    def first_contact(self):
        with Ocifs(self.stage, "first-contact") as subject:
            return self.ocifs(subject, "--trust-index", "none")  # there may be one beside the image

    def indexes(self):
        return self.ocifs(self.caches.indexes)

    def filling(self):
        """As most people mount: what nobody reads is fetched while nobody reads."""
        return self.ocifs(self.caches.indexes, fill="idle")

    def profile(self):
        return self.ocifs(self.caches.profile)

    def shared(self):
        return self.pushed("none")

    def shared_profile(self):
        return self.pushed("auto")

    def pushed(self, profile):
        """A machine that has nothing, and an index beside the image in its registry, with the profile of a start or without."""
        run(*self.caches.profile.command("index", "--push", "--replace", "--profile", profile, self.reference))
        self.caches.profile.reset()
        with Ocifs(self.stage, "shared") as subject:
            drop_page_cache()
            self.line.count()
            subject.mount(self.reference)
            size, requests = self.line.count()
        with Ocifs(self.stage, "shared") as subject:
            return self.ocifs(subject) | {"bytes until mounted": size, "requests until mounted": requests}

    def restart(self):
        """The registry is down, and the image was in use until a moment ago: mounted and started once more."""
        subject = self.caches.complete
        subject.mount(self.reference)
        subject.reset()
        with self.line.registry.down(), contextlib.ExitStack() as ends:
            ends.callback(subject.reset)
            subject.mount(self.reference, "--offline")
            self.stage.runc(self.image, subject.point)
            subject.umount()
            result = {"mount": subject.mount(self.reference, "--offline")}
            return result | {"again": result["mount"] + self.stage.runc(self.image, subject.point)}

    def second_start(self):
        subject = self.caches.complete
        subject.mount(self.reference)  # the tag's meaning is in the cache from now on
        subject.reset()
        with self.line.registry.down():
            return self.ocifs(subject, "--offline")

    def full_read(self):
        """Reads the tree first of all."""
        subject = self.caches.indexes
        with contextlib.ExitStack() as ends:
            ends.callback(subject.reset)
            drop_page_cache()
            self.line.count()
            result = {"mount": subject.mount(self.reference)}
            result["full"] = result["mount"] + read_all(subject.point)
            result["bytes"], result["requests"] = self.line.count()
            result["peak"] = subject.memory("VmHWM")[0]
            time.sleep(IDLE)
            result["idle"] = subject.memory("VmRSS")[0]
        return result

    def download(self):
        """All layers by curl, which the full read is compared with."""
        drop_page_cache()
        self.line.count()
        result = {"full": self.line.download_at_once(self.image)}
        result["bytes"], result["requests"] = self.line.count()
        return result

    def native_directory(self):
        result = self.follow(lambda: 0, lambda: self.stage.runc(self.image, self.native))
        return self.read(result, self.native)

    def ocifs(self, subject, *options, fill="off"):
        with contextlib.ExitStack() as ends:
            ends.callback(subject.reset)
            result = self.follow(lambda: subject.mount(self.reference, *options, fill=fill),
                                 lambda: self.stage.runc(self.image, subject.point))
            self.read(result, subject.point)
            return result | {"peak": subject.memory("VmHWM")[0]}

    def follow(self, mount, start):
        drop_page_cache()
        self.line.count()
        result = {"mount": mount()}
        result["ready"] = result["mount"] + start()
        result["bytes until ready"], result["requests until ready"] = self.line.count()
        result["again"] = start()
        return result

    def read(self, result, tree):
        if not self.reads:
            return result
        drop_page_cache()
        result["full"] = read_all(tree)
        size, requests = self.line.count()
        result["bytes"] = result["bytes until ready"] + size
        result["requests"] = result["requests until ready"] + requests
        return result


# The modes in the order of the table: what a mode is called, what is said about it, and which method of `Starts` it is.
MODES = {
    "containerd": ("containerd overlayfs, pull + run", Starts.containerd),
    "first-contact": ("ocifs, first contact", Starts.first_contact),
    "indexes": ("ocifs, indexes only", Starts.indexes),
    "filling": ("ocifs, indexes only, default fill", Starts.filling),
    "profile": ("ocifs, indexes + profile", Starts.profile),
    "shared": ("ocifs, empty cache, shared index", Starts.shared),
    "shared-profile": ("ocifs, the same with profile", Starts.shared_profile),
    "second-start": ("ocifs, second start, registry down", Starts.second_start),
    "restart": ("ocifs, mounted again, registry down", Starts.restart),
    "native": ("native directory, runc", Starts.native_directory),
    "full-read": ("ocifs, indexes only, mount + full read", Starts.full_read),
    "download": ("curl of all layers at once", Starts.download),
}


def no_profile(ocifs, reference):
    """Why `ocifs profile show` has none; None if it has one."""
    try:
        run(*ocifs.command("profile", "show", reference))
    except Failed as failure:
        return failure


def read_all(tree):
    """Seconds to read a whole tree. tar itself reads nothing if its output is /dev/null."""
    return timed("bash", "-c", 'set -o pipefail; tar -C "$1" -c . | cat >/dev/null', "bash", tree)


@contextlib.contextmanager
def limited(what, seconds=LIMIT):
    """Fails if what is inside takes longer."""
    def stuck(*_):
        raise Failed([what], "none", f"stuck: it took more than {seconds} s")

    signal.signal(signal.SIGALRM, stuck)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
