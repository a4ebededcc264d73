import dataclasses
import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import transformers

import models
from models.prompts import chat_template
from models.prompts.arrays import inputs_from_arrays
from models.prompts.processor import processor_of
from tests.models.hf_files import random_weights, write_checkpoint, write_processor
from tests.support.tiny_llava import CONFIG

PICTURE = np.random.default_rng(0).integers(0, 255, (50, 60, 3), np.uint8)
WHAT, IS, THIS, RED = 6, 7, 8, 10

# Each user's part, each answer's, and what comes before all.
PARTS = """\
{{- BOS -}}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
USER: {% for part in message['content'] %}
{%- if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif -%}
{%- endfor -%}
{%- else -%}
ASSISTANT: {{ message['content'][0]['text'] }} {{- eos_token -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}ASSISTANT:{%- endif -%}"""
TEMPLATES = {
    "without BOS": PARTS.replace("{{- BOS -}}", ""),
    "with BOS": PARTS.replace("BOS", "bos_token"),
    "BOS in each turn": PARTS.replace("{{- BOS -}}", "").replace("USER:", "{{ bos_token }}USER:"),
    "plain text": PARTS.replace("BOS", "bos_token")
    .replace("{% for part in message['content'] %}", "{{ message['content'] + ' ' }}{# ")
    .replace("{%- endfor -%}\n{%- else", "#}{%- else", 1)
    .replace("message['content'][0]['text']", "message['content']"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_processor(tmp_path_factory.mktemp("chat"))
    return write_checkpoint(folder, random_weights())


@pytest.fixture(scope="module")
def model(folder):
    return models.load(folder, dtype=jnp.float32)


@pytest.fixture
def use(model, monkeypatch):
    """Gives the model's processor a template."""

    def use(template):
        monkeypatch.setattr(processor_of(model), "chat_template", template)

    return use


def hf_ids(model, messages, pictures=()):
    """Token ids by transformers' own processor, of its own template."""
    pictures = iter(pictures)
    for message in messages:
        for part in message["content"]:
            if part["type"] == "image":
                part["image"] = next(pictures)
    theirs = transformers.LlavaProcessor.from_pretrained(model.source, backend="pil")
    output = theirs.apply_chat_template(
        messages,
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        return_tensors="np",
        chat_template=processor_of(model).chat_template,
    )
    return output["input_ids"], output.get("pixel_values")


def says(role, text, images=0):
    parts = [{"type": "image"} for _ in range(images)]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


@pytest.mark.parametrize("name", ["without BOS", "with BOS", "BOS in each turn"])
@pytest.mark.parametrize("images", [0, 1, 2])
def test_ids_and_pixels_of_a_first_turn_are_hugging_faces(model, use, name, images):
    use(TEMPLATES[name])
    ids, pixels = hf_ids(model, [says("user", "what is", images)], [PICTURE] * images)
    prompt = models.chat_prompt(model, "what is", num_images=images)
    inputs = models.prepare(model, prompts=prompt, images=[PICTURE] * images)
    np.testing.assert_array_equal(inputs.input_ids, ids)
    assert np.count_nonzero(inputs.input_ids == 1) == 1
    if images:
        np.testing.assert_array_equal(inputs.pixel_values, pixels)
    else:
        assert pixels is None
        assert inputs.pixel_values is None


@pytest.mark.parametrize("name", ["without BOS", "with BOS", "BOS in each turn"])
@pytest.mark.parametrize("images", [0, 1])
def test_turns_put_together_are_hugging_faces_conversation(model, use, name, images):
    use(TEMPLATES[name])
    talk = [says("user", "what is", 1), says("assistant", "red"), says("user", "this ?", images)]
    ids, _ = hf_ids(model, talk, [PICTURE] * (1 + images))
    first = models.prepare(model, prompts=models.chat_prompt(model, "what is"), images=PICTURE)
    prompt = models.chat_prompt(model, "this ?", num_images=images, later_turn=True)
    later = models.prepare(model, prompts=prompt, images=[PICTURE] * images, later_turn=True)
    answer = [[RED, 2]]  # with the stop token, as the cache holds it
    together = np.concatenate([first.input_ids, answer, later.input_ids], axis=1)
    np.testing.assert_array_equal(together, ids)


@pytest.mark.parametrize("end", ["{{- eos_token -}}", "?\n", "{{- ' ' -}}"])
def test_an_answer_that_was_cut_gets_the_end_that_the_template_writes(model, use, end):
    """Gemma's turns end with another token than its EOS, GLM-V's with none."""
    use(TEMPLATES["with BOS"].replace("{{- eos_token -}}", end))
    talk = [says("user", "what is", 1), says("assistant", "red"), says("user", "this ?")]
    ids, _ = hf_ids(model, talk, [PICTURE])
    first = models.prepare(model, prompts=models.chat_prompt(model, "what is"), images=PICTURE)
    prompt = models.chat_prompt(model, "this ?", num_images=0, later_turn=True, finished=False)
    later = models.prepare(model, prompts=prompt, later_turn=True)
    together = np.concatenate([first.input_ids, [[RED]], later.input_ids], axis=1)
    np.testing.assert_array_equal(together, ids)
    with pytest.raises(ValueError, match="give later_turn=True"):
        models.chat_prompt(model, "what", finished=False)


def test_a_template_of_plain_text_gets_plain_text(model, use):
    use(TEMPLATES["plain text"])
    assert models.chat_prompt(model, "what") == "<s>USER: <image>\nwhat ASSISTANT:"
    later = models.chat_prompt(model, "what", num_images=0, later_turn=True)
    assert later == "USER: what ASSISTANT:"


@pytest.mark.parametrize(
    "question", ["{'type': 'text'}", " what ", "the-answer-before", "<image> ?"]
)
@pytest.mark.parametrize("later_turn", [False, True])
def test_odd_questions_arrive_whole(model, use, question, later_turn):
    use(TEMPLATES["with BOS"])
    prompt = models.chat_prompt(model, question, later_turn=later_turn)
    bos = "" if later_turn else "<s>"
    assert prompt == f"{bos}USER: <image> {question} ASSISTANT:"


def test_without_a_template_prompts_are_those_of_llava(model):
    assert models.chat_prompt(model, "what") == "USER: <image>\nwhat ASSISTANT:"
    later = models.chat_prompt(model, "what", num_images=0, later_turn=True)
    assert later == "USER: what ASSISTANT:"


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.json", ".jinja"])
def test_a_template_is_found_wherever_it_lies(tmp_path, model, place):
    write_processor(tmp_path)
    template = TEMPLATES["with BOS"].replace("USER", "QUESTION")
    if place == ".jinja":
        (tmp_path / "chat_template.jinja").write_text(template)
    else:
        file = tmp_path / place
        content = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps(content | {"chat_template": template}))
    other = dataclasses.replace(model, source=str(tmp_path))
    assert models.chat_prompt(other, "what") == "<s>QUESTION: <image> what ASSISTANT:"


def test_of_several_templates_the_default_is_taken(model, use):
    use({"other": "no", "default": TEMPLATES["with BOS"]})
    assert models.chat_prompt(model, "what").startswith("<s>USER:")
    use({"other": "no"})
    with pytest.raises(ValueError, match='one named "default"'):
        models.chat_prompt(model, "what")


def test_prompts_with_and_without_a_written_bos_share_a_batch(model):
    inputs = models.prepare(model, prompts=["<s> what", "what is this"])
    np.testing.assert_array_equal(inputs.input_ids[0][inputs.mask[0]], [1, WHAT])
    np.testing.assert_array_equal(inputs.input_ids[1], [1, WHAT, IS, THIS])


def test_a_later_turn_starts_without_bos_in_the_cache(model):
    options = {"max_new_tokens": 2, "quant": "none", "stop_tokens": ()}
    said = models.generate(model, models.prepare(model, prompts=["what is"] * 2), **options)
    np.testing.assert_array_equal(said.cache.text.length, [3 + 2] * 2)
    inputs = models.prepare(model, prompts=["USER: this ? ASSISTANT:", "what"])
    held = models.generate(model, inputs, cache=said.cache, **options).cache.text.length
    np.testing.assert_array_equal(held, [5 + 4 + 2, 5 + 1 + 2])


@pytest.mark.parametrize("bos", ["", "<s> "])
@pytest.mark.parametrize("multiple", [1, 8])
def test_only_a_bos_at_the_start_is_left_out(model, bos, multiple):
    prompts = [f"{bos}USER: this <s> ?", f"{bos}what"]
    inputs = models.pad_to_multiple(models.prepare(model, prompts=prompts), multiple).continuing()
    ids = [np.asarray(row[mask]) for row, mask in zip(inputs.input_ids, inputs.mask, strict=True)]
    np.testing.assert_array_equal(ids[0], [4, THIS, 1, 9])
    np.testing.assert_array_equal(ids[1], [WHAT])


def test_a_prompt_of_bos_alone_keeps_it():
    inputs = inputs_from_arrays(CONFIG, [[0, 1], [1, 5]], [[0, 1], [1, 1]], bos_token_id=1)
    np.testing.assert_array_equal(inputs.continuing().mask, [[0, 1], [0, 1]])
    assert inputs.continuing().continuing().bos_token_id is None


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for", "TemplateSyntaxError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ a.b }}", "UndefinedError"),
        ("{{ raise_exception('no pictures') }}", "no pictures"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "Error"),
        ("{{ 'a' * 10**11 }}", "MemoryError"),
        ("{{ 'a' * 10**7 }}", "it writes 10000000 characters"),
        ("hello", "with 1 images; expected the question"),
        ("", "with 1 images; expected the question"),
        ("<image> <image> {{ messages[0]['content'][1]['text'] }}", "as many <image>, got 2"),
        ({"default": 3}, "expected text, got 3"),
        (3, "expected text, got 3"),
    ],
)
def test_a_bad_template_is_one_clear_error(model, use, template, message):
    use(template)
    with pytest.raises(ValueError, match=message) as error:
        models.chat_prompt(model, "what is this")
    assert str(error.value).startswith("the chat template of ")
    assert len(str(error.value)) < 400


def test_a_template_without_end_is_stopped_and_the_next_one_works(model, use, monkeypatch):
    monkeypatch.setattr(chat_template, "TIME_LIMIT", 0.5)
    loop = "{% for i in range(99999) %}"
    use(loop * 3 + "{% endfor %}" * 3)
    with pytest.raises(ValueError, match=r"it takes longer than 0\.5 seconds"):
        models.chat_prompt(model, "what")
    monkeypatch.undo()
    use(TEMPLATES["with BOS"])
    assert models.chat_prompt(model, "what").startswith("<s>USER:")


def test_ctrl_c_in_a_terminal_leaves_the_process_alone(model, use):
    use(TEMPLATES["with BOS"])
    prompt = models.chat_prompt(model, "what")
    process = chat_template._worker._process
    process.send_signal(signal.SIGINT)
    assert models.chat_prompt(model, "what") == prompt
    assert chat_template._worker._process is process


def test_a_process_that_was_ended_is_started_again(model, use):
    use(TEMPLATES["with BOS"])
    prompt = models.chat_prompt(model, "what")
    chat_template._worker._process.kill()
    chat_template._worker._process.wait()
    assert models.chat_prompt(model, "what") == prompt


def test_a_template_that_forgets_answers_has_no_later_turns(model, use):
    use("USER: {{ messages[-1]['content'][-1]['text'] }}")
    assert models.chat_prompt(model, "what", num_images=0) == "USER: what"
    with pytest.raises(ValueError, match="leaves out earlier answers"):
        models.chat_prompt(model, "what", num_images=0, later_turn=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"question": 3}, "question: expected text, got 3"),
        ({"question": "what", "num_images": -1}, "num_images"),
        ({"question": "what", "num_images": 1.5}, "num_images"),
    ],
)
def test_bad_arguments_are_named(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        models.chat_prompt(model, **arguments)


@pytest.mark.parametrize("hard", [None, 2**28])
def test_the_process_of_templates_keeps_to_the_lower_limit_of_memory(tmp_path, monkeypatch, hard):
    """With a stand-in of transformers, which takes seconds to import and more memory."""
    utils = tmp_path / "transformers" / "utils"
    utils.mkdir(parents=True)
    for package in (utils.parent, utils):
        (package / "__init__.py").touch()
    (utils / "chat_template_utils.py").write_text(
        "import resource\n"
        "def render_jinja_template(**request):\n"
        "    return [str(resource.getrlimit(resource.RLIMIT_DATA))], None\n"
    )
    worker = Path(chat_template.__file__).with_name("template_worker.py")
    limit = "" if hard is None else f"ulimit -d {hard // 1024}; "
    done = subprocess.run(
        ["bash", "-c", f"{limit}exec {sys.executable} -P {worker}"],
        env={"PYTHONPATH": str(tmp_path)},
        input='{"chat_template": "x"}\n',
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    most = resource.getrlimit(resource.RLIMIT_DATA)[1] if hard is None else hard
    ready, answer = map(json.loads, done.stdout.splitlines())
    assert ready == {"text": ""}
    assert answer == {"text": str((hard or 2**30, most))}
