"""Settings of a text decoder, in Hugging Face's names: plain, frozen and hashable."""

import dataclasses

from models.layers.activations import Activation
from models.layers.moe import MoeConfig
from models.layers.rope import RopeConfig

__all__ = ["TextConfig"]


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """A decoder of LLaMA's kind, with the switches in which families differ.

    Attributes:
        vocab_size: rows of the embedding. hidden_size: channels of a token.
        intermediate_size: hidden channels of a block's MLP.
        num_hidden_layers: L. num_attention_heads: N. num_key_value_heads: K. head_dim: H.
        rope: how queries and keys turn. sliding_rope: the same in sliding layers, where it differs.
        full_layers_turn: whether they turn in layers without a sliding window (Cohere2's do not).
        tie_word_embeddings: whether the embedding doubles as the output head.
        attention_bias: biases of the projections of queries, keys and values.
        attention_output_bias: bias of the projection behind attention.
        mlp_bias: biases of the MLP. moe: a mixture of experts in the MLP's place.
        query_key_norm: an RMS norm over the channels of each head's queries and keys, before RoPE.
        layer_norms: layer norms without a bias in the RMS norms' place.
        parallel_blocks: attention and MLP read one norm, and both are added to its input (Cohere).
        offset_norms: norms multiply by 1 + weight, in float32 (Gemma 1 to 3).
        sandwich_norms: norms behind attention and the MLP as well as before them (Gemma 2 and 3).
        sliding_window: positions that a token sees, its own the last; None: all before it.
        full_layers: numbers of the layers that see all nevertheless.
        embedding_multiplier: of token embeddings. feature_multiplier: of visual ones.
        residual_multiplier: of what a block adds.
        attention_multiplier: what scores are multiplied by; None: head_dim ** -0.5.
        llama_4_scaling_beta: makes queries longer at later positions, see
            `models.layers.rope.query_scale`; None: it does not.
        attn_logit_softcapping: of scores, see `vkq_jax.soft_cap`. final_logit_softcapping: of
            logits.
        fused_projections: files hold queries, keys and values as one tensor, and the two inner
            layers of an MLP. fused_mlp: the latter alone.
        cross_layers: numbers of the layers that attend to pictures instead of tokens.
        extra_embeddings: rows of the embedding behind the vocabulary, which the head lacks.
        groups_cross_window: tokens of one `Inputs.attention_group` see each other beyond a sliding
            window too.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope: RopeConfig
    sliding_rope: RopeConfig | None = None
    full_layers_turn: bool = True
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    moe: MoeConfig | None = None
    query_key_norm: bool = False
    layer_norms: bool = False
    parallel_blocks: bool = False
    offset_norms: bool = False
    sandwich_norms: bool = False
    hidden_act: Activation = Activation.SILU
    rms_norm_eps: float = 1e-6
    sliding_window: int | None = None
    full_layers: tuple[int, ...] = ()
    embedding_multiplier: float = 1.0
    feature_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float | None = None
    llama_4_scaling_beta: float | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    fused_projections: bool = False
    fused_mlp: bool = False
    groups_cross_window: bool = False
    cross_layers: tuple[int, ...] = ()
    extra_embeddings: int = 0

    @property
    def self_layers(self) -> tuple[int, ...]:
        """Numbers of the layers that attend to tokens."""
        return tuple(n for n in range(self.num_hidden_layers) if n not in self.cross_layers)

    def check_one_stack(self, reader: str) -> None:
        """Raises NotImplementedError for cross-attention layers, which `reader` does not cover."""
        if self.cross_layers:
            raise NotImplementedError(
                f"{reader} needs visual tokens in the layers that hold text; this model has its "
                "pictures in cross-attention layers"
            )

    @property
    def logits_scale(self) -> float:
        """The factor of attention scores."""
        return (
            self.head_dim**-0.5 if self.attention_multiplier is None else self.attention_multiplier
        )
