"""Prompts and pictures on a model's mesh."""

import dataclasses

from jax.sharding import Mesh, PartitionSpec

from models.inputs.batch import Inputs
from models.sharding.axes import DATA
from models.sharding.placing import place, place_sequences

__all__ = ["check_batch", "check_divides", "place_inputs"]


def check_batch(mesh: Mesh | None, inputs: Inputs) -> None:
    """Raises ValueError where `DATA` does not divide the batch."""
    if mesh is not None:
        check_divides(mesh.shape[DATA], inputs.input_ids.shape[0])


def check_divides(parts: int, batch: int) -> None:
    """Raises ValueError where `parts` devices of the axis `data` do not divide the batch."""
    if batch % parts:
        raise ValueError(
            f"mesh axis data={parts} does not divide a batch of {batch} prompts: give a multiple "
            f"of {parts}"
        )


def place_inputs(mesh: Mesh | None, inputs: Inputs) -> Inputs:
    """Prompts with their sequences over `DATA`, and pictures over all devices.

    All devices have in full the arrays that their number does not divide.
    """
    if mesh is None:
        return inputs
    pixels = inputs.pixel_values
    if pixels is not None:
        even = pixels.shape[0] % mesh.size == 0
        pixels = place(mesh, pixels, PartitionSpec(mesh.axis_names if even else None))
    return dataclasses.replace(
        inputs.map_tokens(lambda x: place_sequences(mesh, x)),
        pixel_values=pixels,
        vision_layout=place(mesh, inputs.vision_layout, PartitionSpec()),
    )
