"""Our codec, reached through two executables of the build: the real encoder and decoder.

bin/sketchkv_roundtrip encodes blocks of keys and values and gives back what it decodes, with exact
effective bits; `bin/sketchkv tune` learns the tables that some profiles want.
"""

import fcntl
import json
import os
import subprocess
import tempfile

import numpy as np

import ladder
from codec import Codec, Reconstruction
from tensors import write_safetensors


def write_calibration(path, layers, sequence_tokens):
    """Writes what `sketchkv tune` learns tables from.

    layers: per layer a dict of float32 keys and values [tokens, kv_heads, dim] and queries
    [tokens, q_heads, dim]; sequence_tokens: length of each sequence among the tokens.
    """
    tensors = {f"layers.{layer}.{kind}": array for layer, kinds in enumerate(layers)
               for kind, array in kinds.items()}
    tokens = len(layers[0]["keys"])
    tensors["sequence_starts"] = np.arange(0, tokens, sequence_tokens, dtype=np.int64)
    write_safetensors(path, tensors)


# Tables that serve every profile but klt: means, and four outlier channels, which are others where
# the mean stays in the keys.
def _plain_tables(profile):
    knobs = "outliers=4,outlier_source=table"
    if "center=table" in profile.name or "outlier_source=table" not in profile.name:
        knobs += ",center=table"
    return ("--profile", f"qjl2p:{knobs}", "--target-bits", "16")


def _tune_flags(profile):
    """What `sketchkv tune` is asked for. Its own judgement of the choice is not used: almost all
    samples go into the tables."""
    flags = _plain_tables(profile)
    if profile.row_bits:
        flags = ("--key-row-bits", str(profile.row_bits[0]),
                 "--value-row-bits", str(profile.row_bits[1]))
    return (*flags, "--holdout", "0.01")


class Executables:
    """folder: the build, holding bin/. scratch: where files may be written."""

    def __init__(self, folder, scratch):
        self.roundtrip = os.path.join(folder, "bin", "sketchkv_roundtrip")
        self.cli = os.path.join(folder, "bin", "sketchkv")
        self.scratch = scratch

    def missing(self):
        """Paths that are not executable files."""
        return [path for path in (self.roundtrip, self.cli) if not os.access(path, os.X_OK)]

    def _tables(self, profile, calibration_path):
        """Path of the tables that a profile wants. The first worker that asks makes them; a failure
        is kept for the others."""
        sizes = "".join(_plain_tables(profile)[1].split(":")[1:])
        if profile.row_bits is not None:
            sizes = "{}+{}".format(*profile.row_bits)
        stem = f"{calibration_path}.{sizes}"
        path, unfinished = stem + ".tables.safetensors", stem + ".unfinished.safetensors"
        with open(stem + ".failed", "a+", encoding="utf-8") as failed:
            fcntl.flock(failed, fcntl.LOCK_EX)
            failed.seek(0)
            reason = failed.read()
            if not reason and not os.path.exists(path):
                try:
                    self._run([self.cli, "tune", "--samples", calibration_path, "--block-tokens",
                               str(ladder.BLOCK_TOKENS), *_tune_flags(profile),
                               "--out", unfinished])
                    os.replace(unfinished, path)
                except (RuntimeError, OSError) as error:
                    reason = f"no tables: {error}"
                    failed.write(reason)
        if reason:
            raise RuntimeError(reason)
        return path

    def reconstruct(self, profile, samples, block_tokens):
        """Encodes and decodes Samples under a ladder.Profile. Without values, keys stand in for
        them and only keys come back."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            keys, values = (os.path.join(folder, name) for name in ("keys.npy", "values.npy"))
            command = [self.roundtrip, "--profile", profile.spec,
                       "--block-tokens", str(block_tokens),
                       "--dtype", samples.dtype, "--keys", samples.keys_path,
                       "--values", samples.values_path or samples.keys_path,
                       "--out-keys", keys, "--out-values", values]
            if ladder.needs_tables(profile.name):
                command += ["--tables", self._tables(profile, samples.calibration_path)]
            answer = json.loads(self._run(command).strip().splitlines()[-1])
            decoded = Reconstruction(
                np.load(keys), np.load(values) if samples.values_path else None,
                answer["key_bits"], answer["value_bits"], answer["bits"])
        if decoded.keys.shape != samples.keys.shape:
            raise RuntimeError(f"decoded keys have shape {decoded.keys.shape}, "
                               f"want {samples.keys.shape}")
        if not np.isfinite(decoded.keys).all():
            raise RuntimeError("decoded keys are not all finite")
        return decoded

    def as_codec(self, profile):
        """A ladder.Profile as a Codec."""

        def reconstruct(samples, block_tokens):
            try:
                return self.reconstruct(profile, samples, block_tokens)
            except RuntimeError as error:
                raise RuntimeError(f"{profile.name} on {samples.name}, blocks of {block_tokens}: "
                                   f"{error}") from error

        return Codec(profile.name, profile.keys, profile.values, True, reconstruct)

    @staticmethod
    def _run(command):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            raise RuntimeError(f"{os.path.basename(command[0])} ended with status "
                               f"{done.returncode}: {last}")
        return done.stdout
