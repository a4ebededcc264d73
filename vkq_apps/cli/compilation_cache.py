"""JAX's persistent compilation cache: programs compiled by one run, found by the next."""

import os
from pathlib import Path

__all__ = ["use_compilation_cache"]

_SECONDS = 0.2
"""Programs that compile faster are not kept: reading one back takes about as long."""


def use_compilation_cache(folder: Path) -> None:
    """Keeps compiled programs in `folder`, and takes those found there.

    Args:
        folder: made where it is missing. Programs are kept by device and by version of JAX, so that
            one folder serves all machines; delete it to free its space.

    Raises:
        ValueError: no folder, or one that cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--compilation-cache: {folder} cannot be made a folder: {error.strerror}"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(
            f"--compilation-cache: expected a folder that can be written to, got {folder}"
        )
    import jax  # here: `vkq --help` should not wait for it

    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
