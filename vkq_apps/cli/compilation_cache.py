"""JAX's persistent compilation cache: programs compiled by one run, found by the next."""

import os
from collections.abc import MutableMapping
from pathlib import Path

__all__ = ["use_compilation_cache", "use_default_cache"]

_SETTINGS = {
    # Programs that compile faster are not kept: reading one back takes about as long.
    "jax_persistent_cache_min_compile_time_secs": 0.2,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


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

    for name, value in {"jax_compilation_cache_dir": str(folder.absolute()), **_SETTINGS}.items():
        jax.config.update(name, value)


def use_default_cache(environment: MutableMapping[str, str] = os.environ) -> None:
    """Has JAX, once it is imported, keep compiled programs in the user's own cache.

    The folder is `vkq-jax/compiled` in $XDG_CACHE_HOME, which is ~/.cache by default. JAX's own
    variables come first: $JAX_COMPILATION_CACHE_DIR for another folder,
    $JAX_ENABLE_COMPILATION_CACHE=false for none. Where the folder cannot be made, nothing is kept.
    """
    if {"JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"} & environment.keys():
        return
    try:
        home = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home, "vkq-jax", "compiled").absolute()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: nobody knows a home folder
        return
    if os.access(folder, os.W_OK | os.X_OK):
        environment["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        for name, value in _SETTINGS.items():
            environment.setdefault(name.upper(), str(value))
