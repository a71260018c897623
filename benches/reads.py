"""What single reads cost, each beside the same file of the unpacked image on ext4, or beside the line.

A measure is made in turns of all that it compares, and gives the rows of the second table of benches/coldstart: what
was measured, all values, those of what is beside it, and the target (`most` or `least`, of the ratio if there is a
beside).
"""
import contextlib, json, os, pathlib, random, shutil, stat, threading, time

from starts import read_all
from subjects import Failed, Line, Ocifs, drop_page_cache, run, timed

BLOCK = 1 << 20
SMALL = 64 << 10  # the largest size of a small file
LARGE = 64 << 20  # the least size of a large one
READERS, SMALL_FILES, THREADS = 64, 2000, 32
FIO_SECONDS = 1
LONG_MS = 400  # a round trip beside which nothing else counts


class Reads:
    """The measures of one image; the public methods yield rows."""

    def __init__(self, stage, caches, line, native, runs):
        self.stage, self.caches, self.line, self.native, self.runs = stage, caches, line, native, runs
        self.reference = line.reference(caches.image)

    def trees(self):
        """Warm `find -ls` and `tar c` of the whole tree."""
        walks = {"find -ls": lambda tree: timed("find", tree, "-ls"), "tar c": read_all}
        for what, walk in walks.items():
            seen, beside, asked = [], [], []
            with self.complete("cached") as subject:
                for tree in (subject.point, self.native):
                    walk(tree)
                    walk(tree)
                subject.settle()
                for _ in range(self.runs):
                    before = kernel_requests(subject)
                    seen.append(walk(subject.point))
                    asked.append(kernel_requests(subject) - before if before is not None else None)
                    beside.append(walk(self.native))
            yield row(f"warm {what} of the tree, --io cached", "s", seen, ("ext4", beside), most=1.1)
            if None not in asked:
                yield row("  requests of the kernel meanwhile", "", asked)

    def sequential(self):
        """The largest file from its beginning to its end, in the passthrough mode."""
        name = max(self.files(), key=lambda one: one[1])[0]
        for cold, target in ((False, 0.95), (True, 0.9)):
            seen, beside = [], []
            with self.complete("passthrough") as subject:
                here, there = subject.point / name, self.native / name
                for path in (here, there):
                    read_file(path)
                subject.settle()
                for _ in range(3 * self.runs):
                    seen.append(speed(here, cold))
                    beside.append(speed(there, cold))
            size = (self.native / name).stat().st_size / 1e6
            cache = "cold" if cold else "warm"
            yield row(f"sequential read, {size:.0f} MB, page cache {cache}, --io passthrough", "MB/s", seen,
                      ("ext4", beside), least=target)

    def randomly(self):
        """4 KiB anywhere in the largest file, which is in the page cache."""
        name = max(self.files(), key=lambda one: one[1])[0]
        for io in ("passthrough", "cached"):
            seen, beside = [], []
            with self.complete(io) as subject:
                here, there = subject.point / name, self.native / name
                for path in (here, there):
                    read_file(path)
                subject.settle()
                for _ in range(self.runs):
                    seen.append(random_reads(here) / 1e3)
                    beside.append(random_reads(there) / 1e3)
            yield row(f"random 4 KiB reads, warm, --io {io}", "k/s", seen, ("ext4", beside), least=0.95)

    def io(self):
        """What `--io auto` takes, beside the other mode: the program starts and reads what the image is for, which is its
        large files if it has some, else its tree; first from the disk, and then from memory."""
        large = [name for name, size in self.files() if size >= LARGE]

        def use(point):
            started = self.stage.runc(self.caches.image, point)
            files = [point / name for name in large]
            return started + (timed("bash", "-c", 'cat "$@" >/dev/null', "bash", *files) if large else read_all(point))

        took = {}
        for turn in range(self.runs):
            for io in ("auto", "cached", "passthrough")[:: 1 if turn % 2 else -1]:
                with self.complete(io) as subject:
                    chosen = subject.ask("status")["mounts"][0]["io"]
                    took.setdefault(io, (chosen, []))[1].append((use(subject.point), use(subject.point)))
        chosen, seen = took["auto"]
        other = {"cached": "passthrough", "passthrough": "cached"}[chosen]
        beside, what = took[other][1], "large files" if large else "tree"
        for number, cache in enumerate(("cold", "warm")):
            yield row(f"start and read of the {what}, page cache {cache}, --io auto: {chosen}", "s",
                      [times[number] for times in seen], (other, [times[number] for times in beside]))
        yield row("  both", "s", [sum(times) for times in seen], (other, [sum(times) for times in beside]), most=1)

    def flight(self):
        """Many processes that want the same missing span."""
        small = [name for name, size in self.files() if 1024 <= size <= 4096]
        choose, asked = random.Random(3), []
        for _ in range(20 * self.runs):
            with self.cold() as subject:
                self.line.settle(2)  # what is fetched ahead for the entry point
                self.line.count()
                together(subject.point / choose.choice(small))
                self.line.settle(1)
                requests = self.line.count()[1]
            if requests:  # none: it was in a span that is here already
                asked.append(requests)
            if len(asked) == self.runs:
                break
        if not asked:
            raise Failed(["reading"], 0, "every file that was tried was here already")
        yield row(f"{READERS} processes that read one missing span: GETs, at most", "", [max(asked)], most=1)

    def small_files(self):
        """Cold small files all over the image, in any order."""
        small = sorted(name for name, size in self.files() if 0 < size <= SMALL)
        seen, needed, took = [], [], []
        for turn in range(self.runs):
            names = random.Random(turn).sample(small, min(SMALL_FILES, len(small)))
            with self.cold() as subject:
                self.line.count()
                start = time.monotonic()
                by_threads([subject.point / name for name in names])
                took.append(time.monotonic() - start)
                needed.append(self.line.count()[0] / 1e6)
                seen.append(needed[-1] / took[-1])
        beside = (f"line of {self.line.mbit} Mbit/s", [self.line.mbit / 8]) if self.line.mbit else None
        yield row(f"{len(names):,} cold small files by {THREADS} threads", "MB/s", seen, beside,
                  least=0.9 if beside else None)
        yield row("  over the line", "MB", needed)
        yield row("  until all were read", "s", took)

    def travel(self):
        """The mount of a machine that has nothing, while the index lies in the registry: the round trips that it waits for, by
        how much longer it takes over a line of long ones (connections are made at once: a real line adds one to make the
        first), and the bytes: manifest, configuration, and what it needs of the indexes."""
        near, far = (Line(self.stage, self.line.registry, rtt, 1000) for rtt in (0, LONG_MS))
        reference, image = near.reference(self.caches.image), self.caches.image
        made, = json.loads(run(*self.caches.profile.command("index", "--json", "--push", "--replace", reference)))
        self.caches.profile.reset()
        took = {near: [], far: []}
        for _ in range(self.runs):
            for line, times in took.items():
                with Ocifs(self.stage, "travel") as subject:
                    drop_page_cache()
                    times.append(subject.mount(line.reference(image)))
        trips = [(long - short) * 1000 / LONG_MS for short, long in zip(took[near], took[far])]
        yield row("mount with an index from the registry: round trips", "", trips, most=6)
        manifest = image.blob(image.digest)
        config = image.blob(json.loads(manifest.read_text())["config"]["digest"])
        needed = sum(layer["metadata_size"] for layer in made["layers"]) + sum(
            path.stat().st_size for path in (manifest, config))
        yield row(f"  bytes that it waits for, of {image.size / 1e6:.0f} MB", "%", [100 * needed / image.size], most=1)

    @contextlib.contextmanager
    def complete(self, io):
        """The image with everything in the cache, mounted with this I/O mode."""
        with mounted(self.caches.complete, self.caches.source, "--io", io) as subject:
            yield subject

    @contextlib.contextmanager
    def cold(self):
        """The image with nothing but the indexes in the cache."""
        with mounted(self.caches.indexes, self.reference) as subject:
            yield subject

    def files(self):
        """Every regular file of the image: its path in the tree, and its size."""
        for directory, _, names in os.walk(self.native):
            for name in names:
                path = pathlib.Path(directory, name)
                if stat.S_ISREG((found := path.lstat()).st_mode):
                    yield path.relative_to(self.native), found.st_size


MEASURES = {"trees": Reads.trees, "sequential": Reads.sequential, "random": Reads.randomly, "io": Reads.io,
            "flight": Reads.flight,
            "small-files": Reads.small_files, "travel": Reads.travel}


@contextlib.contextmanager
def mounted(subject, reference, *options):
    drop_page_cache()
    try:
        subject.mount(reference, *options)
        yield subject
    finally:
        subject.reset()


def row(what, unit, values, beside=None, *, most=None, least=None):
    return {"what": what, "unit": unit, "values": values, "beside": beside, "most": most, "least": least}


def kernel_requests(subject):
    """How many requests of the kernel the daemon has answered for this mount; None if `status` does not say."""
    said = subject.ask("status")["mounts"][0].get("kernel_requests")
    return sum(said.values()) if isinstance(said, dict) else said


def read_file(path):
    """Reads a file from its beginning to its end."""
    with open(path, "rb", buffering=0) as file:
        while file.read(BLOCK):
            pass


def speed(path, cold):
    """Megabytes per second of one sequential read. Cold, opening is part of it; warm, where a read takes milliseconds,
    it is not, and the best of several counts."""
    block, took, size = bytearray(BLOCK), [], path.stat().st_size
    if cold:
        drop_page_cache()
        start = time.monotonic()
    with open(path, "rb", buffering=0) as file:
        for _ in range(1 if cold else 10):
            if not cold:
                file.seek(0)
                start = time.monotonic()
            while file.readinto(block):
                pass
            took.append(time.monotonic() - start)
    return size / 1e6 / min(took)


def random_reads(path):
    """Reads of 4 KiB per second, in a file that is in the page cache."""
    if shutil.which("fio"):
        said = run("fio", "--name=reads", "--readonly", "--rw=randread", "--bs=4k", "--ioengine=psync", "--time_based",
                   "--invalidate=0", f"--runtime={FIO_SECONDS}", f"--filename={path}", "--output-format=json")
        return json.loads(said[said.index("{"):])["jobs"][0]["read"]["iops"]
    places, done = [page * 4096 for page in range(path.stat().st_size // 4096)], 0
    random.Random(4).shuffle(places)
    with open(path, "rb", buffering=0) as file:
        start = time.monotonic()
        while time.monotonic() - start < FIO_SECONDS:
            for place in places:
                os.pread(file.fileno(), 4096, place)
            done += len(places)
        return done / (time.monotonic() - start)


def together(path):
    """Processes that open a file, wait for each other, and read it at once, each by a request of its own; all must get
    the whole file."""
    waits, go = os.pipe()
    children = []
    for _ in range(READERS):
        if not (child := os.fork()):
            right = False
            try:
                os.close(go)
                file = os.open(path, os.O_RDONLY | os.O_DIRECT)  # else the page cache asks for all of them once
                os.read(waits, 1)  # ends when the parent closes its end
                size = os.fstat(file).st_size
                right = len(os.read(file, size)) == size
            finally:
                os._exit(0 if right else 1)
        children.append(child)
    os.close(waits)
    time.sleep(0.5)
    os.close(go)
    if wrong := sum(os.waitpid(child, 0)[1] != 0 for child in children):
        raise Failed(["reading", path], 1, f"{wrong} of {READERS} processes got an error or too little")


def by_threads(paths):
    """Reads all files, each by one of the threads."""
    rest, wrong = iter(paths), []
    lock = threading.Lock()

    def work():
        while True:
            with lock:
                path = next(rest, None)
            if path is None:
                return
            try:
                read_file(path)
            except OSError as error:
                wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise wrong[0]
