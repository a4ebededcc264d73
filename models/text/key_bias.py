"""The key bias of a text decoder, which is kept out of the codes of its visual keys."""

import jax
import jax.numpy as jnp
from flax import nnx

from models.layers.layer_scan import restack_layers
from models.layers.rope import pairs_to_halves
from models.layers.rope_frequencies import attention_scaling, inverse_frequencies
from models.text.config import TextConfig
from models.text.decoder import TextDecoder
from vkq_jax.cache.key_bias import KeyBias
from vkq_jax.codes.dense import Dense
from vkq_jax.settings.config import KVQuantConfig

__all__ = ["has_key_bias", "key_bias_for", "key_bias_of"]


def has_key_bias(config: TextConfig) -> bool:
    """Whether keys have a bias whose share of a key follows from the position alone.

    The share depends on more behind a norm of the keys, and with frequencies that differ from layer
    to layer or call to call.
    """
    varies = config.sliding_rope is not None or config.rope.depends_on_length
    varies = varies or not config.rope_in_full_layers
    return config.attention_bias and not config.query_key_norm and not varies


def key_bias_of(text: TextDecoder) -> KeyBias | None:
    """The bias of the decoder's keys [L, K, H] as RoPE rotates it, if `has_key_bias`."""
    config = text.config
    if not has_key_bias(config):
        return None
    shape = (config.num_hidden_layers, config.num_key_value_heads, config.head_dim)
    bias = jnp.zeros(shape, jnp.float32)
    for name, layers in config.stacks.items():
        params = restack_layers(nnx.state(getattr(text, name).self_attn.k_proj))
        (own,) = jax.tree.leaves(params["bias"])
        own = own.astype(jnp.float32).reshape(len(layers), *shape[1:])
        bias = bias.at[jnp.asarray(layers)].set(own)
    if config.rope.interleaved:
        bias = pairs_to_halves(bias, config.rope.head_dim)
    mrope = config.rope.mrope
    return KeyBias(
        bias=bias,
        frequencies=inverse_frequencies(config.rope, config.rope.max_length),
        axis_of_pair=None
        if mrope is None
        else tuple(map(int, mrope.axis_of_pair(config.rope.head_dim // 2))),
        scaling=attention_scaling(config.rope),
    )


def key_bias_for(text: TextDecoder, quant: KVQuantConfig) -> KeyBias | None:
    """`key_bias_of` where `quant` codes keys; keys in full precision keep their bias."""
    return None if isinstance(quant.key, Dense) else key_bias_of(text)
