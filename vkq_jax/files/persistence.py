"""Saving and restoring caches and score maps, each in one safetensors file.

Its header holds the structure as JSON and a checksum of all that the file holds. Nothing is
executed on restoring: types come from this package or from those the caller names. Fields are
checked on writing and on restoring (see `vkq_jax.validation`): what is written can be read.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from safetensors import SafetensorError
from safetensors.numpy import save_file

import vkq_jax
from vkq_jax.cache.any_cache import check_cache_type, map_parts
from vkq_jax.cache.kv_cache import KVCache
from vkq_jax.cache.layered import AnyCache, LayeredCache
from vkq_jax.files.atomic_write import atomic_write
from vkq_jax.files.consistency import check_cache
from vkq_jax.files.regular_file import open_safetensors
from vkq_jax.files.sliced_arrays import digest_of_file, outlines, read_shards
from vkq_jax.files.stored_form import describe, digest_of, rebuild, share_equal
from vkq_jax.messages import shorten, show, show_path
from vkq_jax.settings.calibrated import CalibratedCodes
from vkq_jax.settings.score_maps import ScoreMap
from vkq_jax.sharding.bank_parts import join_banks
from vkq_jax.sharding.hosts import spans_hosts
from vkq_jax.validation import (
    as_array,
    as_items,
    as_path,
    check_readable,
    check_tree,
    check_type,
    check_untraced,
)

__all__ = [
    "is_written_here",
    "load_cache",
    "load_score_map",
    "load_tables",
    "save_cache",
    "save_score_map",
    "save_tables",
]


def save_cache(path: str | os.PathLike[str], cache: AnyCache) -> None:
    """Writes a cache to a safetensors file, which appears whole or not at all.

    A cache on several devices is written as if it were on one. Where it spans hosts all of them
    call this together, and the first one writes.

    Args:
        path: file to write or to replace; a link is followed.
        cache: of concrete arrays.

    Raises:
        ValueError: no cache, or one whose arrays are traced; a cache that `load_cache` would
            refuse, since its fields do not fit together or are not finite; something other than a
            regular file is there, or the cache uses what has no stored form.
    """
    check_cache_type(cache)
    check_untraced("cache", cache)
    _save(path, map_parts(cache, join_banks), "cache", check_cache)


def load_cache(
    path: str | os.PathLike[str],
    *,
    types: Iterable[type] = (),
    shardings: Callable[[AnyCache], Any] | None = None,
) -> AnyCache:
    """Reads a cache back, leaf for leaf equal to the saved one, to the default device.

    `models.generate` puts it on the mesh of its model, whatever mesh it was saved from, and
    `models.load_cache` reads it straight to a mesh.

    Args:
        path: file written by `save_cache`.
        types: classes of your own (code families, tensors, range rules) that the cache uses.
        shardings: how each array is to lie on devices: of the cache with abstract arrays, the
            cache with a `jax.sharding.Sharding` in the place of each. Each host then reads the
            parts of its devices, and holds one part of one array at a time.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a whole cache file, bit for bit what was written; a type that is neither
            this package's nor in `types`; fields that do not hold what their annotations say, do
            not fit together, or are not finite.
    """
    return _load(path, "cache", (KVCache, LayeredCache), types, check_cache, shardings)


def save_score_map(path: str | os.PathLike[str], score_map: ScoreMap) -> None:
    """Writes a static score map and the settings of its codes.

    Args:
        path: file to write, as for `save_cache`.
        score_map: slopes and shifts [L, N], from `models.calibrate_scores`.

    Raises:
        ValueError: no score map, or as for `save_cache`.
    """
    check_type("score_map", score_map, ScoreMap, hint="models.calibrate_scores")
    check_untraced("score_map", score_map)
    _save(path, score_map, "score map")


def load_score_map(path: str | os.PathLike[str], *, types: Iterable[type] = ()) -> ScoreMap:
    """Reads a static score map back; `models.generate` checks that it fits a model and its codes.

    Args:
        path: file written by `save_score_map`.
        types: classes of your own that its codes use, as for `load_cache`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as for `load_cache`, or slopes that are negative.
    """
    return _load(path, "score map", (ScoreMap,), types)


def save_tables(path: str | os.PathLike[str], codes: CalibratedCodes) -> None:
    """Writes the calibrated presets of a model; tables that several presets share are written once.

    Args:
        path: file to write, as for `save_cache`.
        codes: from `models.calibrate_codes`.

    Raises:
        ValueError: no `CalibratedCodes`, or as for `save_cache`.
    """
    check_type("codes", codes, CalibratedCodes, hint="models.calibrate_codes")
    check_untraced("codes", codes)
    _save(path, codes, "tables", share=True)


def load_tables(
    path: str | os.PathLike[str],
    *,
    types: Iterable[type] = (),
    shardings: Callable[[CalibratedCodes], Any] | None = None,
) -> CalibratedCodes:
    """Reads calibrated presets back; `models.generate` checks that they fit a model.

    Args:
        path: file written by `save_tables`.
        types: classes of your own that its codes use, as for `load_cache`.
        shardings: how each array is to lie on devices, as for `load_cache`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a whole and consistent file of tables, or a type that is neither this
            package's nor in `types`.
    """
    return _load(path, "tables", (CalibratedCodes,), types, shardings=shardings)


def is_written_here(path: str | os.PathLike[str], kind: Literal["score map", "tables"]) -> bool:
    """Whether a file was written by `save_score_map` or `save_tables`, of any version."""
    try:
        with open_safetensors(path) as file:
            found = (file.metadata() or {}).get("format", "")
    except (OSError, SafetensorError):
        return False
    return _is_of_kind(found, kind)


def _save[T](
    path: str | os.PathLike[str],
    value: T,
    kind: str,
    check: Callable[[T], None] = lambda value: None,
    *,
    share: bool = False,
) -> None:
    # What is made by hand may hold arrays of NumPy.
    value = jax.tree.map(lambda x: as_array(kind, x) if isinstance(x, np.ndarray) else x, value)
    check_tree(value, kind)
    check(value)
    arrays: dict[str, np.ndarray] = {}
    description = describe(value, kind, arrays)
    if share:
        description, arrays = share_equal(description, arrays)
    structure = json.dumps(description)
    metadata = {
        "format": _format(kind),
        "structure": structure,
        "sha256": digest_of(structure, arrays),
    }
    several = spans_hosts(value)
    if not several or jax.process_index() == 0:
        with atomic_write(path) as part:
            save_file(arrays, part, metadata=metadata)
    if several:
        multihost_utils.sync_global_devices("the file is there for all hosts")


def _load[T](
    path: str | os.PathLike[str],
    kind: str,
    classes: tuple[type[T], ...],
    types: Iterable[type],
    check: Callable[[T], None] = lambda value: None,
    shardings: Callable[[T], Any] | None = None,
) -> T:
    path = as_path(path)
    check_readable(path)
    if not os.path.isfile(path):  # pathlib's raises for some impossible names
        raise FileNotFoundError(f"no {kind} file at {show_path(path)}")
    own = as_items(types)
    if own is None or not all(isinstance(cls, type) for cls in own):
        raise ValueError(f"types: expected a list of classes, got {show(types)}")
    known = {known.__qualname__: known for known in [*_own_types(), *own]}
    damaged = f"{show_path(path)} is damaged: its contents are not those that were written"

    def rebuilt(arrays: Mapping[str, Any]) -> T:
        value = rebuild(json.loads(structure), arrays, known)
        if not isinstance(value, classes):
            names = " or ".join(cls.__name__ for cls in classes)
            raise ValueError(f"expected a {names}, got a {type(value).__name__}")
        return value

    try:
        with open_safetensors(path) as file:
            metadata = file.metadata() or {}
            written = metadata.get("format", "")
            if not _is_of_kind(written, kind) or "structure" not in metadata:
                what = kind if kind.endswith("s") else f"a {kind}"
                raise ValueError(f"{show_path(path)} is not {what} written by vkq_jax")
            if written != _format(kind):
                raise ValueError(
                    f"{show_path(path)}: expected a file of the format {_format(kind)!r}, got "
                    f"{show(written)}: make it again with this version of vkq_jax"
                )
            structure = metadata["structure"]
            if shardings is None:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                digest = digest_of(structure, arrays)
            else:
                digest = digest_of_file(file, structure)
                if digest != metadata.get("sha256"):
                    raise ValueError(damaged)
                with _errors_of(path):
                    sharding_of = _shardings_of(outlines(file), rebuilt, shardings)
                arrays = {name: read_shards(file, name, own) for name, own in sharding_of.items()}
    except (SafetensorError, TypeError, AttributeError) as error:  # the latter for unknown dtypes
        raise ValueError(f"{show_path(path)} is damaged: {shorten(str(error), 200)}") from error
    with _errors_of(path):
        value = rebuilt(_on_device(arrays))
        check_tree(value, kind)
        check(value)
    if digest != metadata.get("sha256"):
        raise ValueError(damaged)
    return value


def _shardings_of(
    arrays: Mapping[str, jax.ShapeDtypeStruct],
    rebuilt: Callable[[Mapping[str, Any]], Any],
    shardings: Callable[[Any], Any],
) -> dict[str, jax.sharding.Sharding]:
    """How each array of a file is to lie on devices, by name, see `load_cache`."""
    names: list[str] = []

    def outline(arrays: Mapping[str, jax.Array]) -> Any:
        value = rebuilt(arrays)
        name_of = {id(array): name for name, array in arrays.items()}
        names.extend(name_of[id(leaf)] for leaf in jax.tree.leaves(value))
        return value

    value = jax.eval_shape(outline, dict(arrays))
    return dict(zip(names, jax.tree.leaves(shardings(value)), strict=True))


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Errors of a file's contents as ValueErrors that name it."""
    try:
        yield
    except NotImplementedError:
        raise
    # Settings that a class does not take, JSON without an end, shapes that JAX refuses.
    except Exception as error:
        raise ValueError(f"{show_path(path)}: {shorten(str(error), 250)}") from error


def _format(kind: str) -> str:
    return f"vkq-jax {kind} 3"


def _is_of_kind(written: str, kind: str) -> bool:
    """Whether a file's format is that of a kind, of any version."""
    return written.rpartition(" ")[0] == _format(kind).rpartition(" ")[0]


def _on_device(arrays: Mapping[str, np.ndarray | jax.Array]) -> dict[str, jax.Array]:
    """Each array once, however many fields it stands for."""
    found = {name: jnp.asarray(array) for name, array in arrays.items()}
    for name, array in found.items():
        if array.dtype != arrays[name].dtype:
            raise ValueError(f"{name} is {arrays[name].dtype}: set jax_enable_x64 to load it")
    return found


def _own_types() -> Iterable[type]:
    return (value for value in vars(vkq_jax).values() if isinstance(value, type))
