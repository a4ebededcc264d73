"""Decode steps on several GPUs."""

import json
from typing import Any

from docs import scaling_out
from docs.tables.results import RESULTS, read
from models.sharding.mesh import mesh_sizes
from pallas_kernels.shapes import find_shape


def mesh_rows() -> list[str]:
    """Decode steps on several GPUs beside those of one, by shape and visual cache.

    Each is compared with one GPU's of the same run at as many sequences a part of `data`, and with
    what `scaling_out.py` works out from that.
    """
    lines = [
        "| shape | visual cache | mesh | sequences | step, ms | estimated | tokens/s "
        "| of one GPU's | GB a GPU: cache | peak |",
        f"|{'---|' * 10}",
    ]
    one_gpu = {
        (row["run"], row["shape"], row["preset"], row["fixed_batch"]): row
        for row in _measured_mesh_rows()
        if row["mesh"] == "data=1"
    }
    found = _mesh_rows_by_key()
    for (shape, preset, mesh, batch), row in sorted(found.items(), key=_place_of_mesh):
        sizes = mesh_sizes(mesh)
        each = batch // sizes.data
        alone, ratio, expected = one_gpu.get((row["run"], shape, preset, each)), "", ""
        if alone is not None and mesh != "data=1":
            ratio = f"{row['tokens_per_second'] / alone['tokens_per_second']:.2f}x"
            one = 1e-3 * alone["step_ms"]
            seconds = scaling_out.split_step(find_shape(shape), one, each, sizes.model)
            expected = f"{1e3 * seconds:.2f}"
        lines.append(
            f"| {shape} | `{preset}` | {mesh} | {batch} | {row['step_ms']:.2f} | {expected} "
            f"| {row['tokens_per_second']:,.0f} | {ratio} "
            f"| {row['cache_bytes_per_device'] / 1e9:.1f} "
            f"| {', '.join(f'{peak / 1e9:.1f}' for peak in row['peak_bytes_per_device'])} |"
        )
    return lines


def expected_rows() -> list[str]:
    """Sequences, decode steps and tokens/s of more GPUs, as `scaling_out.py` works them out."""
    return scaling_out.table()


def mesh_profile_rows() -> list[str]:
    """Microseconds a layer by group of kernels, of the rows of `mesh_rows` that have a profile."""
    lines = [
        "| shape | visual cache | mesh | sequences | attention | products with weights "
        "| sums of devices | rest | a layer |",
        f"|{'---|' * 9}",
    ]
    found = {key: row for key, row in _mesh_rows_by_key().items() if "profile" in row}
    for (shape, preset, mesh, batch), row in sorted(found.items(), key=_place_of_mesh):
        parts = row["profile"]["microseconds"]
        times = [parts[name] for name in ("attention", "products", "sums", "rest")]
        times.append(1e3 * row["step_ms"])
        cells = [f"{each / find_shape(shape).num_layers:.1f}" for each in times]
        lines.append(f"| {shape} | `{preset}` | {mesh} | {batch} | {' | '.join(cells)} |")
    return lines


def one_gpu_rows() -> list[str]:
    """Decode steps of one GPU without a mesh and with a mesh of one."""
    lines = ["| visual cache | no mesh, ms | `data=1`, ms |", "|---|---|---|"]
    steps: dict[str, dict[str | None, float]] = {}
    for row in read("mesh_one_gpu.json")["rows"]:
        steps.setdefault(row["preset"], {})[row["mesh"]] = row["step_ms"]
    for preset, by_mesh in steps.items():
        lines.append(f"| `{preset}` | {by_mesh[None]:.2f} | {by_mesh['data=1']:.2f} |")
    return lines


def mixer_rows() -> list[str]:
    """Decode steps of linear attention before meshes, and without and with a mesh of one."""
    lines = ["| sequences | before, ms | no mesh, ms | `data=1`, ms |", "|---|---|---|---|"]
    steps: dict[int, dict[tuple[str, str], float]] = {}
    for row in read("mesh_mixers.json")["rows"]:
        steps.setdefault(row["batch"], {})[row["code"], row["mesh"]] = row["step_ms"]
    for batch, found in steps.items():
        cases = ("before", "none"), ("now", "none"), ("now", "data=1")
        lines.append(f"| {batch} | {' | '.join(f'{found[case]:.3f}' for case in cases)} |")
    return lines


def _mesh_rows_by_key() -> dict[tuple[Any, ...], dict[str, Any]]:
    """The newest measured row of each shape, preset, mesh and batch."""
    rows = sorted(_measured_mesh_rows(), key=lambda row: row["run"])
    names = ("shape", "preset", "mesh", "fixed_batch")
    return {tuple(row[name] for name in names): row for row in rows}


def _measured_mesh_rows() -> list[dict[str, Any]]:
    """Those of all files `mesh_*.json` of `vkq bench scaling --mesh` that have several GPUs."""
    records = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("mesh_*.json"))]
    return [
        row
        for record in records
        if record.get("command") == "vkq bench scaling --mesh"
        and any(row["mesh"] not in (None, "data=1") for row in record["rows"])
        for row in record["rows"]
        if row["status"] == "measured" and row["mesh"] is not None
    ]


def _place_of_mesh(item: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[Any, ...]:
    """Where a row lies in `mesh_rows`: one GPU first."""
    (shape, preset, mesh, batch), row = item
    return shape, preset, row["devices"], mesh, batch
