"""Calibrated presets of a model: the content of `vkq_tables.safetensors`."""

from __future__ import annotations

from vkq_jax.codes.code_tables import CodeTables
from vkq_jax.messages import show
from vkq_jax.pytree import frozen_pytree, static_field
from vkq_jax.settings.config import KVQuantConfig
from vkq_jax.settings.score_maps import ScoreMap

__all__ = ["CalibratedCodes", "CalibratedPreset"]


@frozen_pytree
class CalibratedPreset:
    """The codes that stand for a preset's name once a model is calibrated.

    Attributes:
        tables: offline tables of the codes [L, K, ...], of the layers whose visual tokens are
            coded; of each kind, where they have heads of two sizes (Gemma 4); None: there are none.
        score_map: static score calibration [L, N]; None: scores are left alone, or calibrated at
            every step if `quant` says so.
        name: of the preset.
        quant: its settings, which calibration may have chosen.
    """

    tables: CodeTables | tuple[CodeTables, ...] | None
    score_map: ScoreMap | None
    name: str = static_field(kw_only=True)
    quant: KVQuantConfig = static_field(kw_only=True)


@frozen_pytree
class CalibratedCodes:
    """Calibrated presets of one model.

    Attributes:
        presets: one for each name.
        model: fingerprint of the model's weights, see `models.fingerprint`.
    """

    presets: tuple[CalibratedPreset, ...]
    model: str = static_field(kw_only=True)

    def check(self) -> None:
        """Raises ValueError for a preset that is there twice."""
        if len(set(self.names)) < len(self.presets):
            raise ValueError(f"presets: expected one of each name, got {show(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the presets."""
        return tuple(preset.name for preset in self.presets)

    def find(self, quant: str | KVQuantConfig) -> CalibratedPreset | None:
        """The preset of this name, or with these settings; None: there is none."""
        for preset in self.presets:
            if quant in (preset.name, preset.quant):
                return preset
        return None

    def check_model(self, fingerprint: str) -> None:
        """Checks that the tables were made for the model with this fingerprint.

        Raises:
            ValueError: they were made for another one.
        """
        if fingerprint != self.model:
            raise ValueError(
                f"the tables were made for another model: expected fingerprint {fingerprint}, got "
                f"{self.model}; `vkq calibrate` makes tables for this one"
            )
