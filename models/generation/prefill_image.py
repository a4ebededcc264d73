"""Pictures read once, for many questions; and the way from a prompt's counts to `prefill`."""

import dataclasses
import os
from typing import Any

import pallas_kernels
from models.attached_tables import settle_codes
from models.families.registry import family_of
from models.generation import argument_checks as checks
from models.generation.prefill import prefill
from models.inputs.batch import Inputs, check_inputs
from models.inputs.padding import pad_to_buckets, text_bucket
from models.inputs.split import split_after_images
from models.model import Model
from vkq_jax.array_types import Array
from vkq_jax.cache.layered import AnyCache
from vkq_jax.cache.text_bank import TextBits
from vkq_jax.settings.calibrated import CalibratedCodes
from vkq_jax.settings.layer_settings import AnyQuant
from vkq_jax.validation import check_type

__all__ = ["in_buckets", "prefill_image", "prefill_part"]


def prefill_image(
    model: Model,
    inputs: Inputs,
    *,
    quant: AnyQuant | None = None,
    tables: CalibratedCodes | str | os.PathLike[str] | None = None,
    implementation: str | None = None,
    text_bits: TextBits = None,
    bucketing: bool = True,
) -> AnyCache:
    """Reads a prompt up to its last image token and codes the pictures, once for many questions.

        prompts = [models.chat_prompt(model, question) for question in questions]
        one = models.prepare(model, images=picture, prompts=prompts[0])
        cache = models.prefill_image(model, one)
        asked = models.prepare_questions(model, images=picture, prompts=prompts)
        answers = models.generate(model, asked, cache=cache, max_new_tokens=16)

    `generate` lets all prompts of a batch go on from a cache of one sequence. They share its visual
    banks, which exist once however many ask (`vkq_jax.share_visual`); attention of the fused kernel
    does not cover that, plain XLA does it.

    Args:
        model: from `models.load`.
        inputs: from `models.prepare`: one prompt with its pictures, or several, each with its own.
            Tokens after the last picture are not read.
        quant, tables, implementation, text_bits, bucketing: as for `generate`.

    Returns:
        The cache of the pictures and of the text before them, as
        `generate(..., quantize_at="image")` makes it.

    Raises:
        ValueError: a prompt without a picture, or arguments that `generate` refuses.
        NotImplementedError: a model whose pictures attend to the question.
    """
    check_type("model", model, Model, hint="models.load")
    check_inputs(inputs)
    check_type("bucketing", bucketing, bool)
    checks.check_quantize_at(model, "image")
    text_bits = checks.check_text_bits(text_bits, None)
    pallas_kernels.choose_implementation(implementation)
    settings, own_tables = settle_codes(model, quant, tables, None)
    if not inputs.prompt_shape.has_pictures:
        raise ValueError("inputs: expected a prompt with a picture, got one without")
    if bucketing:
        inputs = in_buckets(model, inputs)
    pictures, _ = split_after_images(inputs)
    text = max(inputs.prompt_shape.prefix - inputs.prompt_shape.visual, 1)
    _, cache = prefill_part(
        model,
        pictures,
        None,
        quant=settings,
        cache_length=text_bucket(text) if bucketing else text,
        implementation=implementation,
        tables=own_tables,
        text_bits=text_bits,
    )
    return cache


def in_buckets(model: Model, inputs: Inputs) -> Inputs:
    """`pad_to_buckets`, of visual tokens too where a picture's size tells how many it has."""
    features = family_of(model.config.model_type).features_per_image(model.config)
    return pad_to_buckets(inputs, visual=features is None)


def prefill_part(
    model: Model, inputs: Inputs, cache: AnyCache | None, **options: Any
) -> tuple[Array, AnyCache]:
    """`prefill`, with the static counts that it does not read left out: JAX compiles for each."""
    shape = dataclasses.replace(inputs.prompt_shape, text=0, prefix=0, suffix=0)
    return prefill(
        model, dataclasses.replace(inputs, prompt_shape=shape, bos_token_id=None), cache, **options
    )
