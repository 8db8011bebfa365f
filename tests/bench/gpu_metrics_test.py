"""Tests of the rows of the GPU with made-up contenders, and of a whole run on what card is here."""

import json
import os
import subprocess
import tempfile
import unittest

import gpu_metrics
import gpu_service_metrics
from contest import Result

METRICS = {**gpu_metrics.METRICS, **gpu_service_metrics.METRICS}
COPY_NS = 0.5  # a byte


class FakeBench:
    """Every launch of ours takes `ours` times as long as a copy of its 1,000 bytes; others take
    5 us. Without a card all are absent."""

    quick = True
    gpu = torch = official = None

    def __init__(self, card=("ok", "a card"), ours=2.0):
        self._card, self._ours = card, ours

    def card(self):
        return self._card

    def run(self, entries):
        results = {}
        for entry in entries:
            if self._card[0] == "absent":
                results[entry.label] = Result(entry.label, [], 0.0, self._card[1])
            elif entry.name == "gpu.copy":
                results[entry.label] = Result(entry.label, [COPY_NS], 1.0)
            elif "profile" in entry.options:
                results[entry.label] = Result(entry.label, [self._ours * 500], 1000.0)
            else:
                results[entry.label] = Result(entry.label, [5000.0], 0.0)
        return results


def _rows(bench, metric):
    return METRICS[metric](gpu_metrics.Card(bench))


class GpuMetricsTest(unittest.TestCase):
    def test_the_limit_is_a_copy_of_the_bytes_that_a_launch_reads(self):
        for metric in ("gpu.score", "gpu.attend", "gpu.encode", "gpu.decode"):
            for row in _rows(FakeBench(ours=2.0), metric):
                self.assertAlmostEqual(row["limit"], 0.5, msg=metric)
                self.assertAlmostEqual(row["limit_share"], 0.5, msg=metric)
                self.assertFalse(row["holds"], metric)
            for row in _rows(FakeBench(ours=1.25), metric):
                self.assertTrue(row["holds"], metric)

    def test_small_blocks_have_a_lower_bar_for_scores(self):
        held = {row["variant"]: row["holds"] for row in _rows(FakeBench(ours=1 / 0.7), "gpu.score")}
        self.assertEqual(held, {
            f"{profile}, {block}-token blocks{scores}": block == 16
            for profile in ("qjl", "qjl3p") for block in (16, 64) for scores in ("", ", halves")})

    def test_official_kernels_are_compared_by_time(self):
        for metric, times in (("gpu.score.official", 30), ("gpu.encode.official", 15)):
            held = _rows(FakeBench(ours=10 / times * 0.99), metric)
            missed = _rows(FakeBench(ours=10 / times * 1.01), metric)
            self.assertTrue(all(row["holds"] for row in held), metric)
            self.assertFalse(any(row["holds"] for row in missed), metric)

    def test_as_many_layers_take_turns_as_are_well_over_the_l2(self):
        card = gpu_metrics.Card(FakeBench())
        card.turns = 512 << 20
        self.assertEqual(card.layers(5 << 20), 103)
        self.assertEqual(card.layers(1 << 30), 4)

    def test_without_a_card_every_row_says_why(self):
        for metric in METRICS:
            rows = _rows(FakeBench(("absent", "needs a GPU: none")), metric)
            self.assertTrue(rows, metric)
            for row in rows:
                self.assertIsNone(row["value"])
                self.assertIsNone(row["holds"])
                self.assertEqual(row["absent"][row["metric"]], "needs a GPU: none")


class RunTest(unittest.TestCase):
    """Needs SKETCHKV_BUILD, a build of this tree, as tests/bench.sh does."""

    def test_every_metric_is_measured_or_says_that_it_needs_a_gpu(self):
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "bench.sh")
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "rows.json")
            done = subprocess.run([script, "--gpu", "--quick", "--json", path], check=False,
                                  stdout=subprocess.PIPE, text=True)
            self.assertEqual(done.returncode, 0, done.stdout)
            with open(path, encoding="utf-8") as file:
                rows = [json.loads(line) for line in file]
        self.assertEqual({row["metric"] for row in rows}, set(METRICS))
        kernels = [row for row in rows if row["metric"] in gpu_metrics.METRICS]
        if any(row["value"] for row in kernels):  # there is a card
            self.assertTrue(all(row["value"] for row in kernels), done.stdout)
        else:
            for row in rows:
                self.assertRegex(row["absent"][row["metric"]], "^needs a GPU: .")


if __name__ == "__main__":
    unittest.main()
