"""GGUF files of text models, as transformers reads them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.checkpoints.foreign_errors import named
from vkq_jax.messages import show_path

__all__ = ["gguf_errors", "gguf_tensors", "read_gguf_settings"]


def read_gguf_settings(file: Path) -> tuple[Any, Any]:
    """Configuration and tokenizer of a GGUF file, as transformers has them.

    Raises:
        ValueError: the file cannot be read, or a package is missing.
    """
    with gguf_errors(file):
        import transformers

        _check_blocks(file)
        where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        config = transformers.AutoConfig.from_pretrained(**where)
        return config, transformers.AutoTokenizer.from_pretrained(**where)


def gguf_tensors(file: Path, config: Any) -> dict[str, Any]:
    """The tensors of a GGUF file, as gguf reads them, by the names of Hugging Face's files.

    Args:
        file: the file.
        config: its configuration.

    Raises:
        ValueError: a tensor of another size than the configuration says, or a package is missing.
            transformers would make room for the sizes of the configuration first.
    """
    with gguf_errors(file):
        import gguf  # pyright: ignore[reportMissingImports]
        import torch  # pyright: ignore[reportMissingImports]
        import transformers

        reader = _read(file)
        architecture = reader.fields["general.architecture"].contents()
        key = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
        names = gguf.get_tensor_name_map(key, config.num_hidden_layers)
        found = {tensor.name: tensor for tensor in reader.tensors}
        with torch.device("meta"):
            wanted = transformers.AutoModelForCausalLM.from_config(config).state_dict()
        tensors = {}
        for name, tensor in wanted.items():
            own = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if own not in found:
                continue
            shape = found[own].shape[::-1].tolist()
            if shape != list(tensor.shape):
                raise ValueError(f"{own} is {shape}, its settings say {list(tensor.shape)}")
            tensors[name] = found[own]
        return tensors


def _check_blocks(file: Path) -> None:
    """Raises ValueError unless the file holds the decoder blocks that it says it has.

    transformers would leave out what is too much, and first make room for what is missing.
    """
    reader = _read(file)
    architecture = reader.fields["general.architecture"].contents()
    said = reader.fields[f"{architecture}.block_count"].contents()
    names = (tensor.name.split(".") for tensor in reader.tensors)
    held = {name[1] for name in names if name[0] == "blk"}
    if said != len(held):
        raise ValueError(f"expected {said} decoder blocks as its settings say, got {len(held)}")


def _read(file: Path) -> Any:
    """gguf's reader of the file."""
    import gguf  # pyright: ignore[reportMissingImports]

    class Reader(gguf.GGUFReader):
        """Ends with the file: gguf itself goes through arrays of any length that is written."""

        def _get(self, offset, dtype, count=1, override_order=None):
            part = super()._get(offset, dtype, count, override_order)
            if len(part) < count:
                raise ValueError("the file ends too early")
            return part

    return Reader(file)


@contextlib.contextmanager
def gguf_errors(file: Path) -> Iterator[None]:
    """Turns errors of transformers about a GGUF file into one ValueError that names the file."""
    try:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        verbosity = transformers.utils.logging.get_verbosity()
        transformers.utils.logging.set_verbosity(transformers.utils.logging.CRITICAL)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of arrays that cannot be written to
                yield
        finally:
            transformers.utils.logging.set_verbosity(verbosity)
    except ImportError as error:
        raise ValueError(
            f"--text-tower: a GGUF file is read by PyTorch (uv run --group parity --with gguf "
            f"--with accelerate): {error}"
        ) from error
    except Exception:  # of many types, whatever the readers meet in a broken file
        with named(f"--text-tower: {show_path(file)} cannot be read as GGUF"):
            raise
