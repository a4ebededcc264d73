"""Trains the embedded model: `python -m vkq_apps.training.train --help`.

A training may be cut into pieces: `--stop-after-seconds` ends one, `--resume` begins the next, and
the schedule runs over `--steps` of all pieces together.
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
