"""Section (a): errors on the synthetic families at several head_dims.

Keys: eps, slope, att and tv with exact values. Values alone: output error |W (V^ - V)| / |W V|
under W = softmax(2 N(0, 1)), [64, 2048], on Gaussian values. A trial stands in the place of a
layer, so that every trial has tables of its own, and random matrices where a codec draws them by
layer.
"""

import dataclasses
import math
import os

import numpy as np

import families
import ladder
import metrics
import parallel
import peers
from codec import Samples, plan_parts, save_samples
from ours import write_calibration

DIMS = (128, 64, 96, 256)
HEADLINE_DIM = 128
CALIBRATION_TOKENS = 4096


@dataclasses.dataclass
class Exact:
    """One trial with everything about it that does not depend on a codec."""

    trial: families.Trial
    scores: np.ndarray  # [queries, tokens]
    weights: np.ndarray  # softmax(scores / sqrt(dim))
    output: np.ndarray  # weights @ values
    value_weights: np.ndarray  # [64, tokens]


@dataclasses.dataclass
class Data:
    """One family at one head_dim."""

    name: str
    family: str
    dim: int
    samples: Samples
    exact: list


def make_exact(trial, seed):
    """Scores, weights and outputs of a families.Trial."""
    scores = trial.queries @ trial.keys.T
    weights = metrics.softmax(scores / np.float32(math.sqrt(trial.keys.shape[1])))
    hot = np.random.default_rng(seed).standard_normal((64, len(trial.values))) * 2
    return Exact(trial, scores, weights, weights @ trial.values,
                 metrics.softmax(hot.astype(np.float32)))


def make_data(context, family, dim, trials):
    """Draws a family and saves it, with what its tables are made from."""
    name = f"{family} d={dim}"
    drawn = [families.draw(family, trial, dim) for trial in range(trials)]
    shape = (1, trials, 1, families.TOKENS, dim)
    keys = np.stack([trial.keys for trial in drawn]).reshape(shape)
    values = np.stack([trial.values for trial in drawn]).reshape(shape)
    layers = []
    for trial in range(trials):
        sample = families.draw_calibration(family, trial, dim, CALIBRATION_TOKENS)
        layers.append({"keys": sample.keys[:, None], "queries": sample.queries[:, None],
                       "values": sample.values[:, None]})
    calibration = os.path.join(context.scratch, f"{family}-{dim}.safetensors")
    write_calibration(calibration, layers, CALIBRATION_TOKENS)
    samples = save_samples(context.scratch, name, keys, values, "fp32", calibration)
    exact = [make_exact(trial, 5 + index) for index, trial in enumerate(drawn)]
    return Data(name, family, dim, samples, exact)


def key_metrics(data, keys):
    """keys: [1, trials, 1, tokens, dim]. eps has a standard error over trials."""
    pooled, single, att, tv = metrics.ScoreError(), [], [], []
    for index, exact in enumerate(data.exact):
        estimate = exact.trial.queries @ keys[0, index, 0].T
        error = metrics.ScoreError()
        error.add(estimate, exact.scores, exact.trial.queries, exact.trial.keys)
        pooled.merge(error)
        single.append(error.eps)
        weights = metrics.softmax(estimate / np.float32(math.sqrt(data.dim)))
        att.append(metrics.relative_error(weights @ exact.trial.values, exact.output))
        tv.append(metrics.total_variation(weights, exact.weights))
    att_mean, att_se = metrics.mean_and_error(np.concatenate(att))
    return {"eps": pooled.eps, "eps_se": metrics.mean_and_error(single)[1], "slope": pooled.slope,
            "att": att_mean, "att_se": att_se, "tv": float(np.mean(tv))}


def value_metrics(data, values):
    """values: [1, trials, 1, tokens, dim]."""
    error = exact_norm = 0.0
    for index, exact in enumerate(data.exact):
        difference = exact.value_weights @ (values[0, index, 0] - exact.trial.values)
        error += float(np.linalg.norm(difference) ** 2)
        exact_norm += float(np.linalg.norm(exact.value_weights @ exact.trial.values) ** 2)
    return {"output_error": math.sqrt(error / exact_norm)}


def _measure(item):
    data, codec, parts = item
    answer = codec.reconstruct(data.samples, ladder.BLOCK_TOKENS)
    row = {"section": "synthetic", "data": data.name, "codec": codec.name, "ours": codec.ours,
           "block_tokens": ladder.BLOCK_TOKENS, "key_bits": answer.key_bits,
           "value_bits": answer.value_bits, "bits": answer.bits}
    rows = []
    if "keys" in parts:
        rows.append({**row, "part": "keys", **key_metrics(data, answer.keys)})
    if "values" in parts and data.family == "gauss":  # values are the same in every family
        rows.append({**row, "part": "values", **value_metrics(data, answer.values)})
    return rows


def run(context):
    """Rows of the section, and its Data by name for the section on block sizes."""
    trials = 1 if context.quick else 4
    dims = (HEADLINE_DIM, 64) if context.quick else DIMS
    wanted = [(family, dim) for dim in dims for family in families.FAMILIES]
    made = parallel.run(lambda pair: make_data(context, *pair, trials), wanted, context.jobs,
                        "synthetic data")
    context.require(made)
    items = []
    for data in made:
        codecs = [context.ours.as_codec(profile)
                  for profile in ladder.profiles(data.dim, False, context.quick)]
        codecs += peers.peers(False, context.quick)
        plan = plan_parts(context.chosen("synthetic", codecs))
        measured = {"keys", "values"} if data.family == "gauss" else {"keys"}
        items += [(data, codec, parts) for codec, parts in plan if measured & set(parts)]
    parallel.say(f"(a) synthetic families: {len(items)} measurements")
    rows = context.gather(parallel.run(_measure, items, context.jobs, "synthetic"))
    return rows, {data.name: data for data in made}
