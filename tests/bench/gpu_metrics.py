"""Metrics of the kernels for GPUs: launches, timed by the card's own events."""

import rows
from contest import Entry
from rows import Bar

PROFILES = ("qjl", "qjl3p")  # 256 sign bits; the default profile
BLOCKS = (16, 64)            # tokens
QUERIES = 4                  # a key
COPY = "device copy"


class Card:
    """What the metrics need of a run: contenders and sizes."""

    def __init__(self, bench):
        self.bench = bench
        word, text = bench.card()
        self.name = text if word == "ok" else None
        self.absent = text if word == "absent" else None  # why there is none
        # Of one launch: many sequences. On any card, several times what its L2 holds.
        self.large = {"sequences": 2, "tokens": 2048} if bench.quick else \
            {"sequences": 32, "tokens": 32768}
        self.copied = (4 if bench.quick else 2048) << 20
        # Of the layers that take turns where a launch is over one sequence.
        self.turns = (4 if bench.quick else 512) << 20

    def ours(self, label, name, profile, **options):
        return Entry(label, self.bench.gpu, name,
                     {"profile": profile, "queries": QUERIES, **options})

    def official(self, name, **options):
        return Entry("official QJL", self.bench.official, name, {"queries": QUERIES, **options})

    def exact(self, **options):
        """Attention over bf16: PyTorch's backends that are made for this, and Triton."""
        return [Entry(label, self.bench.torch, name, {"queries": QUERIES, **options})
                for label, name in (("PyTorch SDPA, flash", "sdpa.flash"),
                                    ("PyTorch SDPA, cuDNN", "sdpa.cudnn"),
                                    ("PyTorch SDPA, efficient", "sdpa.efficient"),
                                    ("Triton split decode", "triton.decode"))]

    def layers(self, bytes_):
        """How many layers of so many bytes take turns."""
        return max(-(-self.turns // bytes_), 4)


def _times(card, metric, ours, peers, bar):
    """Rows of microseconds a launch; the limit is the time that a copy takes for as many bytes."""
    copy = Entry(COPY, card.bench.gpu, "gpu.copy", {"bytes": card.copied})
    results = card.bench.run(ours + peers + [copy])
    return [_row(card, metric, entry.label, results[entry.label],
                 {peer.label: results[peer.label] for peer in peers}, results[COPY], bar)
            for entry in ours]


def _row(card, metric, variant, ours, peers, copy, bar):
    def microseconds(result):
        return result.absent or result.median / 1000

    limit = None
    if not copy.absent and not ours.absent:
        limit = COPY, copy.median * ours.bytes_per_unit / 1000
    notes = {"card": card.name, "bytes": ours.bytes_per_unit or None}
    if not ours.absent:
        notes.update(gb_per_s=ours.bytes_per_unit / ours.median, copy_gb_per_s=1 / copy.median)
    row = rows.make(
        metric, variant, "us", None if ours.absent else microseconds(ours),
        {label: microseconds(result) for label, result in peers.items()},
        limit=limit, bar=bar, notes=notes,
        fastest={label: result.fastest / 1000
                 for label, result in [(None, ours), *peers.items()] if result.times})
    if ours.absent:
        row["absent"][metric] = ours.absent
    if card.name:
        row["machine"] = f"{card.name}; {row['machine']}"
    return row


def _in_blocks(card, name, suffix="", **options):
    """Our kernel over every profile and size of block."""
    return [card.ours(f"{profile}, {block}-token blocks{suffix}", name, profile, block=block,
                      **card.large, **options)
            for profile in PROFILES for block in BLOCKS]


def gpu_score(card):
    """Bytes are those of codes and scales; the scores, floats or halves, are written besides."""
    found = []
    everything = _in_blocks(card, "gpu.score") + \
        _in_blocks(card, "gpu.score", ", halves", halves=1)
    for block, share in zip(BLOCKS, (0.65, 0.75)):
        ours = [entry for entry in everything if entry.options["block"] == block]
        found += _times(card, "gpu.score", ours, [], Bar(limit_share=share))
    return found


def gpu_attend(card):
    return _times(card, "gpu.attend", _in_blocks(card, "gpu.attend"), card.exact(**card.large),
                  Bar(limit_share=0.7))


def gpu_attend_b1(card):
    """One sequence, one layer; each call finds another layer's tokens."""
    found = []
    for tokens, bar in ((1024, None),) if card.bench.quick else (
            (8192, None), (32768, Bar(ratio=3)), (131072, Bar(ratio=4))):
        # Bytes a token: about 84 a kv head for ours, 512 exact.
        ours = [card.ours(f"{profile}, {tokens // 1024}k", "gpu.attend.b1", profile, tokens=tokens,
                          sequences=card.layers(8 * 84 * tokens)) for profile in PROFILES]
        peers = card.exact(sequences=1, tokens=tokens, layers=card.layers(8 * 512 * tokens))
        found += _times(card, "gpu.attend.b1", ours, peers, bar)
    return found


def _codec(card, metric, name, peers, bar):
    """Keys and values in bf16 and their cells, both of which count as bytes."""
    ours = [card.ours(profile, name, profile, **card.large) for profile in PROFILES]
    return _times(card, metric, ours, peers, bar)


def gpu_encode(card):
    return _codec(card, "gpu.encode", "gpu.encode", [], Bar(limit_share=0.6))


def gpu_encode_official(card):
    """The official kernel quantises as many keys and no values."""
    return _codec(card, "gpu.encode.official", "gpu.encode",
                  [card.official("official.quantise", **card.large)], Bar(ratio=15))


def gpu_score_official(card):
    ours = [card.ours(profile, "gpu.score", profile, **card.large) for profile in PROFILES]
    return _times(card, "gpu.score.official", ours,
                  [card.official("official.score", **card.large)], Bar(ratio=30))


def gpu_decode(card):
    return _codec(card, "gpu.decode", "gpu.decode", [], Bar(limit_share=0.6))


METRICS = {
    "gpu.score": gpu_score,
    "gpu.score.official": gpu_score_official,
    "gpu.attend": gpu_attend,
    "gpu.attend.b1": gpu_attend_b1,
    "gpu.encode": gpu_encode,
    "gpu.encode.official": gpu_encode_official,
    "gpu.decode": gpu_decode,
}
