"""A word when a model's program is compiled, which takes seconds in which nothing else happens."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

from models import Inputs

__all__ = ["compiling_for", "on_compiling"]

_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_SECONDS = 0.03
"""Programs that JAX lowers faster compile in a moment: lowering takes a few percent of it."""


def compiling_for(inputs: Inputs | None) -> str:
    """A line for the time in which programs are compiled; None: before the prompts are known."""
    if inputs is None:
        return "compiling"
    shape = inputs.prompt_shape
    return f"compiling for {shape.visual + shape.text} tokens (once per size)"


@contextmanager
def on_compiling(say: Callable[[], None]) -> Iterator[None]:
    """Calls `say` when the first large program of the block goes to the compiler."""
    said = False

    def hear(event: str, duration_secs: float, **kwargs: str | int) -> None:
        nonlocal said
        if event == _LOWERED and duration_secs >= _SECONDS and not said:
            said = True
            say()

    jax.monitoring.register_event_duration_secs_listener(hear)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(hear)
