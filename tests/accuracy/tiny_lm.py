"""tests/data/tiny-lm in numpy: a Llama of 4 layers over bytes, with a cache that can be replaced.

Shapes: hidden 256, 4 query heads, 2 kv heads, dim 128; query head h reads kv head h / 2. Sources:
the model's README.md, which states the forward pass, and config.json.
"""

import json
import math
import os

import numpy as np

import metrics
from tensors import read_safetensors, round_bf16


class TinyLm:
    """Weights and forward pass. Immutable after construction."""

    def __init__(self, folder):
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        self.folder = folder
        self.layers = config["num_hidden_layers"]
        self.q_heads = config["num_attention_heads"]
        self.kv_heads = config["num_key_value_heads"]
        self.dim = config["head_dim"]
        self.eps = np.float32(config["rms_norm_eps"])
        self.theta = config["rope_theta"]
        weights = read_safetensors(os.path.join(folder, "model.safetensors"))
        self.weights = {name: array.astype(np.float32) for name, array in weights.items()}

    def forward(self, tokens, first_position=0, past=None, rounded=True):
        """Runs `tokens` (bytes, [n]) at positions first_position on.

        past: per layer the keys and values [kv_heads, p, dim] of the positions before, or None.
        rounded: hold keys and values as bf16, as engines do.
        Returns logits [n, 256] and per layer the queries [q_heads, n, dim], keys and values
        [kv_heads, n, dim] made here.
        """
        x = self.weights["model.embed_tokens.weight"][tokens]
        positions = np.arange(first_position, first_position + len(tokens))
        made = []
        for layer in range(self.layers):
            h = self._norm(x, f"model.layers.{layer}.input_layernorm")
            queries = self._rope(self._heads(h, layer, "q", self.q_heads), positions)
            keys = self._rope(self._heads(h, layer, "k", self.kv_heads), positions)
            values = self._heads(h, layer, "v", self.kv_heads)
            if rounded:
                keys, values = round_bf16(keys), round_bf16(values)
            made.append((queries, keys, values))
            if past is not None:
                keys = np.concatenate([past[layer][0], keys], 1)
                values = np.concatenate([past[layer][1], values], 1)
            output = attend(queries, keys, values)
            x = x + self._linear(output.transpose(1, 0, 2).reshape(len(tokens), -1),
                                 f"model.layers.{layer}.self_attn.o_proj")
            h = self._norm(x, f"model.layers.{layer}.post_attention_layernorm")
            gate = self._linear(h, f"model.layers.{layer}.mlp.gate_proj")
            up = self._linear(h, f"model.layers.{layer}.mlp.up_proj")
            x = x + self._linear(gate / (1 + np.exp(-gate)) * up,
                                 f"model.layers.{layer}.mlp.down_proj")
        return self._norm(x, "model.norm") @ self.weights["model.embed_tokens.weight"].T, made

    def _linear(self, x, name):
        return x @ self.weights[name + ".weight"].T

    def _norm(self, x, name):
        scale = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps)
        return x * scale * self.weights[name + ".weight"]

    def _heads(self, x, layer, kind, heads):
        """[n, hidden] -> [heads, n, dim]."""
        y = self._linear(x, f"model.layers.{layer}.self_attn.{kind}_proj")
        return np.ascontiguousarray(y.reshape(len(x), heads, self.dim).transpose(1, 0, 2))

    def _rope(self, x, positions):
        """Rotates channel i with i + dim/2 by position / theta^(2i/dim)."""
        half = self.dim // 2
        angles = positions[:, None] / self.theta ** (np.arange(half) * 2 / self.dim)
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def attention_weights(queries, keys, visible):
    """Softmax of q.k / sqrt(dim): [q_heads, n, tokens]; also the scores q.k, same shape.

    queries: [q_heads, n, dim]; keys: [kv_heads, tokens, dim]; visible: bool [n, tokens].
    """
    q_heads, n, dim = queries.shape
    grouped = queries.reshape(len(keys), -1, dim)
    scores = (grouped @ keys.transpose(0, 2, 1)).reshape(q_heads, n, -1)
    weights = scores * np.float32(1 / math.sqrt(dim))
    weights[:, ~visible] = -np.inf
    return metrics.softmax(weights), scores


def weighted_values(weights, values):
    """[q_heads, n, tokens] x [kv_heads, tokens, dim] -> [q_heads, n, dim]."""
    q_heads, n, tokens = weights.shape
    grouped = weights.reshape(len(values), -1, tokens)
    return (grouped @ values).reshape(q_heads, n, -1)


def attend(queries, keys, values):
    """Causal attention of the last n of `tokens` positions: [q_heads, n, dim]."""
    n, tokens = queries.shape[1], keys.shape[1]
    visible = np.arange(tokens) <= np.arange(tokens - n, tokens)[:, None]
    return weighted_values(attention_weights(queries, keys, visible)[0], values)


def log_softmax(logits):
    """Natural logarithms of the predicted probabilities, over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def check_reference(model):
    """Compares with reference.json; returns what is off, as text lines.

    Bits a byte over predictions of bytes 1.. to 1e-4 and the logits there to 2e-3: the reference is
    float32 as well, summed in another order.
    """
    with open(os.path.join(model.folder, "reference.json"), encoding="utf-8") as file:
        reference = json.load(file)
    wrong = []
    for name in ("heldout.txt", "sample.txt"):
        want = reference[name]
        data = np.fromfile(os.path.join(model.folder, name), np.uint8)[: want["bytes"]]
        logits, _ = model.forward(data, rounded=False)
        loss = -log_softmax(logits)[np.arange(len(data) - 1), data[1:]] / math.log(2)
        for key, got in (("bits_per_byte_all", loss.mean()),
                         ("bits_per_byte_from_768", loss[768:].mean())):
            if not abs(got - want[key]) < 1e-4:
                wrong.append(f"{name}: {key} is {got:.6f}, want {want[key]:.6f}")
        for position, values in want["logits"].items():
            error = np.abs(logits[int(position), : len(values)] - values).max()
            if not error < 2e-3:
                wrong.append(f"{name}: logits at {position} are off by {error:.5f}")
    return wrong
