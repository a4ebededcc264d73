"""Where a checkpoint lies: a folder, the local cache of the Hugging Face Hub, or this package."""

import os
import re
from pathlib import Path

from vkq_jax.messages import show, show_path
from vkq_jax.validation import check_readable

__all__ = ["TINY", "check_path", "find_folder"]

TINY = Path(__file__).parent.parent / "tiny_checkpoint"
"""The embedded checkpoint's folder."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_ADDRESS = re.compile(r"[A-Za-z][\w+.-]*://.*", re.ASCII)
_HUB_ADDRESS = re.compile(
    rf"(?:https?://huggingface\.co/|hf://)({_HUB_NAME.pattern})(?:/.*)?", re.ASCII
)


def check_path(path: str | os.PathLike[str]) -> str:
    """The path as text; raises ValueError for anything else."""
    try:
        text = os.fspath(path)
    except TypeError:
        text = b""
    if not isinstance(text, str) or not text:
        raise ValueError(f"path: expected that of a folder, as text or Path, got {show(path)}")
    return text


def find_folder(path: str | os.PathLike[str]) -> Path:
    """The checkpoint folder of a path, a name on the Hub, or "tiny"; see `models.load`.

    Raises:
        FileNotFoundError: there is none, or settings or weights in it are a link to nowhere.
        ValueError: no path, that of a file, an address, or a folder that may not be read.
    """
    folder = _named_folder(check_path(path))
    kinds = ("*.json", "*.jinja", "*.safetensors")
    for file in sorted(file for kind in kinds for file in folder.glob(kind)):
        # One that may be missing would count as such: another prompt, no calibrated tables.
        if not os.path.isfile(file):
            raise FileNotFoundError(
                f"{show_path(file)}: expected a file, got a folder or a link to a file that "
                "is missing: get it anew"
            )
    return folder


def _named_folder(text: str) -> Path:
    folder = TINY if text == "tiny" else Path(text)
    check_readable(folder)
    # pathlib's is_dir raises for some impossible names.
    if os.path.isdir(folder):
        return folder
    if text != "tiny" and _HUB_NAME.fullmatch(text) and not os.path.exists(folder):
        return _cached_snapshot(text)
    if _ADDRESS.fullmatch(text):
        address = _HUB_ADDRESS.fullmatch(text)
        name = address[1] if address else "OWNER/NAME"
        raise ValueError(
            "path: expected a folder or a model's name on the Hugging Face Hub, got the address "
            f"{show(text)}; nothing is downloaded: after `hf download {name}` the name loads"
        )
    if text == "tiny":
        hint = "the embedded checkpoint is not part of this copy"
    elif os.path.isfile(folder):
        raise ValueError(f"path: expected a checkpoint folder, got the file {show_path(folder)}")
    else:
        hint = "nothing is downloaded: `hf download NAME` gets a model of the Hugging Face Hub"
    raise FileNotFoundError(f"checkpoint folder {show_path(folder)} does not exist; {hint}")


def _cached_snapshot(name: str) -> Path:
    """The newest snapshot of a Hub model in the local cache; the network is never asked."""
    # Here and not above, because these imports take half a second.
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    # A name that cannot be, or a file of the cache that is no text.
    except (LocalEntryNotFoundError, OSError, ValueError) as error:
        raise FileNotFoundError(
            f"checkpoint folder {show_path(name)} does not exist, and the cache of the Hugging "
            f"Face Hub, {show_path(constants.HF_HUB_CACHE)}, holds no model of that name; nothing "
            f"is downloaded: `hf download {show_path(name)}` gets it"
        ) from error
