"""Tests which Python is asked for Faiss: one that lacks what it needs would fail the whole run."""

import os
import tempfile
import unittest

import main


class VenvTest(unittest.TestCase):
    def test_an_environment_without_its_packages_is_not_used(self):
        with tempfile.TemporaryDirectory() as build:
            python = os.path.join(build, "bench-venv", "bin", "python3")
            os.makedirs(os.path.dirname(python))
            os.symlink("/usr/bin/python3", python)
            self.assertEqual(main.venv_python(build), "/usr/bin/python3")
            with open(os.path.join(build, "bench-venv", "ready"), "w", encoding="utf-8"):
                pass
            self.assertEqual(main.venv_python(build), python)


if __name__ == "__main__":
    unittest.main()
