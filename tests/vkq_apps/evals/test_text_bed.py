"""The text bed, on tiny random text models that transformers makes."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import vkq_jax
from vkq_apps.evals import text_bed, text_bed_ablation
from vkq_apps.evals.text_bed_codes import Plan, code, fitted, samples_of, uncalibrated
from vkq_apps.evals.text_bed_model import Span, TextModel, register
from vkq_apps.evals.text_bed_texts import Excerpt, cut_texts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

SPAN = Span(dense=2, coded=40, predicted=8)
VOCABULARY = 96
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.5,
}


def tokenize(text):
    return [ord(letter) % VOCABULARY for letter in text]


def tiny(family="Qwen2", **settings):
    torch.manual_seed(0)
    kind = {"Qwen2": "Qwen2", "Gemma3": "Gemma3Text"}[family]
    config = getattr(transformers, f"{kind}Config")(**COMMON | settings)
    return getattr(transformers, f"{family}ForCausalLM")(config).float()


@pytest.fixture(scope="module", params=["Qwen2", "Gemma3"])
def model(request):
    return TextModel(tiny(request.param, attn_implementation=register()), tokenize, SPAN)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint folder with a tokenizer of single letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    path = tmp_path_factory.mktemp("checkpoint")
    tiny().save_pretrained(path)
    letters = {chr(32 + number): number for number in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)
    return path


def excerpts(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Excerpt("code" if i % 2 else "prose", f"{seed}/{i}", rng.integers(96, size=50).tolist())
        for i in range(count)
    ]


def test_exchanging_nothing_changes_nothing_and_equals_one_pass(model):
    ids = excerpts(1)[0].ids
    cache, _ = model.read(ids)
    exact = model.predict(ids, cache)
    with torch.inference_mode():
        whole = model.model(torch.tensor(ids)[None]).logits[0, SPAN.prefix : -1].log_softmax(-1)
    torch.testing.assert_close(exact, whole, rtol=1e-3, atol=1e-3)
    key, value = model.coded_part(cache)
    assert key.shape == (2, 2, SPAN.coded, 16)
    assert torch.equal(model.predict(ids, cache, (key, value)), exact)
    assert not torch.equal(model.predict(ids, cache, (key, 2 * value)), exact)
    assert torch.equal(model.predict(ids, cache), exact)  # the cache stayed as it was


def test_observed_weights_are_those_of_the_queries_behind(model):
    ids = excerpts(1)[0].ids
    seen = model.observe(ids)
    key, value = model.coded_part(model.read(ids)[0])
    np.testing.assert_allclose(seen.key, key, atol=1e-4)
    np.testing.assert_allclose(seen.value, value, atol=1e-4)
    with torch.inference_mode():
        weights = model.model(torch.tensor(ids)[None], output_attentions=True).attentions
    p = torch.stack(weights)[:, 0, :, SPAN.prefix :, SPAN.dense : SPAN.prefix].unflatten(1, (2, 2))
    np.testing.assert_allclose(seen.value_weight, (p**2).sum((2, 3)), atol=1e-4)
    np.testing.assert_allclose(seen.key_weight, (p * (1 - p)).sum((2, 3)), atol=1e-4)
    np.testing.assert_allclose(seen.query_weight, seen.key_weight.sum(-1), rtol=1e-4)
    assert (np.linalg.eigvalsh(seen.query_moment) > -1e-3).all()


def test_codes_are_those_of_the_library(model):
    texts = excerpts(2)
    sides = zip(*(model.coded_part(model.read(text.ids)[0]) for text in texts), strict=True)
    key, value = (np.stack(side, 1) for side in sides)
    quant = vkq_jax.presets["signs-1bit"]
    coded = code(Plan(quant), key, value)
    expected = vkq_jax.dequantize(vkq_jax.quantize(jnp.asarray(key), quant.key))
    np.testing.assert_allclose(coded.key, expected, atol=1e-5)
    # A row of 16 signs fills a word of 32 bits; scale and centre.
    assert coded.bits[0] == pytest.approx(32 / 16 + 8 / 16 + 16 / SPAN.coded)
    exact = code(Plan(vkq_jax.presets["none"]), key, value)
    np.testing.assert_allclose(exact.value, value, rtol=0.01)


def test_tables_are_fitted_to_what_was_observed(model):
    samples = samples_of([model.observe(text.ids) for text in excerpts(8)])
    assert samples.key.shape == (2, 2, 8 * SPAN.coded, 16)
    np.testing.assert_allclose(samples.key.reshape(2, 2, 8, -1, 16).mean(3), 0, atol=1e-4)
    plans = fitted("vkq-half", samples, seed=0)
    assert [plan.number for plan in plans] == list(range(len(plans)))
    key = np.stack([model.coded_part(model.read(excerpts(1)[0].ids)[0])[0]], 1)
    for plan in plans:
        coded = code(plan, key, key)
        assert np.isfinite(coded.key).all()
        assert coded.bits[0] > 0


@pytest.fixture(scope="module")
def on_texts(folder, tmp_path_factory):
    """Arguments of a command: the checkpoint, texts of random letters, small counts."""
    texts = tmp_path_factory.mktemp("texts")
    for number in range(24):
        letters = np.random.default_rng(number).integers(97, 122, size=700)
        name = f"{number}.{'py' if number % 2 else 'md'}"
        (texts / name).write_text("".join(map(chr, letters)))
    arguments = ["--model", str(folder), "--texts", str(texts)]
    arguments += ["--calibration", "8", "--samples", "4", "--dense", "2", "--coded", "40"]
    return [*arguments, "--predicted", "8"]


def test_command_writes_the_figures_of_every_preset(on_texts, tmp_path, capsys):
    arguments = [*on_texts, "--out", str(tmp_path / "f.json")]
    assert text_bed.main([*arguments, "--quant", "none,minmax-8bit,vkq-1bit"]) == 0
    record = json.loads((tmp_path / "f.json").read_text())
    rows = record["presets"]
    assert list(rows) == ["none", "minmax-8bit", "vkq-1bit", "vkq-1bit, no tables"]
    assert rows["none"]["kl"] < 0.001 < rows["vkq-1bit, no tables"]["kl"]
    assert rows["none"]["agreement"] > 0.9
    assert rows["minmax-8bit"]["kl"] < rows["vkq-1bit"]["kl"]
    assert rows["vkq-1bit"]["kl_of_plans"][rows["vkq-1bit"]["plan"]] == min(
        rows["vkq-1bit"]["kl_of_plans"]
    )
    low, high = rows["vkq-1bit"]["kl_interval"]
    assert low <= rows["vkq-1bit"]["kl"] <= high
    assert set(rows["none"]["kl_by_kind"]) == {"code", "prose"}
    assert not set(record["texts"]["calibration"]) & set(record["texts"]["measured"])
    assert "vkq-1bit, no tables" in capsys.readouterr().out


def test_ablation_compares_rows_with_their_whole_plan_and_goes_on(on_texts, tmp_path, monkeypatch):
    file = tmp_path / "f.json"
    arguments = [*on_texts, "--out", str(file), "--parts", "Hadamard planes"]
    plans = ["--plans", "vkq-half/0"]

    def killed(*arguments, **settings):
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(text_bed_ablation, "figures", killed)  # its numbers are kept by then
        assert text_bed_ablation.main([*arguments, *plans]) == 2
    names = {path.name.split("-")[0] for path in (tmp_path / "f.json.part").rglob("*.*")}
    assert names == {"samples", "tables", "numbers", "settings.json"}
    with monkeypatch.context() as patch:
        patch.setattr(TextModel, "observe", killed)  # it would have to be done again
        assert text_bed_ablation.main([*arguments, *plans, "--resume"]) == 0
    rows = json.loads(file.read_text())["presets"]
    whole, planes = rows["vkq-half, plan 0"], rows["vkq-half, plan 0: Hadamard planes"]
    assert list(rows) == ["vkq-half, plan 0", "vkq-half, plan 0: Hadamard planes"]
    assert whole["more"] == 0
    assert planes["more"] == pytest.approx(planes["kl"] - whole["kl"], abs=2e-5)
    low, high = planes["more_interval"]
    assert low <= planes["more"] <= high
    assert not (tmp_path / "f.json.part").exists()


def test_ablation_refuses_what_it_does_not_know(on_texts, capsys):
    for more, problem in (
        (["--parts", "no scales"], "no scales"),
        (["--plans", "vkq-1bit/7"], "vkq-1bit/7"),
        (["--resume"], "--resume: expected --out FILE"),
    ):
        assert text_bed_ablation.main([*on_texts, *more]) == 2
        assert problem in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--quant", "vkq-1bitt"], "did you mean 'vkq-1bit'"),
        (["--quant", "calibquant-1bit"], "also maps attention scores"),
        (["--samples", "0"], "--samples': Input should be"),
        (["--model", "nowhere"], "expected a folder or a GGUF file, got nowhere"),
        (["--texts", "nowhere"], "--texts: expected a folder, got nowhere"),
    ],
)
def test_bad_input_ends_with_one_line(folder, capsys, arguments, problem):
    model = [] if "--model" in arguments else ["--model", str(folder)]
    assert text_bed.main([*model, *arguments]) == 2
    assert problem in capsys.readouterr().err.splitlines()[-1]


def test_windows_shorter_than_the_texts_are_refused():
    with pytest.raises(ValueError, match="sliding window of 49 tokens, got 50"):
        TextModel(tiny("Gemma3", sliding_window=49), tokenize, SPAN)


def test_own_texts_differ_in_source_and_once_in_kind():
    calibration, measured = cut_texts(tokenize, calibration=6, test=6, tokens=300)
    assert {text.kind for text in calibration} == {"code", "reference"}
    assert {text.kind for text in measured} == {"code", "reference", "readme"}
    assert all(len(text.ids) == 300 for text in calibration + measured)
    names = [text.name for text in calibration + measured]
    assert len(set(names)) == len(names)
    assert cut_texts(tokenize, calibration=6, test=6, tokens=300) == (calibration, measured)


def test_too_few_texts_are_named(tmp_path):
    (tmp_path / "a.md").write_text("x" * 1000)
    with pytest.raises(ValueError, match=r"expected 1 \+ 1 texts of 300 tokens"):
        cut_texts(tokenize, calibration=1, test=1, tokens=300, folder=tmp_path)


def test_presets_without_plans_have_none():
    assert uncalibrated("kivi-2bit") == Plan(vkq_jax.presets["kivi-2bit"])
