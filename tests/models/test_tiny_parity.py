"""The embedded checkpoint in Hugging Face's own model: the same logits, the same answer."""

import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.loading import TINY
from models.prompts.processor import processor_of
from vkq_apps.training.heldout import heldout

pytestmark = pytest.mark.parity


def test_transformers_loads_it_and_gives_the_same_logits_and_answer():
    torch = pytest.importorskip("torch")
    from transformers import LlavaForConditionalGeneration

    theirs = LlavaForConditionalGeneration.from_pretrained(TINY, dtype=torch.float32).eval()
    model = models.load("tiny", dtype=jnp.float32)
    picture = heldout("document", 1)
    inputs = models.prepare(
        model,
        images=picture.image,
        prompts=models.chat_prompt(model, "what is the total?"),
    )
    arrays = {
        "input_ids": torch.tensor(np.asarray(inputs.input_ids), dtype=torch.long),
        "attention_mask": torch.tensor(np.asarray(inputs.mask), dtype=torch.long),
        "pixel_values": torch.tensor(np.asarray(inputs.pixel_values)),
    }
    with torch.no_grad():
        expected = theirs(**arrays).logits.numpy()
        tokens = theirs.generate(**arrays, max_new_tokens=16, do_sample=False)
    np.testing.assert_allclose(models.forward(model, inputs), expected, atol=1e-3)
    answer = processor_of(model).tokenizer.decode(
        tokens[0, inputs.input_ids.shape[1] :], skip_special_tokens=True
    )
    ours = models.generate(model, inputs, quant="none", max_new_tokens=16)
    assert models.decode(model, ours.tokens, ours.lengths) == [answer]
    assert answer.strip() == "$385.16"
