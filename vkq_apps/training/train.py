"""Trains the embedded model: `python -m vkq_apps.training.train --help`.

A training may be cut into pieces: `--stop-after-seconds` ends one, `--resume` begins the next, and
the schedule runs over `--steps` of all pieces together. `--start-from` begins a further training
with an exported checkpoint. The embedded one was made so, the first part with an earlier mix of
pictures (see `model_card.md`):

    python -m vkq_apps.training.train --out runs/first
    python -m vkq_apps.training.export runs/first/state.safetensors runs/first/checkpoint
    python -m vkq_apps.training.train --out runs/second --start-from runs/first/checkpoint \
        --steps 4550 --peak 2e-3 --easy 0 --seed 2
    python -m vkq_apps.training.export runs/second/state.safetensors models/tiny_checkpoint
"""

if __name__ == "__main__":  # here: Ctrl-C is heard in the imports below, too
    from vkq_apps.terminal.program import run_module

    run_module("vkq_apps.training.train")


from vkq_apps.terminal.standalone import run_standalone
from vkq_apps.training.options import TrainOptions, other_defaults


def run(options: TrainOptions) -> None:
    """Trains."""
    # JAX takes seconds to import, and rendering processes import this module too.
    from vkq_apps.training.loop import train

    train(options)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code, 2 for bad input."""
    return run_standalone(
        TrainOptions,
        run,
        module="vkq_apps.training.train",
        help=__doc__,
        arguments=arguments,
        overrides=other_defaults,
    )
