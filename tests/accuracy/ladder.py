"""Which of our profiles are measured.

They are named by the spec a user types, for example qjl3p:center=table,value_bits=2. `klt` takes
its sizes from its tables: klt:384+256 is the spec `klt` with tables of 384 stored bits a key and
256 a value.
"""

import dataclasses
from typing import Optional

BLOCK_TOKENS = 64  # everywhere but in the section on block sizes
VARIANTS = ("", "center=table", "center=block", "outliers=4", "outliers=4,outlier_source=table",
            "outliers=4,center=table")


@dataclasses.dataclass(frozen=True)
class Profile:
    """keys, values: its two halves, named so that equal names are equal codecs. row_bits: of klt,
    stored bits of a key and of a value."""

    name: str
    keys: str
    values: str
    row_bits: Optional[tuple] = None

    @property
    def spec(self):
        """As the executables take it."""
        return "klt" if self.row_bits else self.name


def needs_tables(name):
    """Whether a profile works only for a model with registered tables."""
    return name.startswith("klt") or "=table" in name


def _planes(bits, variant, value_bits, value_codec=""):
    knobs = [variant] if variant else []
    knobs += [f"values={value_codec}"] if value_codec else []
    knobs.append(f"value_bits={value_bits}")
    return Profile(f"qjl{bits}p:{','.join(knobs)}", f"qjl{bits}p:{variant}".rstrip(":"),
                   f"{value_codec or 'rotated'} {value_bits}")


def _klt(key_bits, value_bits):
    return Profile(f"klt:{key_bits}+{value_bits}", f"klt keys {key_bits}",
                   f"klt values {value_bits}", (key_bits, value_bits))


def _sketches(dim, by_layer):
    """QJL proper. by_layer: qjl-paper goes by layer, else its early and late widths are forced."""
    found = [Profile("raw", "raw", "raw")]
    for spec in (f"qjl:sign_bits={dim}", f"qjl:sign_bits={2 * dim}",
                 f"qjl:sign_bits={2 * dim},outliers=4"):
        found.append(Profile(spec, spec, "minmax 2"))
    if by_layer:
        found.append(Profile("qjl-paper", "qjl-paper", "minmax 2"))
    else:
        for spec in (paper_spec(dim, early) for early in (True, False)):
            found.append(Profile(spec, spec, "minmax 2"))
    return found


def paper_spec(dim, early):
    """qjl-paper with the widths of an early or a late layer."""
    widths = (4 * dim, dim) if early else (2 * dim, 2 * dim)
    return "qjl-paper:sign_bits={},outlier_sign_bits={}".format(*widths)


def profiles(dim, by_layer, quick):
    """Every profile for data of head_dim `dim`."""
    found = _sketches(dim, by_layer)
    if quick:
        found += [_planes(2, variant, 2) for variant in VARIANTS]
        found += [_planes(3, "center=table", 2), _planes(4, "", 4),
                  _planes(2, "center=table", 2, "minmax"), _klt(2 * dim, 2 * dim),
                  _klt(3 * dim, 2 * dim)]
        return found
    found += [_planes(bits, variant, bits) for bits in (2, 3, 4) for variant in VARIANTS]
    found += [_planes(3, "", 2), _planes(3, "center=table", 2), _planes(4, "center=table", 3),
              _planes(4, "center=table", 2)]
    found += [_planes(bits, "center=table", bits, "minmax") for bits in (2, 4)]
    pairs = ((1.5, 1), (1.5, 1.5), (2, 1), (2, 1.5), (2, 2), (2.5, 1.5), (2.5, 2), (3, 1.5), (3, 2),
             (3, 3), (3.25, 2), (4, 2), (4, 3), (4, 4))
    for key, value in pairs:  # bits a number; stored rows are whole 32-bit words
        rows = (round(key * dim), round(value * dim))
        if all(bits % 32 == 0 for bits in rows):
            found.append(_klt(*rows))
    return found


def block_families(dim, quick):
    """{family: its profiles at rising bits}: curves for the section on block sizes."""
    widths = (2, 3) if quick else (2, 3, 4)
    families = {}
    for variant in VARIANTS:
        name = "qjlNp" + (f":{variant}" if variant else "")
        families[name] = [_planes(bits, variant, bits) for bits in widths]
    rows = [bits * dim for bits in widths]
    families["klt"] = [_klt(bits, bits) for bits in rows]
    families["qjl"] = [Profile(spec, spec, "minmax 2") for spec in
                       (f"qjl:sign_bits={bits * dim}" for bits in (1, *widths))]
    families["qjl-paper"] = [Profile(spec, spec, "minmax 2") for spec in
                             (f"qjl-paper:sign_bits={bits * dim},outlier_sign_bits={dim}"
                              for bits in (1, *widths))]
    return families


def family_of(name):
    """The family of block_families that a profile belongs to, for any value codec."""
    codec, _, knobs = name.partition(":")
    if codec not in ("qjl2p", "qjl3p", "qjl4p"):
        return codec
    kept = [knob for knob in knobs.split(",") if knob and not knob.startswith("value")]
    return "qjlNp" + (":" + ",".join(kept) if kept else "")
