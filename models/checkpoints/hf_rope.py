"""Rotary embeddings as config.json describes them, in the names of transformers 4 and 5."""

import dataclasses
from typing import Annotated, Any, Protocol

from models.checkpoints.hf_fields import Factor, Length, Theta
from models.checkpoints.hf_settings import Between, OneOf, Settings
from models.layers.rope_config import MRope, RopeConfig, RopeKind
from vkq_jax.messages import show, some

__all__ = ["RopeSettings", "given_rope", "read_rope", "rope_of"]


# The other kind is that of one decoder, which reads it itself.
_KINDS = tuple(kind for kind in RopeKind if kind is not RopeKind.PROPORTIONAL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeSettings(Settings):
    """The object `rope_parameters` of transformers 5, `rope_scaling` of transformers 4."""

    rope_type: Annotated[RopeKind, OneOf({kind.value: kind for kind in _KINDS})]
    rope_theta: Theta
    partial_rotary_factor: float | None = None
    factor: Factor | None = None
    original_max_position_embeddings: Length | None = None
    attention_factor: Factor | None = None
    beta_fast: Factor | None = None
    beta_slow: Factor | None = None
    truncate: bool | None = None
    mscale: Annotated[float, Between(0, 1e6)] | None = None
    mscale_all_dim: Annotated[float, Between(0, 1e6)] | None = None
    low_freq_factor: Factor | None = None
    high_freq_factor: Factor | None = None
    short_factor: tuple[Factor, ...] | None = None
    long_factor: tuple[Factor, ...] | None = None
    ignored = frozenset({"type", "finetuned"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class MRopeSettings(Settings):
    """Fields of the same object in decoders whose positions have three axes."""

    mrope_section: tuple[Annotated[int, Between(0, 2**12)], ...] | None = None
    mrope_interleaved: bool | None = None

    def settle(self, default: MRope, where: str) -> MRope:
        """The decoder's M-RoPE; as in transformers, its model_type decides whether it interleaves.

        Raises:
            NotImplementedError: another order than that of the decoder.
            ValueError: not three numbers.
        """
        if self.mrope_interleaved not in (None, default.interleaved):
            raise NotImplementedError(
                f"{where}.mrope_interleaved={self.mrope_interleaved}; supported for this "
                f"model_type: {default.interleaved}"
            )
        if self.mrope_section is None:
            return default
        if len(self.mrope_section) != 3:
            raise ValueError(
                f"{where}.mrope_section: expected three numbers, got "
                f"{show(list(self.mrope_section))}"
            )
        time, row, column = self.mrope_section
        return MRope((time, row, column), default.interleaved)


class TowerSettings(Protocol):
    """The fields of a text tower that say what RoPE its queries and keys have."""

    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def original_max_position_embeddings(self) -> int | None: ...
    @property
    def partial_rotary_factor(self) -> float | None: ...
    @property
    def rope_theta(self) -> float: ...
    @property
    def rope_parameters(self) -> dict[str, Any] | None: ...
    @property
    def rope_scaling(self) -> dict[str, Any] | None: ...


_NEEDED = {
    RopeKind.LINEAR: ("factor",),
    RopeKind.DYNAMIC: ("factor",),
    RopeKind.YARN: ("factor",),
    RopeKind.LLAMA3: ("factor", "low_freq_factor", "high_freq_factor"),
    RopeKind.LONGROPE: ("short_factor", "long_factor"),
}


def read_rope(
    tower: TowerSettings, head_dim: int, where: str, *, mrope: MRope | None = None
) -> RopeConfig:
    """The rotary embedding of a text tower.

    Precedence is that of transformers: `rope_scaling` before `rope_parameters`, the theta of either
    before the tower's, and the tower's `original_max_position_embeddings` before that of either.

    Args:
        tower: the fields of the tower.
        head_dim: channels of a head.
        where: name of the tower in config.json.
        mrope: how the decoder shares pairs of channels among axes where its file does not say it;
            None: its positions have one axis.

    Raises:
        NotImplementedError: a setting that is not supported, named.
        ValueError: one that is missing, out of range, or contradicts another.
    """
    given, where = given_rope(tower, where)
    return rope_of(given, tower, head_dim, where, mrope=mrope)


def given_rope(tower: TowerSettings, where: str) -> tuple[dict[str, Any], str]:
    """The object that describes the rotary embedding of a tower, and its name."""
    name = "rope_scaling" if tower.rope_scaling else "rope_parameters"
    return tower.rope_scaling or tower.rope_parameters or {}, f"{where}.{name}"


def rope_of(
    given: dict[str, Any],
    tower: TowerSettings,
    head_dim: int,
    where: str,
    *,
    mrope: MRope | None = None,
    partial: bool = False,
) -> RopeConfig:
    """The rotary embedding that one object of a file describes; see `read_rope`.

    Args:
        given: the object.
        tower: what holds where the object says nothing.
        head_dim: channels of a head.
        where: name of the object in config.json.
        mrope: see `read_rope`.
        partial: whether `partial_rotary_factor` may say that only the first channels are rotated.
    """
    unread = RopeSettings.unread(given)
    if mrope is not None:
        mrope = MRopeSettings.read(given, where).settle(mrope, where)
        unread = [name for name in unread if name in MRopeSettings.unread(given)]
        # transformers 4 calls it a type of its own.
        plain = RopeKind.DEFAULT.value
        given = given | {n: plain for n in ("type", "rope_type") if given.get(n) == "mrope"}
    if unread:
        raise NotImplementedError(f"{where} has {some(unread)}, which is not supported")
    defaults = {
        "rope_type": given.get("type", RopeKind.DEFAULT.value),
        "rope_theta": tower.rope_theta,
        "partial_rotary_factor": tower.partial_rotary_factor,
    }
    settings = RopeSettings.read(defaults | given, where)
    share = settings.partial_rotary_factor
    if share not in (None, 1.0):
        if not partial:
            raise NotImplementedError(f"{where}.partial_rotary_factor={share}; supported: 1.0")
        if not 0 < share <= 1:
            raise ValueError(
                f"{where}.partial_rotary_factor: expected a number above 0, up to 1, got {share}"
            )
        head_dim = int(head_dim * share)
    for name in _NEEDED.get(settings.rope_type, ()):
        if getattr(settings, name) is None:
            raise ValueError(f"{where}.{name} is missing: {settings.rope_type.value} needs it")
    optional = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(RopeConfig)
        if getattr(settings, field.name, None) is not None
    }
    try:
        return RopeConfig(
            head_dim=head_dim,
            max_length=tower.max_position_embeddings,
            kind=settings.rope_type,
            theta=settings.rope_theta,
            original_max_length=(
                tower.original_max_position_embeddings or settings.original_max_position_embeddings
            ),
            mrope=mrope,
            **optional,
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
