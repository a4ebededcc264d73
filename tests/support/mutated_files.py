"""Safetensors files of this library with a change by bytes or by field, for fuzzers."""

import json

import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

import vkq_jax

ODD = [None, True, False, 0, 1, -1, 2, 3, 40, 64, 2**31, 2**70, 0.0, 0.5, 1.5, 1e308, float("nan")]
ODD += [float("inf"), "", "x", "float16", "float32", [], {}, [1], "median", 10**400]


def read(path):
    with safe_open(path, framework="np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return arrays, dict(file.metadata())


def refused_or(path, one_clear_error, accept, load=vkq_jax.load_cache):
    """Loads; `accept` judges what comes. Whether it was refused."""
    try:
        loaded = load(path)
    except Exception as error:
        one_clear_error(error)
        return True
    accept(loaded)
    return False


def mutated_bytes(raw, rng):
    raw, at = bytearray(raw), rng.randrange(len(raw))
    if rng.random() < 0.3:  # in the header
        at = rng.randrange(min(len(raw), 3000))
    match rng.randrange(6):
        case 0:
            raw[at] ^= 1 << rng.randrange(8)
        case 1:
            raw[at : at + rng.randrange(1, 64)] = rng.randbytes(rng.randrange(64))
        case 2:
            del raw[at:]
        case 3:
            raw[at:at] = raw[rng.randrange(len(raw)) :][: rng.randrange(200)]
        case 4:
            raw[:8] = rng.choice([0, 1, 2**20, 2**63, 2**64 - 1, len(raw)]).to_bytes(8, "little")
        case 5:
            other = rng.randrange(len(raw))
            raw[at], raw[other] = raw[other], raw[at]
    return bytes(raw)


def mutated_fields(original, rng):
    """Arrays and metadata with one or two changes."""
    arrays, metadata = read(original)
    for _ in range(rng.choice([1, 1, 2])):
        match rng.randrange(4):
            case 0 | 1:
                name = rng.choice(sorted(arrays))
                arrays[name] = mutated_array(arrays[name], rng)
            case 2:
                metadata["structure"] = mutated_structure(metadata["structure"], rng)
            case 3:
                one, two = rng.choice(sorted(arrays)), rng.choice(sorted(arrays))
                arrays[one] = arrays[two]
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata


def mutated_array(array, rng):
    """Another dtype, shape or value, likely one that cannot be."""
    match rng.randrange(7 if array.size else 5):
        case 0:
            dtypes = [np.int32, np.uint32, np.float32, np.float16, np.float64, np.uint8, bool]
            with np.errstate(over="ignore", invalid="ignore"):
                return array.astype(rng.choice([*dtypes, jnp.bfloat16]))
        case 1:
            axis = rng.randrange(array.ndim)
            return np.concatenate([array, array], axis)
        case 2:
            axis = rng.randrange(array.ndim)
            return np.take(array, range(array.shape[axis] // 2), axis)
        case 3:
            return array[..., None] if rng.random() < 0.5 else array[0]
        case 4:
            return np.ascontiguousarray(np.swapaxes(array, rng.randrange(array.ndim), 0))
        case 5:
            kind = array.dtype.kind
            odd = [-1, 0, 1, 41, 2**31 - 1] if kind in "iu" else [np.nan, np.inf, -1.0, 1e30]
            array = array.copy()
            with np.errstate(all="ignore"):
                value = np.asarray(rng.choice(odd)).astype(array.dtype)
            array.reshape(-1)[rng.randrange(array.size)] = value
            return array
        case _:
            array = array.copy()
            raw = array.reshape(-1).view(np.uint8)
            raw[rng.randrange(raw.size)] ^= 1 << rng.randrange(8)
            return array


def mutated_structure(structure, rng):
    tree = json.loads(structure)
    places = list(nodes(tree))
    parent, key = rng.choice(places)
    match rng.randrange(4):
        case 0:
            parent[key] = rng.choice(ODD)
        case 1:
            other, its = rng.choice(places)
            parent[key] = json.loads(json.dumps(other[its]))
        case 2:
            if isinstance(parent, dict):
                parent[rng.choice(["x", "bits", "value", "array"])] = parent.pop(key)
            else:
                del parent[key]
        case 3:
            values = [(p, k) for p, k in places if k == "value"]
            parent, key = rng.choice(values)
            old = parent[key]
            if isinstance(old, bool) or not isinstance(old, int | float):
                parent[key] = rng.choice(ODD)
            else:
                parent[key] = rng.choice([old + 1, old - 1, old * 2, -old, float(old), str(old)])
    return json.dumps(tree)


def nodes(tree):
    """Every container of a JSON tree, with each of its keys."""
    if isinstance(tree, dict):
        items = list(tree.items())
    else:
        items = list(enumerate(tree)) if isinstance(tree, list) else []
    for key, value in items:
        yield tree, key
        yield from nodes(value)
