"""Vision towers over a fixed grid of patches: CLIP, SigLIP and their kin."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx

from models.layers.attention import Attend, attend_with_mask
from models.layers.linear import Maker
from models.layers.norms import LayerNorm
from models.vision.encoder import Encoder, EncoderConfig
from vkq_jax.array_types import Array, Float, Int32

__all__ = ["VisionTransformer", "VitConfig"]


@dataclasses.dataclass(frozen=True)
class VitConfig:
    """A vision transformer over square images.

    Attributes:
        encoder: its blocks; those after the last feature layer are neither held nor run.
        image_size, patch_size: pixels of a side.
        feature_layers: after how many blocks features are taken; several are concatenated.
        class_token: whether a learned token goes before the patches.
        keep_class_token: whether that token is one of the features.
        drop_first_patch: whether the first patch is none of the features.
        patch_bias: bias of the patch embedding.
        pre_norm: a layer norm before the first block, whatever the norms within blocks.
        post_norm: a layer norm of the features, after the last block.
    """

    encoder: EncoderConfig
    image_size: int
    patch_size: int
    feature_layers: tuple[int, ...]
    class_token: bool = True
    keep_class_token: bool = False
    drop_first_patch: bool = False
    patch_bias: bool = False
    pre_norm: bool = True
    post_norm: bool = False

    @property
    def num_layers(self) -> int:
        """Blocks that are held and run."""
        return max(self.feature_layers)

    @property
    def side(self) -> int:
        """Patches of a side."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of one image."""
        return self.side**2

    @property
    def num_positions(self) -> int:
        """Patches of one image and its class token."""
        return self.num_patches + self.class_token

    @property
    def num_features(self) -> int:
        """Features of one image."""
        return self.num_positions - self.first_feature

    @property
    def first_feature(self) -> int:
        """Number of the first position that is a feature."""
        return (self.class_token and not self.keep_class_token) + self.drop_first_patch

    @property
    def feature_width(self) -> int:
        """Channels of one feature."""
        return self.encoder.hidden_size * len(self.feature_layers)


class VisionTransformer(nnx.Module):
    """Patches, a class token and positions to features; parts have the names of CLIP's files."""

    def __init__(self, config: VitConfig, make: Maker):
        """Random parameters."""
        self.config, self.dtype = config, jnp.dtype(make.dtype)
        self.embeddings = _Embeddings(config, make)
        if config.pre_norm:
            self.pre_layrnorm = _norm(config, make)  # the files' spelling
        held = dataclasses.replace(config.encoder, num_hidden_layers=config.num_layers)
        self.encoder = Encoder(held, make)
        if config.post_norm:
            self.post_layernorm = _norm(config, make)

    def __call__(
        self,
        pixel_values: Float[Array, "images 3 size size"],
        attend: Attend | None = None,
        *,
        positions: Int32[Array, "images patches"] | None = None,
        unroll: bool = False,
    ) -> Float[Array, "images features feature_width"]:
        """Features of each image, row by row (after the class token, if that is kept).

        Features of several layers are concatenated along the channels, in the order configured.

        Args:
            pixel_values: of `image_size`, or of any size where `positions` are given.
            attend: full attention within an image by default.
            positions: the row of the table of positions that each patch takes, in towers without
                a class token; by default the rows in order.
            unroll: see `models.layers.layer_scan.scan_layers`.
        """
        config = self.config
        chosen = self.hidden_states(
            pixel_values, attend, config.feature_layers, positions=positions, unroll=unroll
        )
        if config.post_norm:
            chosen = [self.post_layernorm(x) for x in chosen]
        return jnp.concatenate(chosen, axis=-1)[:, config.first_feature :]

    def hidden_states(
        self,
        pixel_values: Float[Array, "images 3 size size"],
        attend: Attend | None = None,
        layers: Sequence[int] | None = None,
        *,
        positions: Int32[Array, "images patches"] | None = None,
        unroll: bool = False,
    ) -> list[Float[Array, "images positions hidden_size"]]:
        """The state after each of these numbers of blocks; 0: the embedded patches.

        By default all, in order. Other arguments are those of `__call__`.
        """
        if attend is None:
            attend = attend_with_mask(
                lambda layer: None, logits_scale=self.config.encoder.logits_scale
            )
        x = self.embeddings(pixel_values.astype(self.dtype), positions)
        if self.config.pre_norm:
            x = self.pre_layrnorm(x)
        depth = self.config.num_layers
        wanted = range(depth + 1) if layers is None else layers
        between = sorted(set(wanted) - {0, depth})
        keep = tuple(number - 1 for number in between)
        last, _, kept = self.encoder(x, attend, keep=keep, unroll=unroll)
        states = {0: x, depth: last}
        states |= {} if kept is None else dict(zip(between, kept, strict=True))
        return [states[number] for number in wanted]


def _norm(config: VitConfig, make: Maker) -> LayerNorm:
    return LayerNorm(
        config.encoder.hidden_size,
        epsilon=config.encoder.layer_norm_eps,
        param_dtype=make.param_dtype,
    )


class _Embeddings(nnx.Module):
    """Pixels to embedded patches."""

    def __init__(self, config: VitConfig, make: Maker):
        self.config = config
        width = config.encoder.hidden_size
        self.patch_embedding = make.linear(3 * config.patch_size**2, width, bias=config.patch_bias)
        if config.class_token:
            self.class_embedding = make.normal(width)
        self.position_embedding = make.embedding(config.num_positions, width)

    def __call__(
        self,
        pixel_values: Float[Array, "images 3 size size"],
        positions: Int32[Array, "images patches"] | None,
    ) -> Float[Array, "images positions hidden_size"]:
        config = self.config
        images, patch = pixel_values.shape[0], config.patch_size
        side = pixel_values.shape[-1] // patch
        # A convolution whose stride is its kernel is one product per patch. A rim that does not
        # fill a patch is left out.
        x = pixel_values[:, :, : side * patch, : side * patch]
        x = x.reshape(images, 3, side, patch, side, patch).transpose(0, 2, 4, 1, 3, 5)
        x = self.patch_embedding(x.reshape(images, side * side, 3 * patch * patch))
        if config.class_token:
            first = self.class_embedding[...].astype(x.dtype)
            first = jnp.broadcast_to(first, (images, 1, x.shape[-1]))
            x = jnp.concatenate([first, x], axis=1)
        if positions is not None:
            return x + self.position_embedding(positions)
        return x + self.position_embedding.table()[None]
