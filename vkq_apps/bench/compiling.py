"""Compiling ahead of time: its seconds, and the memory that the compiler plans."""

import dataclasses
import time
from typing import Any

import jax
import jax.monitoring

from vkq_apps.bench import device_memory

__all__ = ["Compiled", "compile_ahead"]

_hits = 0


def _count(event: str, **_: Any) -> None:
    global _hits
    _hits += event == "/jax/compilation_cache/cache_hits"


jax.monitoring.register_event_listener(_count)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled call.

    Attributes:
        call: takes the dynamic arguments.
        seconds: tracing, lowering and compiling.
        cached: whether the compiler's part came from JAX's cache on disk: then `seconds` does not
            measure compiling.
        temporary_bytes: scratch memory of a call; None where the compiler does not say.
    """

    call: jax.stages.Compiled
    seconds: float
    cached: bool
    temporary_bytes: int | None

    @property
    def text(self) -> str:
        """The compiled program."""
        return self.call.as_text() or ""


def compile_ahead(function: Any, *arguments: Any, **settings: Any) -> Compiled:
    """Compiles a jitted function for these arguments, abstract ones too.

    Raises:
        DoesNotFit: a call needs more memory than the device has. Only devices that do not count
            their memory are asked: on a CPU the call could end the process, or all others.
    """
    before, start = _hits, time.perf_counter()
    compiled = function.lower(*arguments, **settings).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    if memory is not None and not device_memory.is_counted():
        parts = memory.argument_size_in_bytes, memory.output_size_in_bytes
        needed = sum(parts) + memory.temp_size_in_bytes - memory.alias_size_in_bytes
        device_memory.check_fits(needed, "the arrays of one call")
    return Compiled(
        call=compiled,
        seconds=seconds,
        cached=_hits > before,
        temporary_bytes=None if memory is None else memory.temp_size_in_bytes,
    )
