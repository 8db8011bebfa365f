#!/usr/bin/env python3
"""Usage: plots.py RESULTS.json FOLDER

Draws error-bits.png (eps of keys against exact bits, two synthetic families) and kl-bits.png (KL on
tiny-lm against exact bits) from the rows that tests/accuracy.sh --json writes. Ours in colour,
peers in grey; every curve is labelled where it ends.
"""

import json
import os
import re
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend is chosen first)
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter  # noqa: E402

# (label, pattern of codec names, colour, marker), drawn in this order
OURS = (
    ("klt", r"^klt:", "#c2410c", "o"),
    ("qjlNp, table mean", r"^qjl\dp:center=table,value_bits", "#1d4ed8", "o"),
    ("qjlNp, 4 outliers", r"^qjl\dp:outliers=4,value_bits", "#0e7490", "D"),
    ("qjlNp, N = 2, 3, 4", r"^qjl\dp:value_bits", "#60a5fa", "o"),
    ("qjl (signs only)", r"^qjl:sign_bits=\d+$", "#15803d", "o"),
    ("qjl-paper", r"^qjl-paper", "#15803d", "s"),
)
PEERS = (
    ("QJL as released", r"^official-qjl( early| late)?$", "s"),
    ("TurboQuant prod", r"^turboquant-prod", "v"),
    ("TurboQuant mse", r"^turboquant-mse", "^"),
    ("RaBitQ", r"^rabitq", "P"),
    ("KIVI", r"^kivi", "X"),
    ("int4 g32", r"^int4", "h"),
    ("fp8", r"^fp8", "*"),
)
GREY = "#6b7280"
MAX_BITS = 6.2  # of the axis; what needs more is said in words


def _plain(number, decimals):
    """Two digits at most, never with an exponent."""
    return f"{float(f'{number:.2g}'):.{decimals}f}".rstrip("0")


def _lower_envelope(points):
    """Keeps, at rising bits, the points that beat every cheaper one."""
    kept = []
    for bits, error in sorted(points):
        if not kept or error < kept[-1][1]:
            kept.append((bits, error))
    return kept


def _series(rows, bits_key, metric):
    """[(label, points, colour, marker, ours)] of what was measured; zero errors are left out."""
    found = []
    for label, pattern, colour, marker in OURS + tuple(
            (label, pattern, GREY, marker) for label, pattern, marker in PEERS):
        points = [(row[bits_key], row[metric]) for row in rows
                  if re.search(pattern, row["codec"]) and row[metric] > 0]
        if points:
            # Pairs of widths of one family: the best at each size.
            found.append((label, _lower_envelope(points), colour, marker, colour != GREY))
    return found


def _spread(positions, gap):
    """Moves label heights apart to at least `gap` within 0..1, keeping their order."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = list(positions)
    for _ in range(200):
        for low, high in zip(order, order[1:]):
            overlap = gap - (placed[high] - placed[low])
            if overlap > 1e-9:
                placed[low] -= overlap / 2
                placed[high] += overlap / 2
        placed = [min(max(height, 0.01), 0.99) for height in placed]
    return placed


def _draw(axes, series, gap):
    """Curves, with labels in a column at the right, joined to the last point by a thin line."""
    for _, points, colour, marker, ours in series:
        axes.plot(*zip(*points), color=colour, marker=marker, markersize=5 if ours else 4.5,
                  linewidth=1.6 if ours else 1.0, linestyle="-" if ours else ":",
                  zorder=3 if ours else 2)
    axes.set_yscale("log")
    axes.set_xlim(0.9, MAX_BITS)
    shown = [error for _, points, *_ in series for bits, error in points if bits <= MAX_BITS]
    axes.set_ylim(min(shown) / 1.3, max(shown) * 1.3)
    axes.xaxis.set_major_locator(FixedLocator([1, 2, 3, 4, 5, 6]))
    axes.grid(True, which="major", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    beyond = [f"{label} at {bits:g} bits: {_plain(error, 6)}" for label, points, *_ in series
              for bits, error in points if bits > MAX_BITS]
    if beyond:
        axes.text(0.02, 0.02, "to the right, " + ", ".join(beyond), transform=axes.transAxes,
                  fontsize=7, color=GREY)
    visible = [(label, [point for point in points if point[0] <= MAX_BITS], colour, ours)
               for label, points, colour, _, ours in series]
    visible = [entry for entry in visible if entry[1]]
    axes.figure.canvas.draw()
    to_axes = axes.transAxes.inverted()
    ends = [to_axes.transform(axes.transData.transform(points[-1])) for _, points, _, _ in visible]
    heights = _spread([end[1] for end in ends], gap)
    for (label, _, colour, ours), end, height in zip(visible, ends, heights):
        axes.annotate(label, xy=end, xytext=(1.02, height), xycoords="axes fraction",
                      textcoords="axes fraction", color=colour, fontsize=8, va="center",
                      fontweight="bold" if ours else "normal",
                      arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5,
                                  "alpha": 0.5, "shrinkA": 1, "shrinkB": 4})


def _plain_log_axis(axes, ticks):
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def plot_errors(rows, path):
    """eps against key bits on gauss and out-mean, head_dim 128."""
    figure, panels = plt.subplots(1, 2, figsize=(10.0, 4.3))
    figure.subplots_adjust(left=0.07, right=0.85, bottom=0.12, top=0.9, wspace=0.72)
    for axes, family in zip(panels, ("gauss", "out-mean")):
        measured = [row for row in rows if row["section"] == "synthetic"
                    and row["data"] == f"{family} d=128" and row["part"] == "keys"]
        _draw(axes, _series(measured, "key_bits", "eps"), 0.052)
        _plain_log_axis(axes, (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1))
        title = "Gaussian keys" if family == "gauss" else "4 channels offset by ±10"
        axes.set_title(f"Score error, {title}", fontsize=10, loc="left")
        axes.set_xlabel("bits a key number, everything counted", fontsize=9)
    panels[0].set_ylabel("RMS error / RMS(|q||k|)", fontsize=9)
    _save(figure, path)


def plot_kl(rows, path):
    """KL against bits, keys and values, held-out text."""
    figure, axes = plt.subplots(figsize=(8.6, 4.6))
    figure.subplots_adjust(left=0.115, right=0.77, bottom=0.11, top=0.92)
    measured = [row for row in rows if row["section"] == "tiny-lm" and row["data"] == "heldout"
                and row["part"] == "both"]
    _draw(axes, _series(measured, "bits", "kl"), 0.05)
    _plain_log_axis(axes, (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2))
    axes.set_title("A language model on a compressed cache: KL divergence from exact",
                   fontsize=10, loc="left")
    axes.set_xlabel("bits a number, keys and values, everything counted", fontsize=9)
    axes.set_ylabel("KL, bits a byte", fontsize=9)
    _save(figure, path)


def _save(figure, path):
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw(rows, folder):
    """Both plots from rows; returns their paths. A section without rows has no plot."""
    os.makedirs(folder, exist_ok=True)
    paths = []
    for section, name, plot in (("synthetic", "error-bits.png", plot_errors),
                                ("tiny-lm", "kl-bits.png", plot_kl)):
        if any(row["section"] == section for row in rows):
            paths.append(os.path.join(folder, name))
            plot(rows, paths[-1])
    return paths


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: plots.py RESULTS.json FOLDER")
    with open(sys.argv[1], encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for path in draw(rows, sys.argv[2]):
        print(path)


if __name__ == "__main__":
    main()
