"""Settings of the rotary position embedding, of every published kind."""

import dataclasses
from enum import StrEnum

import numpy as np

__all__ = ["MRope", "RopeConfig", "RopeKind"]


class RopeKind(StrEnum):
    """How frequencies are stretched.

    Sources: linear, position interpolation (arXiv 2306.15595); yarn (2309.00071), whose section 3
    has dynamic scaling, too; longrope (2402.13753); llama3 and proportional, transformers'
    `modeling_rope_utils.py`.
    """

    DEFAULT = "default"
    LINEAR = "linear"
    DYNAMIC = "dynamic"
    YARN = "yarn"
    LONGROPE = "longrope"
    LLAMA3 = "llama3"
    PROPORTIONAL = "proportional"


@dataclasses.dataclass(frozen=True)
class MRope:
    """Multimodal RoPE: one axis of a position (time, row, column) rotates each pair of channels.

    Source: Qwen2-VL, arXiv 2409.12191, section 2.1.

    Attributes:
        section: pairs of each axis.
        interleaved: whether rows and columns take every third pair (Qwen3-VL) instead of runs.
    """

    section: tuple[int, int, int]
    interleaved: bool = False

    def axis_of_pair(self, pairs: int) -> np.ndarray:
        """The axis, 0 to 2, that each of `pairs` pairs of channels is rotated by."""
        if not self.interleaved:
            return np.repeat(np.arange(3), self.section)
        axes = np.zeros(pairs, np.int64)
        for axis in (1, 2):
            axes[axis : 3 * self.section[axis] : 3] = axis
        return axes


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Settings of the rotary embedding; each kind reads only what its formula needs.

    Attributes:
        kind: the formula. head_dim: channels of a head that are rotated, the first ones.
        theta: base of the geometric series of wavelengths.
        max_length: longest sequence the model is meant for.
        original_max_length: longest sequence of pretraining, before any stretching.
        factor: stretching; None where it is max_length / original_max_length.
        attention_factor: explicit value of `attention_scaling` (yarn, longrope).
        beta_fast, beta_slow, truncate, mscale, mscale_all_dim: yarn's ramp and scaling.
        low_freq_factor, high_freq_factor: llama3's band of interpolation.
        short_factor, long_factor: longrope's divisors, one per pair of channels.
        rotated_pairs: pairs of channels that are rotated, the first ones (proportional).
        interleaved: the channels of a pair lie side by side (2i, 2i + 1) in the weights, see
            `pairs_to_halves`.
        mrope: how pairs of channels are shared among the axes of a position; None: one axis.
    """

    head_dim: int
    max_length: int
    kind: RopeKind = RopeKind.DEFAULT
    theta: float = 10000.0
    original_max_length: int | None = None
    factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    mscale: float | None = None
    mscale_all_dim: float | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    rotated_pairs: int = 0
    interleaved: bool = False
    mrope: MRope | None = None

    @property
    def depends_on_length(self) -> bool:
        """Whether frequencies depend on the length of the call."""
        return self.kind in (RopeKind.DYNAMIC, RopeKind.LONGROPE)

    def __post_init__(self):
        """Checks what the settings say together; their ranges are those of the file they come from.

        Raises:
            ValueError: settings that contradict each other, named as in Hugging Face's files.
        """
        least = 4 if self.kind is RopeKind.DYNAMIC else 2  # dynamic's exponent divides by H - 2
        if self.head_dim < least or self.head_dim % 2:
            raise ValueError(
                f"head_dim: expected an even number of at least {least} for "
                f"rope_type={self.kind.value!r}, got {self.head_dim}"
            )
        if self.kind is RopeKind.LLAMA3 and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor: expected less than high_freq_factor={self.high_freq_factor}, "
                f"got {self.low_freq_factor}"
            )
        if self.kind is RopeKind.YARN and self.beta_fast < self.beta_slow:
            raise ValueError(
                f"beta_fast: expected at least beta_slow={self.beta_slow}, got {self.beta_fast}"
            )
        runs = () if self.mrope is None or self.mrope.interleaved else self.mrope.section
        if runs and sum(runs) != self.head_dim // 2:
            raise ValueError(
                f"mrope_section: expected numbers that sum to {self.head_dim // 2}, half of the "
                f"channels that are rotated, got {list(runs)}, whose sum is {sum(runs)}"
            )
        for name in ("short_factor", "long_factor") if self.kind is RopeKind.LONGROPE else ():
            if (count := len(getattr(self, name))) != self.head_dim // 2:
                raise ValueError(
                    f"{name}: expected {self.head_dim // 2} numbers, half of "
                    f"head_dim={self.head_dim}, got {count}"
                )

    @property
    def pretraining_length(self) -> int:
        """Longest sequence of pretraining."""
        return self.original_max_length or self.max_length

    @property
    def stretch(self) -> float:
        """The factor, explicit or implied by the two lengths."""
        return self.max_length / self.pretraining_length if self.factor is None else self.factor
