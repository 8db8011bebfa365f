"""What is reported: one row a metric, with its bar."""

import dataclasses
import os
import platform


@dataclasses.dataclass
class Bar:
    """What a row must reach; fields that are None ask for nothing."""

    ratio: float = None        # at least, times the baseline
    limit_share: float = None  # at least
    at_least: float = None     # of the value
    at_most: float = None      # of the value
    # The limit's share counts only where the value is over this.
    unless_at_most: float = None

    def text(self, unit):
        parts = []
        if self.ratio is not None:
            parts.append(f">= {self.ratio:g}x" if self.ratio >= 1 else f">= {self.ratio:.0%} of it")
        if self.at_least is not None:
            parts.append(f">= {self.at_least:g} {unit}")
        if self.at_most is not None:
            parts.append(f"<= {self.at_most:g} {unit}")
        if self.limit_share is not None:
            share = f">= {self.limit_share:.0%} of limit"
            if self.unless_at_most is not None:
                share = f"<= {self.unless_at_most:g} {unit} or {share}"
            parts.append(share)
        return ", ".join(parts)

    def holds(self, row):
        """None when something it asks for was not measured."""
        if row["value"] is None:
            return None
        checks = [(self.ratio, row["ratio"], 1), (self.at_least, row["value"], 1),
                  (self.at_most, row["value"], -1)]
        if self.unless_at_most is None or row["value"] > self.unless_at_most:
            checks.append((self.limit_share, row["limit_share"], 1))
        asked = [(want, got, sign) for want, got, sign in checks if want is not None]
        if any(got is None for _, got, _ in asked):
            return None
        return all(sign * got >= sign * want for want, got, sign in asked)


def machine():
    """CPU model, cores and kernel in one line."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        fields = {key.strip(): value.strip() for key, _, value in
                  (line.partition(":") for line in file)}
    model = fields.get("model name", "unknown CPU")
    if "cpu family" in fields:  # a virtual machine's CPU may have no better name
        model += f" (family {fields['cpu family']}, model {fields['model']})"
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release()}"


def make(metric, variant, unit, value, baselines, *, limit=None, bar=None, isa=None, notes=None,
         higher_is_better=False, fastest=None):
    """A row. `baselines`: {label: value in the same unit}, the best of which is compared with, or
    {label: reason} for what is not here. `limit`: (name, value in the same unit). `fastest`: of the
    best repetition instead of the median, ours under None."""
    fastest = fastest or {}
    there = {label: number for label, number in baselines.items() if not isinstance(number, str)}
    best = None
    if there:
        best = (max if higher_is_better else min)(there, key=there.get)

    def times(number):
        if number is None or value is None:
            return None
        return value / number if higher_is_better else number / value

    row = {
        "metric": metric, "variant": variant, "isa": isa, "value": value, "unit": unit,
        "value_best": fastest.get(None), "baseline": best, "baseline_value": there.get(best),
        "baseline_best": fastest.get(best) if best else None, "ratio": times(there.get(best)),
        "limit_name": limit[0] if limit else None, "limit": limit[1] if limit else None,
        "limit_share": times(limit[1]) if limit else None,
        "bar": None, "holds": None, "machine": machine(),
        "absent": {label: why for label, why in baselines.items() if isinstance(why, str)},
        "all": there, "notes": notes or {},
    }
    if bar is not None:
        row["bar"] = bar.text(unit)
        row["holds"] = bar.holds(row)
    return row
