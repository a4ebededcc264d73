"""One of two processes that share a mesh, see `tests/sharding/test_hosts.py`."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vkq_apps.terminal.hosts import join_hosts

join_hosts()

import models  # noqa: E402
import vkq_jax  # noqa: E402
from models.calibration import codes as code_calibration  # noqa: E402
from models.calibration.folder import digest_of  # noqa: E402
from models.checkpoints.folder import Checkpoint  # noqa: E402
from models.checkpoints.memory import free_memory  # noqa: E402
from tests.sharding.cases import RIVALS, STEPS, inputs_of  # noqa: E402


def main(folder: Path, mesh: str, out: Path) -> None:
    read: list[int] = []
    original = Checkpoint.read

    def recorded(self, key, *index):
        values = original(self, key, *index)
        if key.endswith("layers.0.mlp.up_proj.weight"):
            read.append(values.size)
        return values

    Checkpoint.read = recorded
    model = models.load(folder, dtype=jnp.float32, mesh=mesh)
    generation = models.generate(
        model, inputs_of(model), max_new_tokens=STEPS, stop_tokens=(), quant="signs-1bit"
    )
    assert free_memory() is not None  # of a device of this host, not of the first one
    vkq_jax.save_cache(out / "cache", generation.cache)
    placed = models.load_cache(out / "cache", model.mesh)
    for x, y in zip(jax.tree.leaves(placed), jax.tree.leaves(generation.cache), strict=True):
        for own, saved in zip(x.addressable_shards, y.addressable_shards, strict=True):
            np.testing.assert_array_equal(own.data, saved.data)
    result = {
        "devices": [jax.device_count(), jax.local_device_count()],
        "tokens": np.asarray(generation.tokens).tolist(),
        "read": read,
    }
    if mesh.startswith("data"):
        code_calibration.calibrated_presets = {"vkq-1bit": RIVALS}
        inputs = [inputs_of(model)]
        codes = models.calibrate_codes(model, inputs, max_new_tokens=2, tokens=64)
        scores = models.calibrate_scores(model, inputs, max_new_tokens=2)
        result |= {"tables": digest_of(codes), "slope": np.asarray(scores.slope).tolist()}
        result["codebook"] = np.float32(codes.presets[0].tables.key.codebook).tolist()
    (out / f"{jax.process_index()}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
