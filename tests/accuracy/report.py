"""The tables on stdout, from the rows that also go to the JSON file."""

import bars


def _print_table(title, notes, header, lines):
    """Aligned columns: the first to the left, the others to the right."""
    print(f"\n{title}")
    for note in notes:
        print(f"  {note}")
    if not lines:
        print("  (nothing measured)")
        return
    table = [header] + lines
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]
    for index, line in enumerate(table):
        cells = [line[0].ljust(widths[0])] + [cell.rjust(width) for cell, width
                                             in zip(line[1:], widths[1:])]
        print("  " + "  ".join(cells).rstrip())
        if index == 0:
            print("  " + "-" * (sum(widths) + 2 * len(widths) - 2))


def _rows(rows, section, **wanted):
    return [row for row in rows if row["section"] == section
            and all(row.get(key) == value for key, value in wanted.items())]


def _unique(items):
    return list(dict.fromkeys(items))


def _contexts(tokens):
    return f"{tokens // 1024}k"


def _synthetic(rows):
    keys = _rows(rows, "synthetic", part="keys")
    dims = _unique(row["data"].partition(" ")[2] for row in keys)
    for dim in dims:
        names = _unique(row["data"] for row in keys if row["data"].endswith(" " + dim))
        header = ["codec", "key bits"]
        for name in names:
            header += [name.partition(" ")[0] + " eps", "slope", "att", "tv"]
        lines = []
        of_dim = [row for row in keys if row["data"] in names]
        for codec in _unique(row["codec"] for row in of_dim):
            found = {row["data"]: row for row in of_dim if row["codec"] == codec}
            line = [codec, f"{next(iter(found.values()))['key_bits']:.3f}"]
            for name in names:
                row = found.get(name)
                line += [f"{row['eps']:.4f}", f"{row['slope']:.3f}", f"{row['att']:.3f}",
                         f"{row['tv']:.3f}"] if row else ["-"] * 4
            lines.append(line)
        worst = max((row["eps_se"] / row["eps"] for row in of_dim if row["eps"] > 0), default=0)
        notes = [f"largest standard error of an eps over trials: {worst:.1%}"] if worst else []
        _print_table(f"(a) keys, synthetic families, head_dim {dim[2:]}", notes, header, lines)
    values = _rows(rows, "synthetic", part="values")
    for dim in dims:
        of_dim = sorted((row for row in values if row["data"].endswith(" " + dim)),
                        key=lambda row: row["value_bits"])
        _print_table(f"(a) values alone, Gaussian, weights softmax(2 N(0, 1)), dim {dim[2:]}",
                     ["equal value codecs are shown once"],
                     ["codec", "value bits", "output error"],
                     [[row["codec"], f"{row['value_bits']:.3f}", f"{row['output_error']:.4f}"]
                      for row in of_dim])


def _tiny_lm(rows):
    for part, bits in (("keys", "key_bits"), ("values", "value_bits"), ("both", "bits")):
        for data in ("heldout", "sample"):
            found = _rows(rows, "tiny-lm", part=part, data=data)
            if data == "sample" and part != "both":
                continue
            header = ["codec", "bits", "KL", "+-", "bits/byte over exact", "+-", "top-1", "att",
                      "+-"] + [f"layer {n}" for n in range(len(found[0]["att_by_layer"]))
                               ] + ["tv"] if found else []
            lines = [[row["codec"], f"{row[bits]:.3f}", f"{row['kl']:.5f}", f"{row['kl_se']:.5f}",
                      f"{row['bits_per_byte_excess']:+.4f}",
                      f"{row['bits_per_byte_excess_se']:.4f}", f"{row['top1']:.4f}",
                      f"{row['att']:.4f}", f"{row['att_se']:.4f}"]
                     + [f"{att:.4f}" for att in row["att_by_layer"]] + [f"{row['tv']:.4f}"]
                     for row in sorted(found, key=lambda row: row[bits])]
            notes = []
            if found:
                exact = found[0]["bits_per_byte"] - found[0]["bits_per_byte_excess"]
                notes = [f"{found[0]['predicted_bytes']} bytes predicted in "
                         f"{found[0]['segments']} segments, exact: {exact:.4f} bits/byte; +- is "
                         "the standard error over segments, paired with the exact model"]
            what = {"keys": "keys alone", "values": "values alone", "both": "keys and values"}
            text = "held-out text" if data == "heldout" else "the model's own samples"
            _print_table(f"(b) tiny-lm, {what[part]}, {text}", notes, header, lines)


def _needles(rows):
    found = _rows(rows, "needles")
    header, lines, notes = [], [], []
    if found:
        contexts = found[0]["contexts"]
        header = (["codec", "key bits"] + [f"recall {_contexts(n)}" for n in contexts]
                  + [f"lost {_contexts(contexts[-1])}", "+-"]
                  + [f"mass {_contexts(n)}" for n in contexts])
        lines = [[row["codec"], f"{row['key_bits']:.3f}"] + [f"{x:.3f}" for x in row["recall"]]
                 + [f"{row['lost']:+.3f}", f"{row['lost_se']:.3f}"]
                 + [f"{x:.4f}" for x in row["mass"]] for row in found]
        exact = found[0]
        notes = [f"{exact['trials']} trials, strength {exact['strength']:.3f}; standard error of a "
                 f"recall of {exact['recall'][-1]:.3f}: {exact['recall_se'][-1]:.4f}; "
                 "lost is paired with exact"]
    _print_table("(c) needles, Gaussian keys, head_dim 128", notes, header, lines)


def _block_sizes(rows):
    summary = _rows(rows, "block-size-equal")
    measured = _rows(rows, "block-size")
    for data in _unique(row["data"] for row in measured):
        sizes = sorted({row["block_tokens"] for row in measured if row["data"] == data})
        of_data = [row for row in measured if row["data"] == data]
        lines = []
        for codec in _unique(row["codec"] for row in of_data):
            found = {row["block_tokens"]: row for row in of_data if row["codec"] == codec}
            lines.append([codec] + [f"{found[size]['error']:.4f} @{found[size]['curve_bits']:.2f}"
                                    if size in found else "-" for size in sizes])
        what = "attention error @ bits" if data == "heldout" else "eps of keys @ key bits"
        _print_table(f"(d) block sizes, {'tiny-lm' if data == 'heldout' else data}: {what}", [],
                     ["codec"] + [str(size) for size in sizes], lines)
        of_data = [row for row in summary if row["data"] == data]
        lines = []
        for family in _unique(row["codec"] for row in of_data):
            found = {row["block_tokens"]: row for row in of_data if row["codec"] == family}
            lines.append([family, f"{next(iter(found.values()))['bits']:.2f}"]
                         + [f"{found[size]['error']:.4f} {found[size]['over_best']:+.1%}"
                            + ("*" if found[size]["extended"] else "")
                            if size in found else "-" for size in sizes])
        _print_table("    the same at equal bits, and how much over the best block size",
                     ["linear between neighbouring widths in (bits, log error); * beyond them"],
                     ["family", "bits"] + [str(size) for size in sizes], lines)


def _verdict(holds):
    return {True: "holds", False: "DOES NOT HOLD", None: "not measured"}[holds]


def _bars(rows):
    lines = []
    for row in _rows(rows, "bars"):
        by = "-" if row["codec"] is None else f"{row['codec']}, blocks of {row['block_tokens']}"
        lines.append([row["data"], "-" if row["measured"] is None else f"{row['measured']:.5f}",
                      f"{row['standard_error']:.5f}" if row["standard_error"] else "-",
                      f"{row['limit']:g}", "-" if row["bits"] is None else f"{row['bits']:.3f}",
                      _verdict(row["holds"]), by])
    notes = ["among the codecs measured; one without a line is checked elsewhere: "
             "same bytes on every ISA, decode and attend agreeing, exact sizes, golden files: "
             "tests/kernels"]
    for text, without in (("of least KL", False), ("of least KL without tables", True)):
        row = bars.default_profile(rows, without)
        if row:
            notes.append(f"profile {text} at no more than {bars.DEFAULT_BITS} bits: {row['codec']} "
                         f"(KL {row['kl']:.5f} +- {row['kl_se']:.5f} at {row['bits']:.3f})")
    _print_table("Bars", notes, ["bar", "measured", "+-", "at most", "bits", "verdict",
                                  "by"], lines)


def _cross_checks(rows):
    lines = [[row["data"], f"{row['measured']:.4f}", f"{row['limit']:g}", _verdict(row["holds"])]
             for row in _rows(rows, "cross-check")]
    _print_table("Cross-checks: qjl-paper against the peer written from scratch", [],
                 ["what", "measured", "at most", "verdict"], lines)


def show(rows):
    """Prints everything."""
    for part in (_synthetic, _tiny_lm, _needles, _block_sizes, _cross_checks, _bars):
        part(rows)
