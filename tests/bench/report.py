"""The table on stdout, from the rows that also go to the JSON file."""

_HEADER = ["metric", "variant", "isa", "ours", "best", "unit", "baseline", "its", "best", "ratio",
           "limit share", "bar", "holds"]
_LEFT = {0, 1, 2, 5, 6, 11}


def _number(value):
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _holds(row):
    if row["bar"] is None:
        return ""
    return {True: "yes", False: "NO", None: "-"}[row["holds"]]


def _line(row):
    share = "-" if row["limit_share"] is None else f"{row['limit_share']:.0%}"
    ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}x"
    ours = "absent" if row["value"] is None else _number(row["value"])
    return [row["metric"], row["variant"], row["isa"] or "", ours,
            _number(row["value_best"]), row["unit"], row["baseline"] or "-",
            _number(row["baseline_value"]), _number(row["baseline_best"]), ratio, share,
            row["bar"] or "", _holds(row)]


BUSY = 0.5  # load average from which on a run says that others were at work


def show(rows):
    """Everything but the points of the curves."""
    shown = [row for row in rows if not row["metric"].startswith("curve.")]
    table = [_HEADER] + [_line(row) for row in shown]
    widths = [max(len(line[column]) for line in table) for column in range(len(_HEADER))]
    for index, line in enumerate(table):
        cells = [cell.ljust(width) if column in _LEFT else cell.rjust(width)
                 for column, (cell, width) in enumerate(zip(line, widths))]
        print("  ".join(cells).rstrip())
        if index == 0:
            print("-" * (sum(widths) + 2 * len(widths) - 2))
    absent = {}
    for row in shown:
        absent.update(row["absent"])
    for label, reason in absent.items():
        print(f"not measured: {label}: {reason}")
    if not rows:
        return
    if rows[0]["quick"]:
        print("--quick: bars are not judged, and the figures mean nothing")
    if rows[0]["load_before"] > BUSY:
        print(f"others were at work before this run (load {rows[0]['load_before']:.1f}): ratios are "
              "worth more than figures")
    print(f"machine: {rows[0]['machine']}")
