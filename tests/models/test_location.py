"""Where checkpoints are found: the Hub's local cache; and whether their weights fit."""

import jax.numpy as jnp
import pytest
from huggingface_hub import constants

import models
from models.checkpoints import memory
from models.checkpoints.memory import free_memory, weight_bytes
from tests.models.hf_files import random_weights, write_checkpoint, write_processor
from vkq_jax.pytree import nbytes

NAME = "someone/tiny-llava_1.5"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache laid out as huggingface_hub's: blobs, and a snapshot of links to them."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--tiny-llava_1.5"
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    files = write_checkpoint(write_processor(tmp_path / "files"), random_weights())
    for number, file in enumerate(files.iterdir()):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    return snapshot


def test_a_name_in_the_local_cache_loads(cache, tmp_path, monkeypatch):
    model = models.load(NAME, dtype=jnp.float32)
    assert model.source == str(cache)
    assert models.read_config(NAME) == model.config
    assert models.chat_prompt(model, "what is")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone" / "tiny-llava_1.5").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"tiny-llava_1\.5/config\.json"):
        models.load(NAME)  # a folder of that name goes first


@pytest.mark.parametrize("name", ["someone/else", "a/b..c", "some/where"])
def test_a_name_that_is_not_in_the_cache_is_one_clear_error(cache, name):
    with pytest.raises(FileNotFoundError) as error:
        models.load(name)
    said = str(error.value)
    assert said.startswith(f"checkpoint folder {name} does not exist, and the cache of the Hugging")
    assert said.endswith(f"`hf download {name}` gets it")
    assert len(said) < 400


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://huggingface.co/someone/tiny-llava_1.5", NAME),
        ("https://huggingface.co/someone/tiny-llava_1.5/tree/main", NAME),
        ("hf://someone/tiny-llava_1.5", NAME),
        ("s3://bucket/models/tiny", "OWNER/NAME"),
        ("https://huggingface.co/" + "a" * 5000, "OWNER/NAME"),
    ],
)
def test_an_address_is_no_folder_and_no_name(address, name):
    with pytest.raises(ValueError, match=f"got the address .*`hf download {name}`") as error:
        models.load(address)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer_config.json",
        "chat_template.jinja",
        "model.safetensors",
        "vkq_tables.safetensors",
    ],
)
def test_a_link_to_a_blob_that_is_missing_is_named(cache, name):
    """As a stopped download leaves it; without the file other prompts or codes would be made."""
    (cache / name).unlink(missing_ok=True)
    (cache / name).symlink_to("../../blobs/none")
    with pytest.raises(FileNotFoundError, match=rf"{name}: expected a file, got .* get it anew"):
        models.load(NAME)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a\0b", b"0" * 5000])
def test_a_damaged_cache_is_one_clear_error(cache, content):
    (cache.parents[1] / "refs" / "main").write_bytes(content)
    with pytest.raises(FileNotFoundError, match="holds no model of that name") as error:
        models.read_config(NAME)
    assert len(str(error.value)) < 400


def test_weights_that_do_not_fit_are_refused_before_they_are_read(cache, monkeypatch):
    assert weight_bytes(NAME, 4) >= nbytes(models.load(NAME, dtype=jnp.float32).params)
    assert weight_bytes(NAME) == weight_bytes(NAME, 4) // 2  # in bfloat16
    monkeypatch.setattr(memory, "free_memory", lambda devices: 1000)
    monkeypatch.setattr("models.loading.read_weights", None)
    with pytest.raises(MemoryError, match=r"weights take [\d.]+ KiB, and 1000 B are free on cpu"):
        models.load(NAME)


def test_free_memory_heeds_the_limit_of_a_container(tmp_path, monkeypatch):
    everything = free_memory()
    assert everything is not None
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    for name, content in (
        ("memory.max", "3000\n"),
        ("memory.current", "1200\n"),
        ("memory.stat", "anon 7\ninactive_file 200\n"),
    ):
        (tmp_path / name).write_text(content)
    assert free_memory() == 2000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() > 2000
