"""GGUF files of text models, as transformers reads them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.checkpoints.foreign_errors import named
from models.messages import show_path

__all__ = ["gguf_errors", "read_gguf_settings"]


def read_gguf_settings(file: Path) -> tuple[Any, Any]:
    """Configuration and tokenizer of a GGUF file, as transformers has them.

    Raises:
        ValueError: the file cannot be read, or a package is missing.
    """
    with gguf_errors(file):
        import transformers

        where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        config = transformers.AutoConfig.from_pretrained(**where)
        return config, transformers.AutoTokenizer.from_pretrained(**where)


@contextlib.contextmanager
def gguf_errors(file: Path) -> Iterator[None]:
    """Turns errors of transformers about a GGUF file into one ValueError that names the file."""
    try:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of arrays that cannot be written to
            yield
    except ImportError as error:
        raise ValueError(
            f"--text-tower: a GGUF file is read by PyTorch (uv run --group parity --with gguf "
            f"--with accelerate): {error}"
        ) from error
    except Exception:  # of many types, whatever the readers meet in a broken file
        with named(f"--text-tower: {show_path(file)} cannot be read as GGUF"):
            raise
