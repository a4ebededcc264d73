"""The comparisons of this folder on the devices that there are, see docs/scaling_benchmarks.md.

    python -m tests.sharding.on_gpus --out results/mesh_gpus.json

Every kind of text decoder answers on one device and on each mesh of two or more of them: with a
batch that is shared out, and with one sequence, which is in parts where devices share its heads.
The file has a row for each; the exit code is 1 where tokens, lengths or codes differ. Processes for
some kinds and meshes each run beside each other on the same devices
(XLA_PYTHON_CLIENT_PREALLOCATE=false), and `--join` makes one file of theirs.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

import models
from models.sharding.placing import sequence_parts
from tests.sharding.cases import BATCH, CONFIGS, STEPS, Cases, inputs_of
from vkq_apps.files.provenance import provenance
from vkq_jax.cache.any_cache import map_parts
from vkq_jax.files.atomic_write import atomic_write
from vkq_jax.sharding.bank_parts import join_banks
from vkq_jax.sharding.hosts import to_host

QUANTS = ("none", "signs-1bit", "vkq-1bit")
FLIPPED = 1e-3  # of the bits, as in `cases.assert_same`: sums in another order round otherwise


def meshes(devices: int) -> list[str]:
    """Meshes of so many devices, all of the batch and of the heads among them."""
    sizes = [n for n in (1, 2, 4, 8) if devices % n == 0 and n <= devices]
    return [f"data={devices // n},model={n}" for n in sizes]


def compare(cases: Cases, name: str, mesh: str, quant: str, batch: int) -> dict[str, Any]:
    """How a mesh answers beside one device."""
    one, many = cases.model(name), cases.model(name, mesh)
    options = {"quant": quant, "max_new_tokens": STEPS, "stop_tokens": ()}
    expected = models.generate(one, inputs_of(one, batch), **options)
    got = models.generate(many, inputs_of(many, batch), **options)
    banks = (
        [part.visual for part in map_parts(result.cache, join_banks).parts]
        for result in (got, expected)
    )
    pairs = [(to_host(x), to_host(y)) for x, y in zip(*map(jax.tree.leaves, banks), strict=True)]
    words = [(x, y) for x, y in pairs if x.dtype in (np.uint8, np.uint16, np.uint32)]
    logits = [np.asarray(models.forward(m, inputs_of(m, batch))) for m in (one, many)]
    row = {
        "tokens_equal": bool((to_host(got.tokens) == to_host(expected.tokens)).all()),
        "shapes_equal": all((x.shape, x.dtype) == (y.shape, y.dtype) for x, y in pairs),
        "code_bits": sum(8 * x.nbytes for x, _ in words),
        "code_bits_that_differ": sum(int(np.bitwise_count(x ^ y).sum()) for x, y in words),
        "greatest_logit_difference": float(np.abs(logits[0] - logits[1]).max()),
        "shared_out": batch % sequence_parts(many.mesh) == 0,
    }
    row["equal"] = (
        row["tokens_equal"]
        and row["shapes_equal"]
        and row["code_bits_that_differ"] <= FLIPPED * row["code_bits"]
    )
    return row


def main() -> int:
    """Compares, writes the file, and says what differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write, row by row")
    parser.add_argument("--kinds", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--meshes", nargs="+", help="such as data=2,model=1; all by default")
    parser.add_argument("--join", nargs="+", type=Path, help="files of runs: compare nothing anew")
    arguments = parser.parse_args()
    if arguments.join:
        return report(joined(arguments.join), arguments.out)
    jax.config.update("jax_default_matmul_precision", "highest")
    record: dict[str, Any] = {**provenance(), "devices": jax.device_count(), "rows": []}
    if record["devices"] < 2:
        raise SystemExit("on_gpus: expected two devices or more, got one")
    cases = Cases(Path(tempfile.mkdtemp()))
    for name in arguments.kinds:
        for mesh in arguments.meshes or meshes(record["devices"]):
            data = int(mesh.partition(",")[0].partition("=")[2])
            for quant, batch in [(quant, BATCH) for quant in QUANTS] + [("vkq-1bit", data)]:
                row = {"kind": name, "mesh": mesh, "quant": quant, "batch": batch}
                try:
                    row |= compare(cases, name, mesh, quant, batch)
                except Exception as error:  # the other rows count, too
                    row |= {"equal": False, "error": f"{type(error).__name__}: {error}"[:400]}
                record["rows"].append(row)
                print(json.dumps(row), flush=True)
                write(record, arguments.out)
    return report(record, arguments.out)


def joined(files: list[Path]) -> dict[str, Any]:
    """One record of several runs of one device and version, which is that of the first."""
    records = [json.loads(file.read_text()) for file in files]
    first = records[0]
    same = ("device", "devices", "versions", "commit")
    for file, record in zip(files, records, strict=True):
        if any(record[name] != first[name] for name in same):
            raise SystemExit(f"on_gpus: {file} and {files[0]} differ in one of {', '.join(same)}")
    return first | {"rows": [row for record in records for row in record["rows"]]}


def write(record: dict[str, Any], file: Path) -> None:
    """Writes the file, whole or not at all."""
    with atomic_write(file) as part:
        part.write_text(json.dumps(record, indent=1))


def report(record: dict[str, Any], file: Path) -> int:
    """Writes the file and says what differs; the exit code."""
    write(record, file)
    wrong = [row for row in record["rows"] if not row["equal"]]
    print(f"{len(record['rows']) - len(wrong)} of {len(record['rows'])} rows are equal")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
