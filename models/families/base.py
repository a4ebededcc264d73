"""A model family: the few functions in which it differs from others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from models.checkpoints.naming import WeightNames
from models.inputs.batch import Inputs, PicturePlaces
from models.inputs.processing import Processing
from models.layers.attention import Attend
from models.layers.linear import Maker
from models.sampling import Sampling
from models.sharding.placing import place
from models.text.config import TextConfig
from models.text.cross_attention import CrossReading, read_pictures
from models.text.decoder import LayerInputs, TextDecoder
from models.text.linear_attention import without_past
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.pytree import frozen_pytree

__all__ = ["Embedded", "Family", "ModelConfig", "MultimodalModel", "VisualInputs"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Settings that every family has; each adds its own.

    Attributes:
        model_type: names the family; that of config.json, unless files of one model_type belong to
            several families.
        text: the text decoder.
        image_token_id: the token whose positions hold a picture's features.
        video_token_id: the same for frames of a video, where the family has one.
        eos_token_ids: tokens that end an answer.
        pad_token_ids: tokens that pad prompts of a batch, where the checkpoint says so.
        sampling: how the checkpoint wants tokens chosen.
    """

    model_type: str
    text: TextConfig
    image_token_id: int
    video_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_ids: tuple[int, ...] = ()
    sampling: Sampling = Sampling()

    @property
    def visual_token_ids(self) -> tuple[int, ...]:
        """Tokens whose positions are visual."""
        video = () if self.video_token_id is None else (self.video_token_id,)
        return (self.image_token_id, *video)


@frozen_pytree
class Embedded:
    """A prompt as the text decoder takes it.

    Attributes:
        hidden: embeddings, visual tokens those of the pictures.
        additions: what is added behind the first A layers (deepstack), if anything.
        pictures: what cross-attention layers read, if anything, see `PicturePlaces`.
        tokens: ids for inputs of each layer's own, see `models.text.config.PerLayerInputs`.
    """

    hidden: Float[Array, "B T hidden_size"]
    additions: Float[Array, "A B T hidden_size"] | None = None
    pictures: Float[Array, "B V hidden_size"] | None = None
    tokens: Int32[Array, "B T"] | None = None


class MultimodalModel(nnx.Module):
    """Base of the families' modules: `text` and the parts that make visual embeddings.

    A family with parts of its own defines `image_features`.
    """

    config: ModelConfig
    text: TextDecoder

    def image_features(
        self, pixel_values: Float[Array, "*pictures"], layout: Any
    ) -> Float[Array, "features hidden_size"]:
        """Embeddings of visual tokens in the order of those tokens; rows behind them are padding.

        Args:
            pixel_values: of the shape that the family's processor gives them.
            layout: what else the family's vision tower has to know of them, see `VisualInputs`.
        """
        raise NotImplementedError

    def read(
        self, inputs: Inputs, attend: Attend, carry: Any = None
    ) -> tuple[Float[Array, "B T hidden_size"], Any, Any]:
        """Runs whole prompts through the decoder; see `TextDecoder.__call__`."""
        embedded = self.embed_inputs(inputs)
        return self.text(
            embedded.hidden,
            inputs.positions,
            attend,
            carry,
            self.layer_inputs(inputs, embedded),
        )

    def layer_inputs(self, inputs: Inputs, embedded: Embedded) -> LayerInputs:
        """The layers' inputs of whole prompts, without a cache."""
        return LayerInputs(
            additions=embedded.additions,
            pictures=self.read_pictures(inputs, embedded),
            recurrence=without_past(self.config.text, inputs.mask, self.text.dtype),
            tokens=embedded.tokens,
        )

    def read_pictures(self, inputs: Inputs, embedded: Embedded) -> CrossReading | None:
        """The pictures that cross-attention layers read, for whole prompts without a cache."""
        pictures = inputs.prompt_pictures()
        if pictures is None or embedded.pictures is None:
            return None
        return read_pictures(pictures, embedded.pictures, self.config.text.logits_scale)

    def text_ids(self, input_ids: Int32[Array, "B T"]) -> Int32[Array, "B T"]:
        """Ids whose embeddings stand where no picture's features do: these, in most families.

        An answer may hold the token of a picture, too.
        """
        return input_ids

    def embed_inputs(self, inputs: Inputs) -> Embedded:
        """Embeddings of a prompt: text from the table, visual tokens from the pictures.

        Row k of the features goes to the k-th visual token of `input_ids.ravel()`.
        """
        text = self.text.embed(self.text_ids(inputs.input_ids))
        if inputs.pixel_values is None:
            return Embedded(text)
        features = self.image_features(inputs.pixel_values, inputs.vision_layout)
        features = features * jnp.asarray(self.config.text.feature_multiplier, features.dtype)
        # Pictures are split over all devices, prompts over some: each needs features of the others.
        features = place(self.text.mesh, features, PartitionSpec())
        return Embedded(inputs.place_features(features, text))


@dataclasses.dataclass(frozen=True)
class VisualInputs:
    """A batch's pictures and what they make of its tokens, on the host.

    Attributes:
        pixel_values: as the vision tower takes them; None without pictures.
        layout: a pytree of arrays and static numbers: what else the tower has to know.
        positions: RoPE positions [B, T] or [B, T, 3]; None: those of plain text.
        attention_group: tokens of the same number, 0 or more, see each other whatever their order,
            [B, T]; None: all is causal.
        places: where pictures lie in cross-attention layers; None without such layers or pictures.
    """

    pixel_values: np.ndarray | None = None
    layout: Any = None
    positions: Int32[np.ndarray, "B T *axes"] | None = None
    attention_group: Int32[np.ndarray, "B T"] | None = None
    places: PicturePlaces | None = None


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture, or several that share their code.

    Attributes:
        read_config: settings from the content of a config.json. Raises NotImplementedError for a
            setting that is not supported and ValueError for one that cannot be, both named.
        build: the module, with random parameters, from a config and a `Maker`.
        weights: names of the weights in files.
        array_names: outputs of the family's processor that the model takes beside `input_ids` and
            `attention_mask`.
        unused_names: outputs of that processor that the model has no use for.
        visual_inputs: checks those outputs against the tokens. Takes the config, `input_ids` and
            the mask [B, T] on the host, and the arrays by name; raises ValueError.
        processing: makes the `models.inputs.processing.Processing` that turns prompts and pictures
            into those arrays.
        features_per_image: visual tokens of any picture, from the config; None where it depends on
            the picture.
        visual_depends_on_question: visual keys and values see the question, so that pictures cannot
            be coded before it is known.
    """

    read_config: Callable[[Mapping[str, Any]], ModelConfig]
    build: Callable[[Any, Maker], MultimodalModel]
    weights: Callable[[Any], WeightNames]
    array_names: tuple[str, ...]
    visual_inputs: Callable[[Any, np.ndarray, np.ndarray, Mapping[str, np.ndarray]], VisualInputs]
    processing: Callable[[], Processing]
    unused_names: tuple[str, ...] = ()
    features_per_image: Callable[[Any], int | None] = lambda config: None
    visual_depends_on_question: bool = False
