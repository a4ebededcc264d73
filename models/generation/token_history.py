"""The tokens of a prompt and its answer so far, which some logits processors look back at."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from models.inputs.batch import Inputs
from vkq_jax.array_types import Array, Bool, Int32
from vkq_jax.cache.visual import left_pack
from vkq_jax.pytree import frozen_pytree
from vkq_jax.slots import filled

__all__ = ["TokenHistory"]


@frozen_pytree
class TokenHistory:
    """Tokens of each sequence of one call of `generate`, in order, from slot 0 on.

    Attributes:
        tokens: prompt without its padding, then the answer; slots from `length` on mean nothing.
        length: filled slots of each sequence.
        emitted: tokens that each unfinished sequence has emitted.
        max_new_tokens: most tokens to emit.
    """

    tokens: Int32[Array, "B S"]
    length: Int32[Array, "B"]
    emitted: Int32[Array, ""]
    max_new_tokens: Int32[Array, ""]

    @classmethod
    def of_prompts(
        cls, inputs: Inputs, max_new_tokens: int, room: int | None = None
    ) -> TokenHistory:
        """The prompts, with `room` for new tokens, by default for `max_new_tokens`."""
        index, valid = left_pack(inputs.mask, inputs.mask.shape[1])
        tokens = jnp.take_along_axis(inputs.input_ids, index, axis=1)
        return cls(
            jnp.pad(tokens, ((0, 0), (0, max_new_tokens if room is None else room))),
            valid.sum(-1, dtype=jnp.int32),
            jnp.int32(0),
            jnp.int32(max_new_tokens),
        )

    @property
    def valid(self) -> Bool[Array, "B S"]:
        """Which slots are filled."""
        return filled(self.length, self.tokens.shape[1])

    def add(self, token: Int32[Array, "B"], active: Bool[Array, "B"]) -> TokenHistory:
        """The history with one more token of each active sequence."""
        slot = jnp.where(active, self.length, self.tokens.shape[1])[:, None]
        row = jnp.arange(len(token), dtype=jnp.int32)[:, None]
        return dataclasses.replace(
            self,
            tokens=self.tokens.at[row, slot].set(token[:, None], mode="drop"),
            length=self.length + active.astype(jnp.int32),
            emitted=self.emitted + jnp.int32(1),
        )
