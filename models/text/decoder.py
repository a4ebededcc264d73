"""A text decoder, with attention left to its caller."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers.attention import Attend
from models.layers.layer_kinds import by_kind, in_layer_order
from models.layers.layer_scan import scan_kinds, stack_layers
from models.layers.linear import Embedding, Maker
from models.layers.rope import query_scale, rope
from models.sharding.placing import model_parts, place_sequences
from models.text.block import Block, decoder_norm
from models.text.config import FULL_STACKS, TextConfig
from models.text.cross_attention import CrossBlock, CrossReading
from models.text.gemma4_block import Gemma4Block, PerLayerEmbedding
from models.text.linear_attention import LinearBlock, Recurrence
from models.text.shared_keys import keeping, nothing_held, reading
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.attention.soft_cap import soft_cap

__all__ = ["LayerInputs", "TextDecoder"]

_ALIGNED_ROWS = 64


@dataclasses.dataclass(frozen=True)
class LayerInputs:
    """Inputs that some kinds of layers read beside the residual stream.

    Attributes:
        additions: added after the first A layers (deepstack).
        pictures: what cross-attention layers read; they are left out without it.
        recurrence: the states of layers with linear attention, which need it.
        tokens: ids that the embeddings stand for, see `PerLayerInputs`.
        attend_shared_kv: attention of layers that read the keys and values of an earlier layer,
            whose number it gets; the other layers' by default.
    """

    additions: Float[Array, "A B T hidden_size"] | None = None
    pictures: CrossReading | None = None
    recurrence: Recurrence | None = None
    tokens: Int32[Array, "B T"] | None = None
    attend_shared_kv: Attend | None = None


class TextDecoder(nnx.Module):
    """Token embedding, a stack of decoder blocks, the final norm and the output head.

    Masks and caches are unknown here: they live in the `attend` callback and its carry.
    """

    layers: Any  # blocks of each kind in a stack of their own, see `TextConfig.stacks`

    def __init__(self, config: TextConfig, make: Maker):
        """Random parameters."""
        self.config, self.dtype, self.mesh = config, jnp.dtype(make.dtype), make.mesh
        rows = config.vocab_size + config.extra_embeddings
        # Devices that the vocabulary is split over have equally many rows, of a number that
        # matrix products like.
        parts = model_parts(make.mesh)
        aligned = {"multiple": 1 if parts == 1 else parts * _ALIGNED_ROWS}
        self.embed_tokens = make.embedding(rows, config.hidden_size, **aligned)
        if config.per_layer_inputs is not None:
            self.per_layer = PerLayerEmbedding(config, config.per_layer_inputs, make)
        for name, layers in config.stacks.items():
            setattr(self, name, stack_layers(_creator(name, config, make), len(layers), make.rngs))
        self.norm = decoder_norm(config, make)
        if not config.tie_word_embeddings:
            self.lm_head = make.embedding(config.vocab_size, config.hidden_size, **aligned)

    def embed(self, input_ids: Int32[Array, "B T"]) -> Float[Array, "B T hidden_size"]:
        """Token embeddings in the compute dtype; an id outside the vocabulary gets the nearest."""
        # Checkpoints exist whose image token is no row of the embedding; that row is replaced.
        embedded = self.embed_tokens(input_ids)
        multiplier = self.config.embedding_multiplier
        # Rounded first, as in transformers.
        return embedded if multiplier == 1.0 else embedded * jnp.asarray(multiplier, self.dtype)

    def __call__(
        self,
        x: Float[Array, "B T hidden_size"],
        positions: Int32[Array, "B T *axes"],
        attend: Attend,
        carry: Any = None,
        inputs: LayerInputs = LayerInputs(),
        *,
        unroll: bool = False,
    ) -> tuple[Float[Array, "B T hidden_size"], Any, dict[str, Any]]:
        """Runs all blocks and the final norm.

        Args:
            x: embeddings in the compute dtype.
            positions: of RoPE.
            attend: see `Attend`.
            carry: what the first block's `attend` gets.
            inputs: what some kinds of layers read besides.
            unroll: see `models.layers.layer_scan.scan_layers`.

        Returns:
            The normed x, the last carry, and `attend`'s outputs by the name of the stack (see
            `TextConfig.stacks`), with a leading axis of its layers; stacks that are left out are
            not there.
        """
        x, carry, outputs, _ = self.run_layers(
            x, positions, attend, carry, lambda x, layer: None, inputs, unroll=unroll
        )
        return self.norm(x), carry, outputs

    def run_layers(
        self,
        x: Float[Array, "B T hidden_size"],
        positions: Int32[Array, "B T *axes"],
        attend: Attend,
        carry: Any,
        observe: Callable[[Array, Array], Any],
        inputs: LayerInputs = LayerInputs(),
        *,
        unroll: bool = False,
    ) -> tuple[Float[Array, "B T hidden_size"], Any, dict[str, Any], Any]:
        """`__call__` without the final norm, and what `observe(x, layer)` gives after each layer.

        The latter has a leading axis of all layers that ran.
        """
        config = self.config
        cos_sin_of = self._cos_sin(positions, x.dtype)
        per_layer = None
        if config.per_layer_inputs is not None:
            assert inputs.tokens is not None, "inputs of each layer's own need the tokens"
            per_layer = self.per_layer(x, inputs.tokens)
        scale, beta = None, config.llama_4_scaling_beta
        if beta is not None:
            scale = query_scale(positions, beta, config.rope.pretraining_length, x.dtype)

        def step(name, attend, block, layer, carry):
            x, inner = carry
            cos, sin = cos_sin_of(name, layer)
            own = {} if per_layer is None else {"per_layer": per_layer[layer]}
            x, inner, out = block(x, cos, sin, layer, attend, inner, scale, **own)
            if (additions := inputs.additions) is not None:
                own = additions[jnp.minimum(layer, len(additions) - 1)]
                x = x + jnp.where(layer < len(additions), own, 0).astype(x.dtype)
            return (x, inner), (out, observe(x, layer))

        def cross_step(block, layer, carry):
            x, inner = carry
            x, inner, out = block(x, inputs.pictures, layer, inner)
            return (x, inner), (out, observe(x, layer))

        def linear_step(block, layer, carry):
            x, inner = carry
            x, inner = block(x, inputs.recurrence, layer, inner)
            return (x, inner), (None, observe(x, layer))

        attends = dict.fromkeys(config.stacks, attend)
        if config.shared_layers:
            carry = carry, nothing_held(config, x)
            attends = {name: keeping(attend, name) for name in config.stacks}
            for name, (own, source) in config.sources.items():
                attends[name] = reading(inputs.attend_shared_kv or attend, own, source)
        steps = {name: partial(step, name, own) for name, own in attends.items()}
        steps |= {"cross_layers": cross_step, "linear_layers": linear_step}
        kinds: list[int | None] = [None] * config.num_hidden_layers
        for kind, (name, layers) in enumerate(config.stacks.items()):
            for layer in layers:
                kinds[layer] = None if name == "cross_layers" and inputs.pictures is None else kind
        x = place_sequences(self.mesh, x)
        (x, carry), found = scan_kinds(
            [getattr(self, name) for name in config.stacks],
            kinds,
            [steps[name] for name in config.stacks],
            (x, carry),
            unroll=unroll,
        )
        carry = carry[0] if config.shared_layers else carry
        ran = {name: own for name, own in zip(config.stacks, found, strict=True) if own is not None}
        outputs = {name: own for name, (own, _) in ran.items()}
        observed = in_layer_order(config.stacks, {name: own for name, (_, own) in ran.items()})
        return place_sequences(self.mesh, x), carry, outputs, observed

    def _cos_sin(
        self, positions: Int32[Array, "B T *axes"], dtype: DTypeLike
    ) -> Callable[[str, Array], tuple[Array, Array]]:
        """For a stack's name and a layer's number: the cosine and sine of its RoPE."""
        config = self.config
        full = rope(positions, config.rope, dtype)
        sliding = full
        if config.sliding_rope is not None:
            sliding = rope(positions, config.sliding_rope, dtype)
        if not config.rope_in_full_layers:
            full = jnp.ones_like(full[0]), jnp.zeros_like(full[1])
            sliding = full if config.sliding_window is None else sliding
        if config.full_layers_apart is not None:
            return lambda name, layer: full if name in FULL_STACKS else sliding
        if sliding is full:
            return lambda name, layer: full
        return lambda name, layer: by_kind(config.full_layers, layer, sliding, full)

    def logits(self, x: Float[Array, "*lead hidden_size"]) -> Float[Array, "*lead vocab"]:
        """Scores of the next token for normed `x`, accumulated in float32.

        On a mesh, padding of the vocabulary gets the lowest finite number: no token is chosen
        there, and nothing is infinite that was not. `cut_logits` leaves it out.
        """
        head = self._head
        table = head.weight[...].astype(x.dtype)
        logits = jnp.matmul(x, table.T, preferred_element_type=jnp.float32)
        logits = soft_cap(logits, self.config.final_logit_softcapping)
        if len(table) == head.rows:
            return logits
        lowest = jnp.finfo(logits.dtype).min
        return jnp.where(jnp.arange(len(table)) < head.rows, logits, lowest)

    def cut_logits(self, logits: Float[Array, "*lead padded"]) -> Float[Array, "*lead vocab"]:
        """The logits of tokens that there are."""
        return logits[..., : self._head.rows]

    @property
    def _head(self) -> Embedding:
        return self.embed_tokens if self.config.tie_word_embeddings else self.lm_head


def _creator(name: str, config: TextConfig, make: Maker) -> Callable[[nnx.Rngs], nnx.Module]:
    """Makes a block of the stack of a name."""
    others = {"cross_layers": CrossBlock, "linear_layers": LinearBlock}
    kind = others.get(name, Gemma4Block if config.layer_scalars else Block)
    if name in config.sources:
        kind = partial(kind, has_keys=False)
    return lambda rngs: kind(config.of_stack(name), make.with_rngs(rngs))
