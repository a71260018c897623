"""The times until ready as an SVG for the README: a panel for each image over each line, a bar for each mode.

Without script or font of its own, and with a ground of its own, so that it can be read on a light and on a dark page.
"""
from html import escape

from report import describe

# mode, what stands before its bar, the family that gives its colour
BARS = [
    ("containerd", "containerd, pull + run", "other"),
    ("first-contact", "ocifs, first contact", "ours"),
    ("indexes", "ocifs, indexes only", "ours"),
    ("profile", "ocifs, indexes + profile", "ours"),
    ("shared", "ocifs, shared index", "ours"),
    ("shared-profile", "ocifs, and its profile", "ours"),
    ("second-start", "ocifs, second start", "ours"),
    ("native", "native directory", "native"),
]
WIDTH, MARGIN, GAP = 880, 20, 24
LABEL, VALUE = 148, 108  # what a panel needs left and right of its bars
HEAD, TITLE, ROW, BAR, SPACE = 96, 26, 19, 13, 20
COLORS = {"other": ("#b35900", "#f0a35e"), "ours": ("#0b62c4", "#74b3f5"), "native": ("#98a1ab", "#98a1ab")}
PARTS = {"other": "containerd: pull, then run", "ours": "ocifs: mount, then run", "native": "directory: run"}
STYLE = """\
text{font:12px -apple-system,"Segoe UI","Noto Sans",Helvetica,Arial,sans-serif;fill:#1f2328}
.title{font-size:16px;font-weight:600}.panel{font-size:13px;font-weight:600}
.soft{fill:#59636e}.ground{fill:#fff;stroke:#d1d9e0}
.base{stroke:#d1d9e0}@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.soft{fill:#9198a1}
.ground{fill:#0d1117;stroke:#3d444d}.base{stroke:#3d444d}}"""


def draw(machine, groups):
    """`groups` are medians as report.medians gives them."""
    images = list(dict.fromkeys(image for image, _ in groups))
    lines = list(dict.fromkeys(line for _, line in groups))
    width = (WIDTH - 2 * MARGIN - GAP * (len(images) - 1)) / max(len(images), 1)
    parts, top = [], HEAD
    for line in lines:
        tall = max(len(bars(groups.get((image, line), {}))) for image in images)
        for column, image in enumerate(images):
            if modes := groups.get((image, line)):
                parts += panel(f"{image}, {describe(line)}", modes, MARGIN + column * (width + GAP), top, width)
        top += TITLE + tall * ROW + SPACE
    runs = [values["runs"] for modes in groups.values() for values in modes.values() if "runs" in values]
    head = heading(machine, min(runs, default=0), max(runs, default=0))
    ground = f'<rect class="ground" x=".5" y=".5" width="{WIDTH - 1}" height="{top - 1}" rx="8"/>'
    size = f'width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
                      "<title>Time until the program of an image is ready</title>", f"<style>{STYLE}</style>",
                      ground, *head, *parts, "</svg>", ""])


def heading(machine, fewest, most):
    parts = [text(MARGIN, 32, "Cold start: seconds until the program of the image is ready", "title")]
    runs = str(most) if fewest == most else f"{fewest} to {most}"
    facts = [f"medians of {runs} runs" if most > 1 else "one run", f"{machine['cores']} cores",
             f"Linux {machine['kernel']}", f"ocifs {machine['ocifs']}", "each panel has its own scale"]
    parts.append(text(MARGIN, 53, "; ".join(facts), "soft"))
    at = MARGIN
    for family, (dark, light) in COLORS.items():
        parts += [rect(at, 66, 13, 11, dark), rect(at + 13, 66, 13, 11, light)]
        parts.append(text(at + 32, 76, PARTS[family], "soft"))
        at += 60 + 6.3 * len(PARTS[family])
    return parts


def bars(modes):
    return [(modes[mode], name, family) for mode, name, family in BARS if mode in modes]


def panel(title, modes, left, top, width):
    shown = bars(modes)
    start, room = left + LABEL, width - LABEL - VALUE
    longest = max((values.get("ready", 0) for values, *_ in shown), default=0) or 1
    parts = [text(left, top + 12, title, "panel")]
    top += TITLE
    for number, (values, name, family) in enumerate(shown):
        y = top + number * ROW
        parts.append(text(start - 8, y + 11, name, end=True))
        if "failed" in values:
            parts.append(text(start + 6, y + 11, "not measured", "soft"))
            continue
        mount, ready = (room * values[part] / longest for part in ("mount", "ready"))
        dark, light = COLORS[family]
        parts += [rect(start, y, mount, BAR, dark)] if mount >= 0.5 else []
        parts += [rect(start + mount, y, ready - mount, BAR, light), text(start + ready + 6, y + 11, value(values))]
    parts.append(f'<path class="base" d="M{start - 0.5:g} {top - 3}v{len(shown) * ROW}"/>')
    return parts


def value(values):
    """What stands behind a bar: the time, and what came over the line."""
    ready, size = values["ready"], values["bytes until ready"] / 1e6
    return f"{ready:.{2 if ready < 10 else 1}f} s" + (f", {size:.0f} MB" if size >= 0.5 else "")


def rect(x, y, width, height, color):
    return f'<rect x="{x:.1f}" y="{y:g}" width="{width:.1f}" height="{height}" fill="{color}"/>'


def text(x, y, words, kind="", end=False):
    attributes = (f' class="{kind}"' if kind else "") + (' text-anchor="end"' if end else "")
    return f'<text x="{x:.0f}" y="{y:g}"{attributes}>{escape(words)}</text>'
