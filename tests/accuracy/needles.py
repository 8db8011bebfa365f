"""Section (c): is the one key that a query is after still found among very many others?

Distractors are N(0, I) keys, dim 128, one set for all trials; a context of n is its first n. Each
trial has a query q ~ N(0, I) and a needle key N(0, I) + strength * q/|q|. The strength, one for
all, is found by bisection so that exact recall@1 in the longest context is 90 %. Each needle is
encoded in a block of its own, at a random place among 63 other keys, which then play no part.

recall  share of trials in which the needle's score is above every distractor's
mass    softmax(q.k / sqrt(dim)) of the needle against the distractors, mean over trials
lost    exact recall - recall in the longest context, with the paired standard error over trials
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

DIM = 128
CONTEXTS = (1024, 4096, 16_384, 65_536, 131_072)
TARGET_RECALL = 0.90
_CHUNK = 4096


@dataclasses.dataclass
class Data:
    """samples holds the distractors and then the needles' blocks as one long segment."""

    samples: Samples
    contexts: tuple
    queries: np.ndarray  # [trials, dim]
    needle_tokens: np.ndarray  # where the needles are among the samples' tokens, [trials]
    strength: float
    exact: dict  # what _measure_keys gives for the exact keys


def _find_strength(noise_scores, query_norms, highest):
    """Bisects on the share of trials whose needle wins: score = q.noise + strength * |q|."""
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        recall = np.mean(noise_scores + middle * query_norms > highest)
        low, high = (middle, high) if recall < TARGET_RECALL else (low, middle)
    return high


def _measure_keys(keys, queries, needle_tokens, contexts):
    """keys: [tokens, dim] -> per context bool [trials] found and float [trials] mass."""
    needles = np.einsum("td,td->t", queries, keys[needle_tokens])
    root = np.float32(1 / math.sqrt(DIM))
    highest = np.full(len(queries), -np.inf, np.float32)
    total = np.zeros(len(queries))
    found, mass, begin = [], [], 0
    for context in contexts:
        while begin < context:
            end = min(begin + _CHUNK, context)
            scores = queries @ keys[begin:end].T
            np.maximum(highest, scores.max(1), out=highest)
            scores *= root  # stays below 10: no need to take the maximum out before exp
            total += np.exp(scores, out=scores).sum(1)
            begin = end
        found.append(needles > highest)
        own = np.exp(needles * root)
        mass.append(own / (own + total))
    return {"found": np.array(found), "mass": np.array(mass), "highest": highest}


def make_data(context):
    """Draws everything and finds the strength."""
    contexts = CONTEXTS[:2] if context.quick else CONTEXTS
    trials = 200 if context.quick else 1000
    rng = np.random.default_rng(64_000)
    block = ladder.BLOCK_TOKENS
    keys = rng.standard_normal((contexts[-1] + trials * block, DIM), np.float32)
    queries = rng.standard_normal((trials, DIM), np.float32)
    blocks = contexts[-1] + block * np.arange(trials)
    needle_tokens = blocks + rng.integers(0, block, trials)
    norms = np.linalg.norm(queries, axis=1)
    plain = _measure_keys(keys, queries, needle_tokens, contexts)
    noise_scores = np.einsum("td,td->t", queries, keys[needle_tokens])
    strength = _find_strength(noise_scores, norms, plain["highest"])
    keys[needle_tokens] += np.float32(strength) * queries / norms[:, None]
    sample = families.draw_calibration("gauss", 0, DIM, 4096)
    calibration = os.path.join(context.scratch, "needles.safetensors")
    write_calibration(calibration, [{
        "keys": sample.keys[:, None], "queries": sample.queries[:, None],
        "values": sample.values[:, None]}], len(sample.keys))
    samples = save_samples(context.scratch, "needles", keys[None, None, None], None, "fp32",
                           calibration)
    exact = _measure_keys(keys, queries, needle_tokens, contexts)
    recall = exact["found"][-1].mean()
    if not 0.88 <= recall <= 0.92:
        raise RuntimeError(f"needles: exact recall is {recall}, want 0.90 +- 0.02")
    return Data(samples, contexts, queries, needle_tokens, strength, exact)


def run(context):
    """Rows of the section, one a codec; the exact keys first."""
    data = make_data(context)

    def row_of(name, ours, bits, measured):
        lost, lost_se = metrics.mean_and_error(data.exact["found"][-1].astype(float)
                                               - measured["found"][-1])
        recall = measured["found"].mean(1)
        trials = measured["found"].shape[1]
        return {"section": "needles", "data": f"gauss d={DIM}", "part": "keys", "codec": name,
                "ours": ours, "block_tokens": ladder.BLOCK_TOKENS, **bits, "trials": trials,
                "strength": data.strength, "contexts": list(data.contexts),
                "recall": recall.tolist(),
                "recall_se": np.sqrt(recall * (1 - recall) / trials).tolist(),
                "mass": measured["mass"].mean(1).tolist(),
                "mass_se": (measured["mass"].std(1, ddof=1) / math.sqrt(trials)).tolist(),
                "lost": lost, "lost_se": lost_se}

    def measure(item):
        codec, _ = item
        answer = codec.reconstruct(data.samples, ladder.BLOCK_TOKENS)
        bits = {"key_bits": answer.key_bits, "value_bits": answer.value_bits, "bits": answer.bits}
        measured = _measure_keys(answer.keys[0, 0, 0], data.queries, data.needle_tokens,
                                 data.contexts)
        return [row_of(codec.name, codec.ours, bits, measured)]

    codecs = [context.ours.as_codec(profile)
              for profile in ladder.profiles(DIM, False, context.quick)]
    codecs = context.chosen("needles", codecs + peers.peers(False, context.quick))
    plan = [item for item in plan_parts(codecs) if "keys" in item[1]]
    parallel.say(f"(c) needles: {len(plan)} key codecs")
    exact_bits = {"key_bits": 32.0, "value_bits": 32.0, "bits": 32.0}
    return [row_of("exact", False, exact_bits, data.exact)] + context.gather(
        parallel.run(measure, plan, context.jobs, "needles"))
