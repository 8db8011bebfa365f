"""Section (b): what a compressed cache does to a real language model.

The exact model prefills 768 tokens; their keys, values or both are replaced by what the codec gives
back; bytes 769..1023 are predicted, teacher-forced, attending exactly to newer tokens. Against the
exact model: KL divergence and bits a byte (paired over segments), top-1 agreement, and on the exact
model's own queries the attention-output error per layer, eps, slope and tv.
"""

import math

import numpy as np

import ladder
import lm_data
import metrics
import parallel
import peers
from codec import plan_parts
from tiny_lm import attention_weights, weighted_values


def _select(data, segment, part, answer):
    """Stored keys and values [layers, kv_heads, 768, dim] with one half or both from the codec."""
    keys = answer.keys if part != "values" else data.stored.keys
    values = answer.values if part != "keys" else data.stored.values
    return keys[segment], values[segment]


def _prediction(data, segments, part, answer):
    """KL, bits a byte and agreement over `segments`, with standard errors over them."""
    kl, loss, exact_loss, agreement = [], [], [], []
    for segment in segments:
        text = data.text[segment]
        log_probs = lm_data.predict(data.model, text, *_select(data, segment, part, answer))
        exact = data.log_probs[segment]
        targets = text[lm_data.STORED + 1 :]
        rows = np.arange(len(targets))
        kl.append((np.exp(exact) * (exact - log_probs)).sum(1).mean() / math.log(2))
        loss.append(-log_probs[rows, targets].mean() / math.log(2))
        exact_loss.append(-exact[rows, targets].mean() / math.log(2))
        agreement.append((log_probs.argmax(1) == exact.argmax(1)).mean())
    kl_mean, kl_se = metrics.mean_and_error(kl)
    excess, excess_se = metrics.mean_and_error(np.subtract(loss, exact_loss))
    top1, top1_se = metrics.mean_and_error(agreement)
    return {"kl": kl_mean, "kl_se": kl_se, "bits_per_byte": float(np.mean(loss)),
            "bits_per_byte_excess": excess, "bits_per_byte_excess_se": excess_se,
            "top1": top1, "top1_se": top1_se, "segments": len(kl),
            "predicted_bytes": len(kl) * (lm_data.SEGMENT - lm_data.STORED - 1)}


def _attention(data, segments, part, answer):
    """Attention errors of the exact model's queries over stored and own tokens."""
    pooled = metrics.ScoreError()
    att = np.zeros((len(segments), data.model.layers))
    tv = np.zeros_like(att)
    visible = data.visible(lm_data.SEGMENT)
    for index, segment in enumerate(segments):
        stored_keys, stored_values = _select(data, segment, part, answer)
        for layer in range(data.model.layers):
            exact_weights, exact_scores, exact = lm_data.exact_attention(data, segment, layer)
            queries = data.queries[segment, layer]
            weights = exact_weights
            if part != "values":
                keys = np.concatenate([stored_keys[layer],
                                       data.keys[segment, layer, :, lm_data.STORED :]], 1)
                weights, scores = attention_weights(queries, keys, visible)
                _add_scores(pooled, data, segment, layer, scores, exact_scores)
            values = np.concatenate([stored_values[layer],
                                     data.values[segment, layer, :, lm_data.STORED :]], 1)
            output = weighted_values(weights, values)
            att[index, layer] = metrics.relative_error(output, exact).mean()
            tv[index, layer] = metrics.total_variation(weights, exact_weights).mean()
    mean, error = metrics.mean_and_error(att.mean(1))
    found = {"att": mean, "att_se": error, "att_by_layer": att.mean(0).tolist(),
             "tv": float(tv.mean())}
    if part == "keys":
        found.update(eps=pooled.eps, slope=pooled.slope)
    return found


def _add_scores(pooled, data, segment, layer, scores, exact_scores):
    """Only stored tokens count for eps and slope."""
    queries = data.queries[segment, layer]
    share = len(queries) // data.stored.keys.shape[2]
    for head, head_queries in enumerate(queries):
        pooled.add(scores[head, :, : lm_data.STORED], exact_scores[head, :, : lm_data.STORED],
                   head_queries, data.stored.keys[segment, layer, head // share])


def run(context, data):
    """Rows of the section, one a codec, part and text."""

    def measure(item):
        codec, parts = item
        answer = codec.reconstruct(data.stored, ladder.BLOCK_TOKENS)
        row = {"section": "tiny-lm", "codec": codec.name, "ours": codec.ours,
               "block_tokens": ladder.BLOCK_TOKENS, "key_bits": answer.key_bits,
               "value_bits": answer.value_bits, "bits": answer.bits}
        rows = []
        for part in parts:
            for text, segments in data.groups():
                if text == "heldout" or part == "both":
                    rows.append({**row, "data": text, "part": part,
                                 **_prediction(data, segments, part, answer),
                                 **_attention(data, segments, part, answer)})
        return rows

    codecs = [context.ours.as_codec(profile)
              for profile in ladder.profiles(data.model.dim, True, context.quick)]
    plan = plan_parts(context.chosen("tiny-lm", codecs + peers.peers(True, context.quick)))
    parallel.say(f"(b) tiny-lm: {len(plan)} codecs")
    return context.gather(parallel.run(measure, plan, context.jobs, "tiny-lm"))
