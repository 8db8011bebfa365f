#!/usr/bin/env python3
"""Usage: plots.py RESULTS.json FOLDER

Draws what tests/bench.sh --json measured: context-time.png (time of a call against the length of
its context), block-throughput.png (bytes a second against block size) and sketch-exact.png (sketches
against exact kernels). Ours in colour, others in grey. A plot without rows is left out.
"""

import json
import os
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend is chosen first)
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator  # noqa: E402

OURS = {"qjl": "#15803d", "qjl3p": "#1d4ed8", "sketchkv": "#1d4ed8"}
NAMES = {"qjl": "qjl (256 sign bits)", "qjl3p": "qjl3p (default)"}
GREY, DARK = "#9ca3af", "#4b5563"
MARKERS = ("s", "^", "v", "P", "X")


def _clean(axes):
    axes.grid(True, which="major", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _plain(value, _=None):
    return f"{value:g}"


def _tokens(value, _=None):
    return f"{value / 1024:g}k" if value >= 1024 else f"{value:g}"


def _save(figure, path, rows):
    figure.get_layout_engine().set(rect=(0, 0.035, 1, 0.965))
    figure.text(0.995, 0.008, rows[0]["machine"], ha="right", fontsize=6.5, color=GREY)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curve(axes, points, label, colour, marker="o"):
    """Points joined, and the label where they end."""
    points = sorted(points)
    axes.plot(*zip(*points), color=colour, marker=marker, markersize=4, linewidth=1.5,
              label=label)


def _context_panel(axes, rows, title):
    for profile in ("qjl", "qjl3p"):
        points = [(row["notes"]["tokens"], row["value"]) for row in rows
                  if row["variant"] == profile]
        if points:
            _curve(axes, points, NAMES[profile], OURS[profile])
    _curve(axes, {(row["notes"]["tokens"], row["baseline_value"]) for row in rows},
           "exact bf16, our own kernel", DARK, "s")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(_tokens))
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("tokens of context", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    _clean(axes)


def plot_contexts(rows, path):
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 4.2), constrained_layout=True)
    for axes, name, title in zip(panels, ("score", "attend"), (
            "Scores, 4 queries, one kv head", "Attention, 4 queries, one kv head")):
        found = [row for row in rows if row["metric"].startswith(f"curve.{name}.")]
        if found:
            _context_panel(axes, found, title)
    panels[0].set_ylabel("microseconds, one core, data in memory", fontsize=9)
    _save(figure, path, rows)


def plot_blocks(rows, path):
    figure, panels = plt.subplots(1, 3, figsize=(11, 4), sharey=True, constrained_layout=True)
    for axes, name in zip(panels, ("put.grpc", "get.grpc.encoded", "get.grpc.bf16")):
        found = sorted((row for row in rows if row["metric"].startswith(f"curve.{name}.")),
                       key=lambda row: row["notes"]["block_tokens"])
        sizes = [row["notes"]["block_tokens"] for row in found]
        _curve(axes, zip(sizes, (row["value"] for row in found)), "sketchkv", OURS["sketchkv"])
        _curve(axes, zip(sizes, (row["limit"] for row in found)), "bare gRPC stream", DARK, "s")
        redis = [(size, row["baseline_value"]) for size, row in zip(sizes, found)
                 if row["baseline_value"]]
        if redis:
            _curve(axes, redis, "Redis, raw bytes", GREY, "^")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        axes.yaxis.set_minor_formatter(FuncFormatter(
            lambda value, _: _plain(value) if f"{value:.0e}"[0] in "25" else ""))
        axes.tick_params(axis="y", which="minor", labelsize=8)
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xlabel("tokens of a block, 128 KiB raw each", fontsize=9)
        _clean(axes)
    panels[0].set_ylabel("GB of raw keys and values a second", fontsize=9)
    panels[0].legend(fontsize=8, frameon=False)
    _save(figure, path, rows)


_COMPARED = {
    "score.dram.q1": "scores, 1 query, from memory",
    "score.dram.q4": "scores, 4 queries, from memory",
    "score.dram.q8": "scores, 8 queries, from memory",
    "score.l2.q4": "scores, 4 queries, in L2",
    "attend.dram.q4": "attention, 4 queries, from memory",
}


def plot_exact(rows, path):
    """One line a metric, one mark a contender."""
    figure, axes = plt.subplots(figsize=(9, 3.8), constrained_layout=True)
    best = {}  # of each metric and profile: the row of the level the server chooses comes first
    for row in rows:
        best.setdefault((row["metric"], row["variant"]), row)
    shown = [metric for metric in _COMPARED if any(key[0] == metric for key in best)]
    markers = {}
    for height, metric in enumerate(reversed(shown)):
        of_metric = [row for key, row in best.items() if key[0] == metric]
        for label, value in of_metric[0]["all"].items():
            marker = markers.setdefault(label, MARKERS[len(markers) % len(MARKERS)])
            axes.plot(value, height, marker=marker, color=DARK if "own" in label else GREY,
                      markersize=7, linestyle="")
        for row in of_metric:
            axes.plot(row["value"], height, marker="o", color=OURS[row["variant"]], markersize=8,
                      linestyle="")
            if row["limit"]:
                axes.plot(row["limit"], height, marker="|", color=OURS[row["variant"]],
                          markersize=16, linestyle="")
    for profile in ("qjl", "qjl3p"):
        axes.plot([], [], marker="o", color=OURS[profile], linestyle="", label=NAMES[profile])
    axes.plot([], [], marker="|", markersize=12, color=DARK, linestyle="",
              label="limit: reading its bytes")
    for label, marker in markers.items():
        axes.plot([], [], marker=marker, color=DARK if "own" in label else GREY, linestyle="",
                  label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(shown)), [_COMPARED[metric] for metric in reversed(shown)],
                    fontsize=9)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlabel("nanoseconds a key, one core", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _clean(axes)
    _save(figure, path, rows)


def draw(rows, folder):
    """All plots that `rows` suffice for; returns their paths."""
    os.makedirs(folder, exist_ok=True)
    paths = []
    for prefixes, name, plot in (
            (("curve.score.", "curve.attend."), "context-time.png", plot_contexts),
            (("curve.put.", "curve.get."), "block-throughput.png", plot_blocks),
            (tuple(_COMPARED), "sketch-exact.png", plot_exact)):
        if all(any(row["metric"].startswith(prefix) for row in rows) for prefix in prefixes[:2]):
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
