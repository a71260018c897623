"""The results of benches/coldstart as text: the tables, and which targets are met.

Results are what the JSON file holds: `machine`, a dictionary; `starts`, one dictionary for each single run of a mode;
and `reads`, one for each row of a measure. What could not be measured has `failed` instead of values.
"""
import json, pathlib, statistics

from starts import MODES

# The image and the line that the targets in numbers are for.
AIM = "python", "200/30"
# What must never be ready later than containerd.
LATER = ("first-contact", "indexes", "filling", "profile", "shared", "shared-profile")
# mode, value, its factor to the unit shown, unit, limit; and the mode it is compared with, if the limit is a ratio
TARGETS = [
    ("indexes", "ready", 1, "s", 3.5, None),
    ("indexes", "bytes until ready", 1e-6, "MB", 45, None),
    # Fill never delays demand.
    ("filling", "ready", 1, "s", 1.1, "indexes"),
    ("profile", "ready", 1, "s", 2.2, None),
    ("profile", "bytes until ready", 1e-6, "MB", 38, None),
    ("shared", "ready", 1, "s", 3.8, None),
    ("shared-profile", "ready", 1, "s", 2.5, None),
    ("full-read", "full", 1, "s", 1.15, "download"),
    ("second-start", "ready", 1, "s", 1.05, "native"),
    ("second-start", "again", 1, "s", 1.05, "native"),
    ("restart", "again", 1, "s", 1.05, "native"),
    ("full-read", "peak", 1, "MB", 150, None),
    ("full-read", "idle", 1, "MB", 40, None),
]
# title of a column, which value, its factor, decimals
COLUMNS = [("mount s", "mount", 1, 2), ("MB mount", "bytes until mounted", 1e-6, 1),
           ("requests", "requests until mounted", 1, 0), ("ready s", "ready", 1, 2), ("again s", "again", 1, 2),
           ("full s", "full", 1, 2), ("MB ready", "bytes until ready", 1e-6, 1),
           ("requests", "requests until ready", 1, 0), ("MB total", "bytes", 1e-6, 1), ("requests", "requests", 1, 0),
           ("peak MB", "peak", 1, 0), ("idle MB", "idle", 1, 0)]
LEGEND = """\
mount: until the tree is there (pull, for containerd); ready: until the program says so, counted from the same moment;
again: run once more, or mounted and run once more; full: `tar c` of the tree after that with a cold page cache (in the
rows that only read: mount and tar, or curl); MB and requests: over the line until mounted (with windows and what is
fetched ahead, which no mount waits for), until ready, and in all; peak and idle: resident memory of the daemon."""


def load(paths):
    """The results of several files as one."""
    merged = {"machine": {}, "starts": [], "reads": []}
    for path in paths:
        part = json.loads(pathlib.Path(path).read_text())
        merged["machine"] = merged["machine"] or part["machine"]
        merged["starts"] += part["starts"]
        merged["reads"] += part["reads"]
    return merged


def medians(results):
    """The medians of what was measured, by image and line, then by mode, in the order of measuring and of `MODES`."""
    groups = {}
    for one in results["starts"]:
        groups.setdefault((one["image"], one["line"]), {}).setdefault(one["mode"], []).append(one)
    return {group: {mode: median(modes[mode]) for mode in MODES if mode in modes} for group, modes in groups.items()}


def median(runs):
    measured = [one for one in runs if "failed" not in one]
    if not measured:
        return {"failed": runs[0]["failed"]}
    # Some may have gone only until the program was ready.
    names = dict.fromkeys(name for one in measured for name, value in one.items() if isinstance(value, (int, float)))
    values = {name: statistics.median(one[name] for one in measured if name in one) for name in names if name != "round"}
    return values | {"runs": len(measured), "failures": [one["failed"] for one in runs if "failed" in one]}


def describe(line):
    mbit, rtt = line.split("/") if "/" in line else (None, None)
    return f"{mbit} Mbit/s, {rtt} ms" if mbit else line


def tell(results):
    """Prints everything; returns whether all targets are met that were measured."""
    print(", ".join(f"{name} {value}" for name, value in results["machine"].items()))
    all_met = True
    for (image, line), modes in medians(results).items():
        runs = max((values.get("runs", 0) for values in modes.values()))
        print(f"\n{image} over {describe(line)}: medians of {runs}\n")
        print(f"  {'':<38}" + "".join(f"{title:>10}" for title, *_ in COLUMNS))
        for mode, values in modes.items():
            print(f"  {MODES[mode][0]:<38}{cells(values)}")
            for failure in values.get("failures", []):
                print(f"    failed once: {first_line(failure)}")
        print()
        for target in targets(image, line):
            all_met &= verdict(modes, *target)
    if results["starts"]:
        print(f"\n{LEGEND}")
    if results["reads"]:
        all_met &= tell_reads(results["reads"])
    return all_met


def cells(values):
    if "failed" in values:
        return f"  not measured: {first_line(values['failed'])}"
    return "".join(f"{values[name] * factor:>10.{digits}f}" if name in values else f"{'':>10}"
                   for _, name, factor, digits in COLUMNS)


def first_line(text):
    """What a command that failed said first, or else what it was."""
    command, _, said = text.partition("\n")
    return (said.partition("\n")[0] or command)[:160]


def targets(image, line):
    yield from ((mode, "ready", 1, "s", 1, "containerd") for mode in LATER)
    if (image, line) == AIM:
        yield from TARGETS


def verdict(modes, mode, name, factor, unit, limit, other):
    """Prints whether a target is met; one that nobody asked to measure is not missed."""
    what = f"{MODES[mode][0]}: {name}"
    if mode not in modes or other and other not in modes:
        return True
    if any("failed" in modes[one] for one in (mode, other) if one):
        print(f"  {what:<58} not measured: MISSED")
        return False
    value = modes[mode][name] * factor
    if other:
        ratio = value / (modes[other][name] * factor)
        said, reached, kind = f"{ratio:.2f}x {MODES[other][0]}", ratio, "x"
    else:
        said, reached, kind = f"{value:.2f} {unit}", value, f" {unit}"
    met = reached <= limit
    print(f"  {what:<58} {said:<40} target {limit:g}{kind}: {'met' if met else 'MISSED'}")
    return met


def tell_reads(rows):
    all_met, place = True, None
    for one in join(rows):
        if place != (place := (one["image"], one["line"])):
            print(f"\nreads of {place[0]}, over {describe(place[1])} where a line matters\n")
        if "failed" in one:
            print(f"  {one['what']:<58} not measured: MISSED: {first_line(one['failed'])}")
            all_met = False
            continue
        reached, unit = statistics.median(one["values"]), one["unit"]
        text = f"  {one['what']:<68} {reached:>9.4g} {unit:<4}"
        if one["beside"]:
            name, values = one["beside"]
            beside = statistics.median(values)
            text += f" {name} {beside:.4g} {unit}: {reached / beside:.2f}x"
            reached, unit = reached / beside, "x"
        for kind, right in (("most", lambda limit: reached <= limit), ("least", lambda limit: reached >= limit)):
            if one[kind] is not None:
                met = right(one[kind])
                text += f"  target at {kind} {one[kind]:g}{unit}: {'met' if met else 'MISSED'}"
                all_met &= met
        print(text)
    return all_met


def join(rows):
    """Rows of the same measure, from several files, as one with all values."""
    joined = {}
    for one in rows:
        key = one["image"], one["line"], one["what"], "failed" in one
        if key in joined and not key[3]:
            known = joined[key]
            beside = known["beside"] and [known["beside"][0], known["beside"][1] + one["beside"][1]]
            one = known | {"values": known["values"] + one["values"], "beside": beside}
        joined[key] = one
    return joined.values()
