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

from __future__ import annotations

from vkq_apps.training.options import parse_options


def main() -> None:
    """Command line."""
    options = parse_options()
    # JAX takes seconds to import, and rendering processes import this module too.
    from vkq_apps.training.loop import train

    train(options)


if __name__ == "__main__":
    main()
