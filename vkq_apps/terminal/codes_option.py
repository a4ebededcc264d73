"""Forms of `--quant`: a preset, codes of one's own, and changes for keys, values, layers and heads.

vkq-1bit                            a preset
vkq-1bit:plain                      the preset without tables, where the model has some for it
my_codes:mine                       what `mine` is in my_codes.py, here or installed
signs-1bit/key=minmax-4bit          keys with the codes of another one
vkq-1bit/0=none/-1=vkq-2bit         the first and the last layer with settings of their own
vkq-1bit/0-3=none                   layers 0 to 3
vkq-1bit/5.2=none/all.7=vkq-2bit    KV head 2 of layer 5, and head 7 of every layer
"""

import importlib
import os
import re
import sys
from typing import Any

import vkq_jax
from vkq_jax.messages import shorten, show

__all__ = ["FORMS", "PLAIN", "TEXT", "Codes", "parse_codes"]

type Codes = str | vkq_jax.KVQuantConfig | vkq_jax.PerLayer

PLAIN = ":plain"
"""Suffix of a preset's name: without the tables that the model has for it."""
TEXT = ":text8"
"""Suffix of a name in evaluations and benchmarks, after all others: text is in 8 bits."""

FORMS = (
    f"NAME{PLAIN} is a preset without the tables that the model has for it. "
    "Other codes for some parts: NAME/0=none/-1=NAME2 for the first and the last layer, "
    "NAME/5.2=none for KV head 2 of layer 5, NAME/all.2=none for that head of all layers, "
    "NAME/key=NAME2 or NAME/value=NAME2 for one side. MODULE:NAME takes settings from a Python "
    "module."
)


def parse_codes(text: str) -> Codes:
    """The codes that an option names; the name itself where it is a preset's.

    Raises:
        ValueError: an unknown preset, module, side or layer, or a module that cannot be imported
            or has no such settings.
    """
    first, *changes = text.split("/")
    codes = _named(first)
    places: dict[Any, str | vkq_jax.KVQuantConfig] = {}
    for change in changes:
        place, equals, name = change.partition("=")
        if not equals:
            raise ValueError(
                "--quant: expected LAYER=NAME, LAYER.HEAD=NAME, key=... or value=..., "
                f"got {show(change)}"
            )
        own = _named(name)
        if isinstance(codes, vkq_jax.PerLayer) or isinstance(own, vkq_jax.PerLayer):
            raise ValueError(
                f"--quant: {show(first)} has settings of its layers, got {show(change)}"
            )
        if place in ("key", "value"):
            sides = {place: getattr(vkq_jax.resolve(own), place)}
            whole = vkq_jax.resolve(codes)
            codes = vkq_jax.KVQuantConfig(
                **({"key": whole.key, "value": whole.value} | sides), calibration=whole.calibration
            )
        else:
            if (number := _place(place)) in places:
                raise ValueError(f"--quant: {shorten(place, 40)} is named twice in {show(text)}")
            places[number] = own
    if not places or isinstance(codes, vkq_jax.PerLayer):
        return codes
    return vkq_jax.per_layer(codes, places)


def _place(text: str) -> Any:
    """A layer, or a head of one or of all layers, as `vkq_jax.per_layer` takes it."""
    layers, dot, heads = text.partition(".")
    layer = "all" if dot and layers == "all" else _numbers(layers)
    head = _numbers(heads) if dot else None
    if layer is None or (dot and head is None):
        raise ValueError(
            "--quant: expected a layer such as 0, -1 or 0-3, a head of it such as 0.2 or all.2, "
            f"key or value, got {show(text)}"
        )
    return (layer, head) if dot else layer


def _numbers(text: str) -> int | range | None:
    if re.fullmatch(r"-?\d{1,6}", text):
        return int(text)
    if found := re.fullmatch(r"(\d{1,6})-(\d{1,6})", text):
        return range(int(found[1]), int(found[2]) + 1) or None
    return None


def _named(name: str) -> Codes:
    module, colon, attribute = name.partition(":")
    if colon and module in vkq_jax.presets:
        if colon + attribute != PLAIN:
            raise ValueError(f"--quant: a preset is {module} or {module}{PLAIN}, got {show(name)}")
        return vkq_jax.presets[module]  # settings have no tables, which are found by the name
    if not colon:
        vkq_jax.resolve(name)
        return name
    found = _imported(module, attribute)
    if isinstance(found, vkq_jax.Quantizer):
        return vkq_jax.KVQuantConfig(key=found, value=found)
    if isinstance(found, vkq_jax.KVQuantConfig | vkq_jax.PerLayer):
        return found
    raise ValueError(
        f"--quant {shorten(name, 100)}: expected a KVQuantConfig, a Quantizer or per_layer(...), "
        f"got {show(found)}"
    )


def _imported(module: str, attribute: str) -> Any:
    here = os.getcwd()
    if here not in sys.path:  # as `python -m` has it
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a module does when it is imported
        kind = type(error).__name__
        raise ValueError(
            f"--quant {shorten(f'{module}:{attribute}', 100)}: expected settings in a module that "
            f"can be imported here, got {kind}: {shorten(str(error), 150)}"
        ) from error
