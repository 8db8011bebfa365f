"""Section (d): which block size is best at equal bits?

Each family of profiles is a curve of log error against exact effective bits, one for each block
size, through its bit widths. At equal bits: the curve of every block size is read at the bits that
the family's second width takes in blocks of 64, interpolated linearly in (bits, log error) between
neighbouring widths, or extended from the nearest two where constants of small blocks push a whole
curve past that point (said so in the row).

Errors: eps of keys on the synthetic families at dim 128; on tiny-lm the attention-output error with
keys and values of all 1,024 tokens of a segment through the codec, a query's own and newest ones
too: larger than in section (b), where those are exact, and only to be compared within the section.
"""

import math

import numpy as np

import ladder
import lm_data
import metrics
import parallel
from codec import save_samples
from synthetic import key_metrics
from tiny_lm import attention_weights, weighted_values

BLOCK_SIZES = (16, 32, 64, 128, 256, 512, 1024)


def _lm_error(data, segments, answer):
    """Mean over queries of the attention-output error, everything they see compressed."""
    errors = []
    for index, segment in enumerate(segments):
        for layer in range(data.model.layers):
            exact = lm_data.exact_attention(data, segment, layer)[2]
            weights, _ = attention_weights(data.queries[segment, layer], answer.keys[index, layer],
                                           data.visible(lm_data.SEGMENT))
            output = weighted_values(weights, answer.values[index, layer])
            errors.append(metrics.relative_error(output, exact).mean())
    return float(np.mean(errors))


def at_equal_bits(points, bits):
    """points: [(bits, error)] at rising bits -> (error at `bits`, whether extended)."""
    x, y = np.array(points).T
    right = int(np.clip(np.searchsorted(x, bits), 1, len(x) - 1))
    share = (bits - x[right - 1]) / (x[right] - x[right - 1])
    log_error = math.log(y[right - 1]) + share * math.log(y[right] / y[right - 1])
    return math.exp(log_error), not x[0] <= bits <= x[-1]


def compare(rows):
    """One summary row a data set, family and block size, from the section's measurements."""
    curves = {}
    for row in rows:
        sizes = curves.setdefault((row["data"], row["family"]), {})
        sizes.setdefault(row["block_tokens"], []).append((row["curve_bits"], row["error"]))
    summary = []
    for (data, family), sizes in curves.items():
        reference = sizes.get(ladder.BLOCK_TOKENS, [])
        if len(reference) < 2 or any(len(points) != len(reference) for points in sizes.values()):
            continue
        bits = sorted(reference)[1][0]
        read = {size: at_equal_bits(sorted(points), bits) for size, points in sizes.items()}
        best = min(error for error, _ in read.values())
        for size in sorted(read):
            error, extended = read[size]
            summary.append({"section": "block-size-equal", "data": data, "codec": family,
                            "ours": True, "block_tokens": size, "bits": bits, "error": error,
                            "over_best": error / best - 1, "extended": extended})
    return summary


def run(context, synthetic_data, lm):
    """Rows of the section: every measurement, then the summaries at equal bits. synthetic_data:
    {name: synthetic.Data}; lm: LmData."""
    sets = [data for data in synthetic_data.values() if data.dim == 128
            and (not context.quick or data.family == "out-mean")]
    segments = range(0, lm.num_heldout, 2 if context.quick else 4)
    whole = save_samples(context.scratch, "tiny-lm-1024", lm.keys[segments], lm.values[segments],
                         "bf16", lm.stored.calibration_path)
    sizes = (16, 64, 1024) if context.quick else BLOCK_SIZES

    def measure(item):
        family, codec, size, data = item
        answer = codec.reconstruct(whole if data is lm else data.samples, size)
        row = {"section": "block-size", "family": family, "codec": codec.name, "ours": True,
               "block_tokens": size, "key_bits": answer.key_bits,
               "value_bits": answer.value_bits, "bits": answer.bits}
        if data is lm:
            error = _lm_error(lm, segments, answer)
            return [{**row, "data": "heldout", "part": "both", "curve_bits": answer.bits,
                     "att": error, "error": error}]
        found = key_metrics(data, answer.keys)
        return [{**row, "data": data.name, "part": "keys", "curve_bits": answer.key_bits, **found,
                 "error": found["eps"]}]

    items = []
    for family, profiles in ladder.block_families(128, context.quick).items():
        codecs = context.chosen("block-size", [context.ours.as_codec(p) for p in profiles])
        items += [(family, codec, size, data) for data in [lm, *sets] for size in sizes
                  for codec in codecs]
    parallel.say(f"(d) block sizes: {len(items)} measurements")
    rows = context.gather(parallel.run(measure, items, context.jobs, "block sizes"))
    return rows + compare(rows)
