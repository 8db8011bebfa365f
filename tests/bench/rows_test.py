"""Tests of how rows are made and judged: a bar that cannot fail would hide a slow kernel."""

import unittest

import rows
from rows import Bar


class RowsTest(unittest.TestCase):
    def test_a_shorter_time_than_the_best_baseline_is_a_ratio_over_one(self):
        row = rows.make("m", "", "ns", 2.0, {"slow": 20.0, "best": 8.0, "gone": "not here"},
                        limit=("read", 1.0))
        self.assertEqual((row["baseline"], row["ratio"], row["limit_share"]), ("best", 4.0, 0.5))
        self.assertEqual(row["absent"], {"gone": "not here"})

    def test_a_higher_rate_than_the_best_baseline_is_a_ratio_over_one(self):
        row = rows.make("m", "", "GB/s", 3.0, {"slow": 0.5, "best": 1.5}, limit=("copy", 6.0),
                        higher_is_better=True)
        self.assertEqual((row["baseline"], row["ratio"], row["limit_share"]), ("best", 2.0, 0.5))

    def _holds(self, bar, value, baselines=None, limit=None):
        return rows.make("m", "", "ns", value, baselines or {}, limit=limit, bar=bar)["holds"]

    def test_a_ratio_is_judged_at_its_edge(self):
        self.assertTrue(self._holds(Bar(ratio=4), 2.0, {"a": 8.0}))
        self.assertFalse(self._holds(Bar(ratio=4), 2.0, {"a": 7.99}))

    def test_every_part_of_a_bar_must_hold(self):
        bar = Bar(ratio=1, limit_share=0.5, at_most=10)
        self.assertTrue(self._holds(bar, 2.0, {"a": 2.0}, ("l", 1.0)))
        self.assertFalse(self._holds(bar, 2.0, {"a": 1.9}, ("l", 1.0)))
        self.assertFalse(self._holds(bar, 2.0, {"a": 2.0}, ("l", 0.9)))
        self.assertFalse(self._holds(bar, 11.0, {"a": 20.0}, ("l", 10.0)))

    def test_a_small_enough_value_needs_no_share_of_the_limit(self):
        bar = Bar(limit_share=0.6, unless_at_most=2.4)
        self.assertTrue(self._holds(bar, 2.4, limit=("l", 0.1)))
        self.assertFalse(self._holds(bar, 2.5, limit=("l", 1.4)))
        self.assertTrue(self._holds(bar, 2.5, limit=("l", 1.5)))

    def test_what_was_not_measured_is_not_judged(self):
        self.assertIsNone(self._holds(Bar(ratio=4), 2.0, {"a": "not here"}))
        self.assertIsNone(self._holds(Bar(at_most=4), None))


if __name__ == "__main__":
    unittest.main()
