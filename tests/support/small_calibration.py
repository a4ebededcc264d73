"""`vkq calibrate` of a model of a few thousand random weights, with plans that take seconds.

A program of its own, to be killed: `python -m tests.support.small_calibration --out FILE`.
"""

import sys
from unittest import mock

import vkq_jax
from models.calibration import codes
from tests.support.tiny_llava import batch, prompt, tiny_model
from vkq_apps.cli import calibrate
from vkq_apps.cli.main import main
from vkq_jax import DictionaryCodes, KVQuantConfig, TokenClass

HALVES = (TokenClass(0.5, 1), TokenClass(0.5, 0))
PLANS = tuple(
    KVQuantConfig(own, own)
    for own in (DictionaryCodes(HALVES, codebook=4), DictionaryCodes(HALVES[::-1], codebook=4))
)


def run() -> None:
    rows = (prompt(3, "image", 5), prompt(2, "image", 3, seed=1))
    batches = [batch(*rows, seed=seed) for seed in range(3)]
    mock.patch.multiple(
        calibrate,
        _samples=lambda *_: ([], [(None, "what is it?")] * 6),
        check_before_loading=lambda *_, **__: None,
        load_model=lambda *_, **__: tiny_model(),
        files_digest=lambda _: "0",
        batches_of=lambda *_, **__: iter(batches),
    ).start()
    for module in (codes, vkq_jax):
        mock.patch.object(module, "calibrated_presets", {"small": PLANS}).start()
    main(["calibrate", "--model", "tiny", "--max-new-tokens", "2", *sys.argv[1:]])


if __name__ == "__main__":
    run()
