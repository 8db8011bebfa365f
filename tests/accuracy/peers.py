"""The list of peers: each pairs a key codec with the value codec that its source uses.

TurboQuant and RaBitQ publish one vector codec and no other for values, so values get the same one
(TurboQuant_prod is made for inner products with a query; its values get TurboQuant_mse at the same
bits). QJL and KIVI store values by min-max per token.
"""

import zlib

import numpy as np

import peer_qjl
import peer_scalar
from codec import Codec, Reconstruction
from peer_rotated import ExtendedRabitq, TurboQuantMse, TurboQuantProd

_CHUNK_TOKENS = 16_384  # bounds the temporaries of long segments; a multiple of every group


class Peer:
    """make_keys, make_values: (dim, early, rng) -> function of rows [tokens, dim].
    key_bits, value_bits: (dim, early) -> stored bits a number.
    phase: "by layer" (early layers are the first 15/32), "early" or "late".
    values_name: equal for equal value codecs."""

    def __init__(self, name, make_keys, make_values, key_bits, value_bits, phase="by layer",
                 values_name=None):
        self.name, self.phase, self.values_name = name, phase, values_name or name
        self.make_keys, self.make_values = make_keys, make_values
        self.key_bits, self.value_bits = key_bits, value_bits

    def reconstruct(self, samples, block_tokens):
        """A peer groups tokens in its own way: block_tokens is not used."""
        del block_tokens
        layers, dim = samples.keys.shape[1], samples.keys.shape[-1]
        early = [self._is_early(layer, layers) for layer in range(layers)]
        keys = self._each_layer(samples.keys, early, self.make_keys)
        values = self._each_layer(samples.values, early, self.make_values)
        key_bits = float(np.mean([self.key_bits(dim, e) for e in early]))
        value_bits = float(np.mean([self.value_bits(dim, e) for e in early]))
        return Reconstruction(keys, values, key_bits, value_bits, (key_bits + value_bits) / 2)

    def _is_early(self, layer, layers):
        if self.phase != "by layer":
            return self.phase == "early"
        return layer < round(layers * peer_qjl.EARLY_SHARE)

    def _each_layer(self, x, early, make):
        if x is None:
            return None
        out = np.empty_like(x)
        segments, layers, heads, tokens, dim = x.shape
        for layer in range(layers):
            rng = np.random.default_rng([zlib.crc32(self.name.encode()), layer])
            codec = make(dim, early[layer], rng)
            for segment in range(segments):
                for head in range(heads):
                    for begin in range(0, tokens, _CHUNK_TOKENS):
                        part = (segment, layer, head, slice(begin, begin + _CHUNK_TOKENS))
                        out[part] = codec(x[part])
        return out

    def as_codec(self):
        return Codec(self.name, self.name, self.values_name, False, self.reconstruct)


def _plain(function, *arguments):
    return lambda dim, early, rng: lambda rows: function(rows, *arguments)


def _constant(bits):
    return lambda dim, early: bits


def _rotated(kind, bits):
    return lambda dim, early, rng: kind(dim, bits, rng)


def _with_scales(bits, scale_bits):
    return lambda dim, early: bits + scale_bits / dim


def _qjl(name, phase):
    return Peer(name, peer_qjl.QjlKeys, _plain(peer_scalar.minmax_per_token, 2),
                peer_qjl.key_bits, _constant(3.0), phase, "official-qjl")


def peers(by_layer, quick):
    """Every peer as a Codec. by_layer: the data's layers are a model's layers, so QJL's widths go
    by layer; else each width is measured on everything."""
    first = ("official-qjl", "by layer") if by_layer else ("official-qjl early", "early")
    found = [_qjl(*first), _qjl("official-qjl late", "late")]
    widths = (2,) if quick else (2, 3, 4)
    for bits in widths:
        mse, one_scale = _rotated(TurboQuantMse, bits), _with_scales(bits, 16)
        found.append(Peer(f"turboquant-mse-{bits}", mse, mse, one_scale, one_scale))
    for bits in widths:
        mse, one_scale = _rotated(TurboQuantMse, bits), _with_scales(bits, 16)
        found.append(Peer(f"turboquant-prod-{bits}", _rotated(TurboQuantProd, bits), mse,
                          _with_scales(bits, 32), one_scale,
                          values_name=f"turboquant-mse-{bits}"))
    for bits in widths:
        both, one_scale = _rotated(ExtendedRabitq, bits), _with_scales(bits, 16)
        found.append(Peer(f"rabitq-{bits}", both, both, one_scale, one_scale))
    for bits in (2, 4):
        found.append(Peer(f"kivi-{bits}", _plain(peer_scalar.minmax_per_channel, bits),
                          _plain(peer_scalar.minmax_per_token, bits),
                          _constant(bits + 1.0), _constant(bits + 1.0)))
    for name, function, bits in (("int4-g32", peer_scalar.int4_per_token, 4.5),
                                 ("fp8-e4m3", peer_scalar.fp8_e4m3, 8.0),
                                 ("bf16", peer_scalar.bf16, 16.0)):
        found.append(Peer(name, _plain(function), _plain(function), _constant(bits),
                          _constant(bits)))
    return [peer.as_codec() for peer in found]
