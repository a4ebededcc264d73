"""The shapes that `vkq bench kernel` times, and the small ones that it checks."""

import dataclasses
from typing import Literal

from pallas_kernels.attention.kernel_spec import TuningConfig
from pallas_kernels.layout import layouts
from vkq_apps.bench.codes import calibrated_plan
from vkq_apps.bench.dictionary_banks import bits_of_tokens
from vkq_jax.codes.dictionary_codes import DictionaryCodes
from vkq_jax.settings.config import KVQuantConfig
from vkq_jax.settings.presets import presets

__all__ = ["CASES", "CHECKS", "Calibration", "Case", "Positions"]

Calibration = Literal["per step", "static"]
Positions = Literal["picture", "line", "any"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One shape.

    Attributes:
        codes: "levels", "levels2" or "levels4" (bits), "signs8" or "signs16" (bits of a scale),
            the name of a preset of dictionary codes or of one of its plans with tables (see
            `calibrated_plan`), or "bfloat16", the kernel's own dense path.
        text: positions of a dense bank beside the visual one, in the same launch.
        text_bits: 16 (bfloat16), or 8 with a scale for each position.
        calibration: of the scores: "per step", which keeps them in the launch or takes one more,
            over the keys, before; or "static".
        window: positions of each bank, its last ones, that the queries see; None: all.
        goal: share of the bandwidth of a copy that the bytes of keys and values should be read at.
        key_bias: of keys that are coded without a bias, whose share is added to the scores, what
            RoPE turns it by: "picture", rows and columns of one picture on three axes (M-RoPE),
            "line", one position after the other, or "any", the same without a bound of positions.
    """

    batch: int
    kv_heads: int
    queries: int
    positions: int
    codes: str = "levels"
    head_dim: int = 128
    group_size: int | None = None
    text: int = 0
    calibration: Calibration | None = None
    window: int | None = None
    goal: float | None = None
    text_bits: int = 16
    key_bias: Positions | None = None

    @property
    def bits_stored(self) -> float:
        """Bits per element of the bank, with scales per position, without tables per group.

        With the channels of zeros that are stored beside its own.
        """
        if self.codes == "bfloat16":
            return 16.0
        if self.dictionary is not None:
            sides = (self.dictionary.key, self.dictionary.value)
            return sum(bits_of_tokens(x, self.head_dim) for x in sides) / (2 * self.head_dim)
        scale_bits = 0
        if self.codes.startswith("signs"):
            scale_bits = int(self.codes.removeprefix("signs"))
        stored = layouts.stored_head_dim(self.head_dim)
        return (self.code_bits * stored + scale_bits) / self.head_dim

    @property
    def dictionary(self) -> KVQuantConfig | None:
        """Settings of dictionary codes; None: these are others."""
        quant = presets.get(self.codes) or calibrated_plan(self.codes)
        return quant if quant and isinstance(quant.key, DictionaryCodes) else None

    @property
    def code_bits(self) -> int:
        """Bits of a code."""
        return int(self.codes.removeprefix("levels") or 1) if self.codes.startswith("levels") else 1

    @property
    def visible(self) -> int:
        """Positions that the queries see."""
        return self._seen(self.positions) + self._seen(self.text)

    @property
    def bytes(self) -> float:
        """Bytes of all keys and values that the queries see."""
        text_bits = 16 if self.text_bits == 16 else 8 + 16 / self.head_dim
        bits = self._seen(self.positions) * self.bits_stored + self._seen(self.text) * text_bits
        return self.batch * self.kv_heads * self.head_dim * 2 * bits / 8

    def _seen(self, positions: int) -> int:
        return positions if self.window is None else min(positions, self.window)


CASES = {
    "mha-32k": Case(16, 32, 1, 32768),
    "mha-8k": Case(16, 32, 1, 8192),
    "mha-2304": Case(16, 32, 1, 2304, goal=0.75),
    "mha-32k-signs8": Case(16, 32, 1, 32768, "signs8"),
    "mha-8k-signs8": Case(16, 32, 1, 8192, "signs8"),
    "mha-2304-signs8": Case(16, 32, 1, 2304, "signs8", goal=0.75),
    "mha-576-signs8": Case(64, 32, 1, 576, "signs8"),
    "mha-32k-groups-1024": Case(16, 32, 1, 32768, group_size=1024),
    "mha-32k-groups-256": Case(16, 32, 1, 32768, group_size=256),
    "b1-mha-32k": Case(1, 32, 1, 32768, goal=0.75),
    "b1-mha-32k-signs8": Case(1, 32, 1, 32768, "signs8", goal=0.75),
    "gqa4-32k": Case(16, 8, 4, 32768, goal=0.8),
    "gqa4-32k-signs8": Case(16, 8, 4, 32768, "signs8", goal=0.8),
    "gqa4-3328-signs8": Case(128, 8, 4, 3328, "signs8", goal=0.7),
    "gqa8-32k": Case(16, 4, 8, 32768, goal=0.6),
    "gqa8-32k-signs8": Case(16, 4, 8, 32768, "signs8", goal=0.6),
    "gqa7-32k-signs8": Case(16, 4, 7, 32768, "signs8", goal=0.6),
    "gqa7-8k-signs8": Case(16, 4, 7, 8192, "signs8"),
    "h64-8k-signs8": Case(16, 32, 1, 8192, "signs8", head_dim=64),
    "h96-8k-signs8": Case(16, 32, 1, 8192, "signs8", head_dim=96),
    "gqa16-8k-signs8": Case(16, 2, 16, 8192, "signs8"),
    "h256-8k-signs8": Case(16, 16, 1, 8192, "signs8", head_dim=256),
    "h256-gqa4-8k-signs8": Case(16, 4, 4, 8192, "signs8", head_dim=256),
    "mha-32k-signs8-text": Case(16, 32, 1, 32768, "signs8", text=256),
    "gqa4-3328-signs8-text": Case(128, 8, 4, 3328, "signs8", text=64),
    "mha-32k-signs8-text8": Case(16, 32, 1, 32768, "signs8", text=256, text_bits=8),
    "gqa4-3328-signs8-text8": Case(128, 8, 4, 3328, "signs8", text=64, text_bits=8),
    "mha-32k-2bit": Case(16, 32, 1, 32768, "levels2"),
    "mha-32k-4bit": Case(16, 32, 1, 32768, "levels4"),
    "mha-32k-calibrated": Case(16, 32, 1, 32768, calibration="per step"),
    "mha-2304-calibrated": Case(16, 32, 1, 2304, calibration="per step"),
    "gqa4-32k-calibrated": Case(16, 8, 4, 32768, calibration="per step"),
    "gqa4-32k-static-map": Case(16, 8, 4, 32768, calibration="static"),
    "gqa4-8k-window4k-signs8": Case(16, 8, 4, 8192, "signs8", window=4096),
    "mha-32k-vkq-1bit": Case(16, 32, 1, 32768, "vkq-1bit"),
    "mha-8k-vkq-1bit": Case(16, 32, 1, 8192, "vkq-1bit"),
    "mha-2304-vkq-1bit": Case(16, 32, 1, 2304, "vkq-1bit", goal=0.75),
    "mha-576-vkq-1bit": Case(64, 32, 1, 576, "vkq-1bit"),
    "b1-mha-32k-vkq-1bit": Case(1, 32, 1, 32768, "vkq-1bit", goal=0.75),
    "gqa4-32k-vkq-1bit": Case(16, 8, 4, 32768, "vkq-1bit", goal=0.8),
    "gqa4-3328-vkq-1bit": Case(128, 8, 4, 3328, "vkq-1bit", goal=0.7),
    "gqa4-3328-vkq-1bit-text": Case(128, 8, 4, 3328, "vkq-1bit", text=64),
    "gqa8-32k-vkq-1bit": Case(16, 4, 8, 32768, "vkq-1bit", goal=0.6),
    "gqa7-8k-vkq-1bit": Case(16, 4, 7, 8192, "vkq-1bit"),
    "gqa7-8k-signs8-bias": Case(16, 4, 7, 8192, "signs8", key_bias="picture"),
    "gqa7-8k-signs8-bias-line": Case(16, 4, 7, 8192, "signs8", key_bias="line"),
    "gqa7-8k-signs8-bias-any": Case(16, 4, 7, 8192, "signs8", key_bias="any"),
    "gqa7-8k-vkq-1bit-bias": Case(16, 4, 7, 8192, "vkq-1bit", key_bias="picture"),
    "gqa7-8k-vkq-1bit-bias-line": Case(16, 4, 7, 8192, "vkq-1bit", key_bias="line"),
    "gqa16-8k-vkq-1bit": Case(16, 2, 16, 8192, "vkq-1bit"),
    "h256-gqa2-8k-vkq-1bit": Case(16, 8, 2, 8192, "vkq-1bit", head_dim=256),
    "h256-gqa4-8k-vkq-1bit": Case(16, 4, 4, 8192, "vkq-1bit", head_dim=256),
    "gqa4-8k-window4k-vkq-1bit": Case(16, 8, 4, 8192, "vkq-1bit", window=4096),
    "mha-32k-vkq-half": Case(16, 32, 1, 32768, "vkq-half"),
    "mha-2304-vkq-half": Case(16, 32, 1, 2304, "vkq-half"),
    "gqa4-32k-vkq-half": Case(16, 8, 4, 32768, "vkq-half"),
    "gqa4-3328-vkq-half": Case(128, 8, 4, 3328, "vkq-half"),
    "gqa8-32k-vkq-half": Case(16, 4, 8, 32768, "vkq-half"),
    "mha-32k-vkq-2bit": Case(16, 32, 1, 32768, "vkq-2bit"),
    "gqa4-32k-vkq-2bit": Case(16, 8, 4, 32768, "vkq-2bit"),
    "gqa4-2304-vkq-1bit": Case(16, 8, 4, 2304, "vkq-1bit"),
    "mha-8k-bfloat16": Case(16, 32, 1, 8192, "bfloat16"),
    "gqa4-3328-bfloat16": Case(64, 8, 4, 3328, "bfloat16"),
    "gqa7-8k-bfloat16": Case(16, 4, 7, 8192, "bfloat16"),
}
# Plans of a calibrated model, at shapes of `vkq-1bit`, whose own plan has no name of codes in its.
_OF_TABLES = (
    *("mha-32k", "mha-2304", "b1-mha-32k", "gqa4-32k", "gqa4-2304", "gqa4-3328", "gqa8-32k"),
    "gqa7-8k",
)
_TABLES = {
    "tables": "vkq-1bit-tables",
    "vkq-half-tables": "vkq-half-tables",
    "vkq-2bit-tables": "vkq-2bit-tables",
    "plan3": "vkq-1bit-plan3",
    "vkq-2bit-plan2": "vkq-2bit-plan2",
}
CASES |= {
    f"{shape}-{name}": dataclasses.replace(CASES[f"{shape}-vkq-1bit"], codes=codes, goal=None)
    for name, codes in _TABLES.items()
    for shape in _OF_TABLES
}

# Small shapes for --check: every code path, lengths that end inside and at the edge of blocks.
_SMALL: list[tuple[str, int | None, int, int, int, Calibration | None, TuningConfig]] = [
    ("levels", None, 1, 2304, 0, None, TuningConfig(16, 4)),
    ("levels", 512, 4, 1700, 40, "per step", TuningConfig(8, 2, 2)),
    ("levels", None, 8, 1700, 40, "per step", TuningConfig(8, 8, 2, 8)),
    ("signs8", None, 7, 700, 0, None, TuningConfig(8, 4, 4, 7)),
    ("signs8", None, 4, 3328, 130, None, TuningConfig(16, 8, 8, 4)),
    ("signs16", None, 2, 2304, 17, "static", TuningConfig(4, 1, 1, 2)),
    ("signs8", None, 1, 576, 33, None, TuningConfig(16, 2)),
    ("levels2", None, 1, 700, 40, None, TuningConfig(8, 4)),
    ("levels4", None, 4, 1700, 40, "per step", TuningConfig(8, 8, 2, 4)),
    ("bfloat16", None, 4, 700, 40, None, TuningConfig(16, 4, 2, 4)),
]
CHECKS = [
    (Case(2, 2, queries, positions, codes, head_dim, group_size, text, calibration), tuning)
    for head_dim in (128, 64)
    for codes, group_size, queries, positions, text, calibration, tuning in _SMALL
]
# Stored with channels of zeros, rotated outside the launch.
CHECKS += [
    (Case(2, 2, 1, 2304, "signs8", head_dim=96, calibration="per step"), TuningConfig(16, 4))
]
# Calibrated in the launch: groups of positions, text; a window.
CHECKS += [
    (
        Case(2, 2, 1, 2304, "levels", group_size=512, text=40, calibration="per step"),
        TuningConfig(16, 8),
    ),
    (Case(2, 2, 1, 1700, "signs8", calibration="per step", window=700), TuningConfig(8, 4)),
]
# Two code planes of each side.
CHECKS += [
    (Case(2, 2, 4, 1700, "signs8", head_dim=256, calibration="per step"), TuningConfig(8, 4, 2, 4)),
    (Case(2, 2, 1, 1700, "levels", head_dim=256), TuningConfig(16, 4)),
]
# A sliding window: over one query, over several of a calibration, over dense banks.
CHECKS += [
    (Case(2, 2, 1, 2304, "levels", group_size=512, text=40, window=700), TuningConfig(16, 4)),
    (
        Case(2, 2, 7, 1700, "signs8", text=40, calibration="per step", window=30),
        TuningConfig(8, 4, 2, 7),
    ),
    (Case(2, 2, 4, 700, "bfloat16", text=40, window=100), TuningConfig(16, 4, 2, 4)),
]
# Text in 8 bits.
CHECKS += [
    (Case(2, 2, 1, 700, "signs8", text=45, text_bits=8, window=300), TuningConfig(8, 4)),
    (Case(2, 2, 4, 700, "signs8", head_dim=64, text=40, text_bits=8), TuningConfig(8, 2, 2, 4)),
]
# Keys without their bias: signs, levels calibrated in the launch, tokens without bits.
CHECKS += [
    (
        Case(2, 2, 7, 1700, "signs8", text=40, window=900, key_bias="picture"),
        TuningConfig(8, 4, 2, 7),
    ),
    (
        Case(2, 2, 1, 700, "levels", 64, calibration="per step", key_bias="any"),
        TuningConfig(8, 4),
    ),
    (Case(2, 2, 1, 1700, "vkq-1bit", key_bias="line"), TuningConfig(8, 4, 2)),
    (Case(2, 2, 4, 1700, "vkq-1bit", key_bias="picture"), TuningConfig(8, 4, 2, 4)),
]
# Dictionary codes: classes of one, two and three planes, tokens that are only counted; windows.
CHECKS += [
    (Case(2, 2, 1, 2304, "vkq-1bit", text=40), TuningConfig(16, 4)),
    (Case(2, 2, 1, 700, "vkq-2bit", head_dim=64, window=300), TuningConfig(8, 4)),
    (Case(2, 2, 1, 1700, "vkq-half", head_dim=256, window=700), TuningConfig(8, 4, 2)),
    (Case(2, 2, 4, 3328, "vkq-1bit", text=130), TuningConfig(16, 8, 2, 4)),
    (Case(2, 2, 4, 1700, "vkq-half", head_dim=64, text=40, window=700), TuningConfig(8, 2, 2, 4)),
    (Case(2, 2, 7, 1700, "vkq-1bit", window=900), TuningConfig(8, 4, 2, 7)),
    (Case(2, 2, 3, 700, "vkq-2bit", head_dim=256), TuningConfig(8, 4, 1, 3)),
]
# A codebook of the model's tables beside them.
CHECKS += [
    (Case(2, 2, 1, 2304, "vkq-1bit-tables", text=40), TuningConfig(16, 4)),
    (Case(2, 2, 1, 700, "vkq-1bit-tables", head_dim=64, window=300), TuningConfig(8, 4, 2)),
    (Case(2, 2, 4, 3328, "vkq-1bit-tables", text=130), TuningConfig(16, 8, 2, 4)),
    (Case(2, 2, 7, 1700, "vkq-1bit-tables", window=900), TuningConfig(8, 4, 2, 7)),
    (Case(2, 2, 3, 700, "vkq-1bit-tables", head_dim=256), TuningConfig(8, 4, 1, 3)),
]
# Four planes of a class.
CHECKS += [
    (Case(2, 2, 1, 2304, "vkq-1bit-plan3", text=40), TuningConfig(16, 4)),
    (Case(2, 2, 4, 1700, "vkq-2bit-plan2", window=900), TuningConfig(8, 4, 2, 4)),
]
# Learned dictionaries: a part of the launch for each class; pairs of centroids of a long bank.
CHECKS += [
    (Case(2, 2, 1, 2304, "vkq-half-tables", text=40), TuningConfig(16, 4)),
    (Case(2, 2, 1, 700, "vkq-2bit-tables", head_dim=64, window=300), TuningConfig(8, 4, 2)),
    (Case(2, 2, 4, 3328, "vkq-half-tables", text=130), TuningConfig(8, 8, 2, 4)),
    (Case(2, 2, 3, 1700, "vkq-2bit-tables", window=900), TuningConfig(8, 4, 1, 3)),
    (Case(2, 1, 4, 9000, "vkq-half-tables"), TuningConfig(8, 8, 1, 4)),
]
