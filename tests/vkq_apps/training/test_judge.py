"""The judge: a text tower of its own under the embedded model's vision tower, in a small size."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

import models
from models.loading import TINY
from vkq_apps.training import checkpointing, prompts
from vkq_apps.training.export import main as export
from vkq_apps.training.heldout import heldout, heldout_chunk
from vkq_apps.training.judge import load_judge
from vkq_apps.training.judge_checkpoint import judge_encoding, write_start
from vkq_apps.training.loop import PARTS_FILE, STATE_FILE, train
from vkq_apps.training.options import SMOKE, TrainOptions
from vkq_apps.training.text_tower import read_tower
from vkq_apps.training.tower_parts import Blocks, save_parts
from vkq_apps.training.train import main
from vkq_apps.training.used_vocabulary import recipe_texts, used_vocabulary

_CONFIG = {
    "vocab_size": 262,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
_KINDS = {
    "qwen2": {},
    "gemma3_text": {
        "head_dim": 256,  # wider than cuDNN's attention takes
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 8,
        "query_pre_attn_scalar": 256,
    },
}
_WORDS = [("r", "e"), ("re", "a"), ("Ġ", "l"), ("z", "q")]


def _write_tower(folder, kind="qwen2", seed=0):
    rng, folder = np.random.default_rng(seed), folder / f"tower{seed}"
    folder.mkdir()
    config = {"model_type": kind} | _CONFIG | _KINDS[kind]
    (folder / "config.json").write_text(json.dumps(config))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|end|>", "<unused0>", *alphabet, *map("".join, _WORDS)]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=_WORDS))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)
    width, inner, head = 32, 48, config.get("head_dim", 8)
    shapes = {"embed_tokens.weight": (262, width), "norm.weight": (width,)}
    norms = ["input", "post_attention"]
    if kind == "gemma3_text":
        norms += ["pre_feedforward", "post_feedforward"]
    for layer in range(2):
        block = f"layers.{layer}"
        attention = f"{block}.self_attn"
        for name, heads in (("q", 4), ("k", 2), ("v", 2)):
            shapes[f"{attention}.{name}_proj.weight"] = (heads * head, width)
            if kind == "qwen2":
                shapes[f"{attention}.{name}_proj.bias"] = (heads * head,)
        shapes[f"{attention}.o_proj.weight"] = (width, 4 * head)
        shapes |= {f"{block}.{name}_layernorm.weight": (width,) for name in norms}
        if kind == "gemma3_text":
            shapes |= {f"{attention}.{name}_norm.weight": (head,) for name in "qk"}
        shapes |= {f"{block}.mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes[f"{block}.mlp.down_proj.weight"] = (width, inner)
    tensors = {f"model.{name}": rng.normal(size=s) * 0.3 for name, s in shapes.items()}
    stored = {name: x.astype(np.float32) for name, x in tensors.items()}
    save_file(stored, folder / "model.safetensors")
    return folder


def _train(folder, out, **changes):
    settings = {**SMOKE, "smoke": True, "steps": 2, "batch": 2, "heldout": 1, "peak": 0.02}
    return train(TrainOptions(out=out, text_tower=folder, rank=2, **settings | changes))


@pytest.mark.ci  # a vision tower of full size is compiled three times
@pytest.mark.parametrize("kind", _KINDS)
def test_a_judge_answers_from_its_export_as_in_training(tmp_path, capsys, kind):
    tower, run, folder = _write_tower(tmp_path, kind), tmp_path / "run", tmp_path / "judge"
    state = _train(tower, run)
    assert export([str(run / PARTS_FILE), str(folder), "--text-tower", str(tower)]) == 0
    encoding, chunk = judge_encoding(run / "start"), heldout_chunk(1, judge_encoding(run / "start"))
    judge = load_judge(run / "start", 2, encoding.prefix, jnp.float32)
    row, turn = chunk.rows[0], heldout("text", 0).turns[0]
    first = int(np.argmax(row[3] >= 0))  # where the first answer begins

    def in_training(params):
        rows = jnp.asarray(chunk.rows[:1])
        images = jnp.asarray(chunk.images[:1])
        return judge.logits(params, judge.frozen, images, rows, "xla", unroll=False)[0, first]

    model = models.load(folder, dtype=jnp.float32)
    prompt = models.chat_prompt(model, turn.question)
    assert prompt == prompts.prompt(turn.question)
    inputs = models.prepare(model, images=heldout("text", 0).image, prompts=prompt)
    exported = models.forward(model, inputs)[0, -1]
    trained, start = in_training(state.params), in_training(judge.trained)
    scale = float(jnp.linalg.norm(trained))
    assert float(jnp.linalg.norm(exported - trained)) < 0.02 * scale
    assert float(jnp.linalg.norm(start - trained)) > 0.2 * scale


@pytest.mark.parity
@pytest.mark.parametrize("kind", _KINDS)
def test_a_start_has_the_logits_of_transformers(tmp_path, kind):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    write_start(read_tower(_write_tower(tmp_path, kind)), tmp_path / "start")
    ours = models.load(tmp_path / "start", dtype=jnp.float32)
    picture = heldout("text", 0)
    prompt = models.chat_prompt(ours, picture.turns[0].question)
    inputs = models.prepare(ours, images=picture.image, prompts=prompt)
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "start", dtype="float32", attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(np.asarray(inputs.input_ids)).long(),
            attention_mask=torch.tensor(np.asarray(inputs.mask)).long(),
            pixel_values=torch.tensor(np.asarray(inputs.pixel_values)),
        ).logits.numpy()
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(models.forward(ours, inputs), expected, atol=1e-3)


@pytest.mark.ci  # compiles the step twice
def test_a_resumed_training_equals_one_piece(tmp_path, monkeypatch):
    tower = _write_tower(tmp_path)
    whole = _train(tower, tmp_path / "whole", steps=4)
    _train(tower, tmp_path / "pieces", steps=4, stop_after_seconds=1e-6)
    pieces = _train(tower, tmp_path / "pieces", steps=4, resume=True)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(pieces.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    parts = str(tmp_path / "whole" / PARTS_FILE)
    further = _train(tower, tmp_path / "further", start_from=parts, stop_after_seconds=1e-6)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(further.params), strict=True):
        np.testing.assert_array_equal(a.astype(jnp.bfloat16), b)
    assert int(further.step) == 0


def test_parts_to_start_from_belong_to_the_tower_and_the_rank(tmp_path):
    parts, tower = tmp_path / PARTS_FILE, _write_tower(tmp_path)
    for rank, problem in (
        (3, "adapters of rank 3, give --rank 3"),
        (2, "trained on another tower"),
    ):
        checkpointing.save(parts, {"x": np.zeros(1)}, {"tower": "another", "rank": rank})
        with pytest.raises(ValueError, match=problem):
            _train(tower, tmp_path / "run", start_from=parts)
    assert not (tmp_path / "run" / STATE_FILE).exists()


def test_the_used_vocabulary_splits_texts_as_before(tmp_path):
    content = read_tower(_write_tower(tmp_path)).tokenizer
    reduced, rows = used_vocabulary(content, recipe_texts(30), ("<|end|>",))
    old, new = (Tokenizer.from_str(json.dumps(one)) for one in (content, reduced))
    assert "zq" not in reduced["model"]["vocab"]
    assert {"rea", "re", "Ġl"} <= reduced["model"]["vocab"].keys()
    text = "\nread line 2 ASSISTANT: $3.50, zeq"
    assert new.encode(text).tokens == old.encode(text).tokens
    assert [rows[i] for i in new.encode(text).ids] == old.encode(text).ids
    assert new.encode("USER: <image>\nread").tokens.count(prompts.IMAGE_TOKEN) == 1
    assert used_vocabulary(reduced, (), ("<|end|>",)) == (reduced, list(range(len(rows))))


def test_a_wrong_tower_is_one_clear_error(tmp_path, capsys):
    wrong = {"nowhere": "there is no nowhere", str(TINY): "which has a text tower inside"}
    for tower, expected in wrong.items():
        assert main(["--text-tower", tower, "--out", str(tmp_path / "run"), "--smoke"]) == 2
        error = capsys.readouterr().err
        assert expected in error
        assert len(error) < 400
    other = _write_tower(tmp_path)
    parts, folder = tmp_path / PARTS_FILE, tmp_path / "judge"
    checkpointing.save(parts, {"x": jnp.zeros(1)}, {"tower": "another", "rank": 2, "step": 0})
    assert export([str(parts), str(folder), "--text-tower", str(other)]) == 2
    assert "was trained on another tower" in capsys.readouterr().err
    assert not folder.exists()


def test_parts_of_a_tower_are_the_tower(tmp_path):
    tower = _write_tower(tmp_path)
    whole = read_tower(tower)
    most = 4 * whole.tensors["model.embed_tokens.weight"].size + 256
    blocks = {name: Blocks(tensor, "F32") for name, tensor in whole.tensors.items()}
    files = save_parts(blocks, tower, most)
    assert len(files) > 1
    assert max(file.stat().st_size for file in files) <= most + 4096
    (tower / "model.safetensors").unlink()
    joined = read_tower(tower).tensors
    assert joined.keys() == whole.tensors.keys()
    for name, tensor in joined.items():
        np.testing.assert_array_equal(tensor, whole.tensors[name])
    files[0].unlink()
    with pytest.raises(ValueError, match=f"expected {len(files)} parts"):
        read_tower(tower)
    with pytest.raises(ValueError, match="--megabytes: expected room"):
        save_parts(blocks, tower, 1000)
