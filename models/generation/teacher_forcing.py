"""The model's side of an evaluation: compiled functions over one batch of rows.

Several rows may ask about one picture: it is read once, in full precision, for all of them and for
all presets. A preset then codes that cache and reads the question (or, with `quantize_at="prompt"`,
codes the cache once the question is read), and is measured on full precision's own answer.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from models.attached_tables import OwnTables
from models.generation.decode_step import decode_step
from models.generation.options import QuantizeAt
from models.generation.prefill import prefill, run_prompt
from models.generation.recoding import FULL_PRECISION, recode
from models.inputs.batch import Inputs, PromptShape
from models.inputs.split import split_after_images
from models.model import Model
from models.sharding.placing import place
from vkq_jax.array_types import Array, Float, Int32
from vkq_jax.cache.layered import AnyCache
from vkq_jax.cache.text_bank import TextBits
from vkq_jax.cache.updates import take_sequences
from vkq_jax.pytree import frozen_pytree, static_field
from vkq_jax.settings.layer_groups import Quant
from vkq_jax.slots import filled

__all__ = [
    "Answered",
    "Comparison",
    "EvaluatedModel",
    "Prompted",
    "Reading",
    "compare",
    "parts_of",
]


class Prompted(NamedTuple):
    """Prompts that have been read: logits [B, vocab] of the next token, and their cache."""

    logits: Array
    cache: AnyCache


class Reading(NamedTuple):
    """A batch read in full precision.

    Attributes:
        pictures: P prompts, up to their last image token.
        question: what follows, Q rows, if that can be apart.
        owner: int32 [Q], which of the P pictures each row asks about.
        prompted: the Q rows, read to their ends.
    """

    pictures: AnyCache
    question: Inputs | None
    owner: Array
    prompted: Prompted


class Answered(NamedTuple):
    """Answers, and the distributions that their tokens were chosen from.

    Attributes:
        tokens: the answers, 0 after their ends.
        lengths: their tokens, stop token included.
        kept: log-probabilities of the next token before each of them; those after an
            answer's end mean nothing.
    """

    tokens: Int32[Array, "B steps"]
    lengths: Int32[Array, "B"]
    kept: Float[Array, "B steps vocab"]


class Comparison(NamedTuple):
    """A preset's next-token distributions along full precision's answers.

    Attributes:
        kl: KL(full precision || preset) summed over each answer's positions, nats.
        first_difference: first position whose most likely token differs; the answer's length where
            there is none.
        log_likelihood: of the answer, nats.
    """

    kl: Float[Array, "B"]
    first_difference: Int32[Array, "B"]
    log_likelihood: Float[Array, "B"]


def parts_of(
    model: Model, inputs: Inputs, quantize_at: QuantizeAt = "image"
) -> tuple[Inputs, Inputs | None]:
    """Prompts up to their last image token and what follows.

    Whole prompts, and None, where visual tokens attend to the question or are coded after it.
    """
    if quantize_at == "prompt" or model.visual_depends_on_question:
        return inputs, None
    return split_after_images(inputs)


@frozen_pytree
class EvaluatedModel:
    """A model as evaluations run it: one implementation for all of its passes.

    Attributes:
        model: weights and configuration.
        implementation: of attention over the cache and of coding, as for `prefill`.
    """

    model: Model
    implementation: str | None = static_field(default=None)

    @partial(jax.jit, static_argnames="cache_length")
    def read(
        self,
        pictures: Inputs,
        question: Inputs | None,
        owner: Int32[Array, "B"],
        *,
        cache_length: int,
    ) -> Reading:
        """Reads P pictures and Q questions about them in full precision, see `parts_of`."""
        logits, cache = prefill(
            self.model,
            pictures,
            quant=FULL_PRECISION,
            cache_length=cache_length,
            implementation=self.implementation,
        )
        expanded = take_sequences(cache, owner)
        if question is None:
            return Reading(cache, None, owner, Prompted(logits[owner], expanded))
        return Reading(cache, question, owner, self.read_question(question, expanded))

    @partial(jax.jit, static_argnames=("quant", "quantize_at", "text_bits"))
    def read_coded(
        self,
        reading: Reading,
        tables: OwnTables = None,
        *,
        quant: Quant,
        quantize_at: QuantizeAt,
        text_bits: TextBits = None,
    ) -> Prompted:
        """The rows of `reading` as `quant` has them, with its tables, when the answer begins."""
        code = partial(
            recode,
            self.model,
            quant=quant,
            tables=tables,
            text_bits=text_bits,
            implementation=self.implementation,
        )
        if quantize_at == "prompt":
            return Prompted(reading.prompted.logits, code(reading.prompted.cache))
        assert reading.question is not None, "pictures are coded before a question apart from them"
        cache = take_sequences(code(reading.pictures), reading.owner)
        return self.read_question(reading.question, cache)

    def read_question(self, question: Inputs, cache: AnyCache) -> Prompted:
        """Reads what follows the pictures that a cache holds, with the codes of that cache."""
        logits, cache = prefill(
            self.model,
            question,
            cache,
            quant=cache.quant,
            cache_length=cache.cache_length,
            implementation=self.implementation,
        )
        return Prompted(logits, cache)

    @partial(jax.jit, static_argnames="steps")
    def answer(self, prompted: Prompted, limit: int, *, steps: int) -> Answered:
        """Goes on from the prompts greedily and keeps the distributions.

        Args:
            prompted: where the answers begin.
            limit: most tokens of an answer, at most `steps`.
            steps: size of the buffers.
        """
        fixed = prompted.cache.fixed()  # beside the carry: the loop does not change it
        stops = jnp.asarray(self.model.config.eos_token_ids, jnp.int32)
        batch, vocab = prompted.logits.shape

        def unfinished(carry):
            place, active, *_ = carry
            return active.any() & (place < limit)

        def step(carry):
            place, active, logits, cache, tokens, lengths, kept = carry
            kept = kept.at[:, place].set(jax.nn.log_softmax(logits.astype(jnp.float32)))
            token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
            going_on = active & ~jnp.isin(token, stops)
            tokens = tokens.at[:, place].set(jnp.where(active, token, 0))
            logits, cache = decode_step(
                self.model,
                token,
                cache.with_fixed(fixed),
                active,
                implementation=self.implementation,
            )
            cache = cache.without_fixed()
            return place + 1, going_on, logits, cache, tokens, lengths + active, kept

        start = (
            jnp.int32(0),
            jnp.ones(batch, bool),
            prompted.logits,
            prompted.cache.without_fixed(),
            jnp.zeros((batch, steps), jnp.int32),
            jnp.zeros(batch, jnp.int32),
            jnp.zeros((batch, steps, vocab), jnp.float32),
        )
        *_, tokens, lengths, kept = jax.lax.while_loop(unfinished, step, start)
        # For every host.
        tokens, lengths = place(self.model.mesh, (tokens, lengths), PartitionSpec())
        return Answered(tokens, lengths, kept)

    def follow(
        self, prompted: Prompted, tokens: Int32[Array, "B steps"], lengths: Int32[Array, "B"]
    ) -> Answered:
        """The distributions along given answers (teacher forcing), all tokens read at once.

        Each token sees what it would see if it came by itself, so that the distributions are those
        of decoding up to rounding.
        """
        longest, steps = int(lengths.max()), tokens.shape[1]
        # Few sizes, which many batches share: each is compiled once.
        size = next((size for size in (16, 32, 64) if longest <= size < steps), steps)
        kept = self._follow(prompted, tokens[:, :size], lengths)
        return Answered(tokens, lengths, jnp.pad(kept, ((0, 0), (0, steps - size), (0, 0))))

    @jax.jit
    def _follow(
        self, prompted: Prompted, tokens: Int32[Array, "B T"], lengths: Int32[Array, "B"]
    ) -> Float[Array, "B T vocab"]:
        cache, count = prompted.cache, tokens.shape[1] - 1
        if not count:  # the prompt alone says how likely an answer's only token is
            return jax.nn.log_softmax(prompted.logits[:, None].astype(jnp.float32))
        mask = filled(lengths - 1, count)
        given = Inputs(
            tokens[:, :-1],
            mask,
            visual_mask=jnp.zeros_like(mask),  # an answer has no images, whatever its tokens
            positions=jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), mask.shape),
            prompt_shape=PromptShape(0, count, 0, count),
        )
        hidden, _ = run_prompt(
            self.model,
            given,
            cache,
            quant=cache.quant,
            cache_length=cache.cache_length,
            implementation=self.implementation,
        )
        behind = self.model.module().text.logits(hidden)
        logits = jnp.concatenate([prompted.logits[:, None], behind], axis=1)
        return jax.nn.log_softmax(logits.astype(jnp.float32))


@jax.jit
def compare(exact: Answered, coded: Answered) -> Comparison:
    """Compares full precision's answers with a preset that followed them."""
    steps = jnp.arange(exact.tokens.shape[1], dtype=jnp.int32)
    within = filled(exact.lengths, len(steps))
    kl = (jnp.exp(exact.kept) * (exact.kept - coded.kept)).sum(-1)
    kl = jnp.maximum(kl, 0.0)  # rounding can bring it just below
    differs = (exact.kept.argmax(-1) != coded.kept.argmax(-1)) & within
    first = jnp.where(differs, steps[None], exact.lengths[:, None]).min(-1)
    chosen = jnp.take_along_axis(coded.kept, exact.tokens[..., None], axis=-1)[..., 0]
    return Comparison(
        jnp.where(within, kl, 0.0).sum(-1), first, jnp.where(within, chosen, 0.0).sum(-1)
    )
