"""Quantile levels at 1 bit with the settings that lose least, chosen by measuring.

    python -m vkq_apps.evals.quantile_search --out results/quantile_search.json

Levels at two quantiles of each group (CalibQuant's first version, arXiv 2502.14882v1), within a
number of bits that counts the tables. For each side alone, the other in full precision, the search
takes the granularity, group size and rotation of least KL on calibration prompts, then the
quantile; finally it compares both sides together with the best before the quantiles. The preset
`quantile-1bit` is what it chose for the embedded model. kl: mean KL(full precision || codes) of the
next token along the model's own answers, in nats.
"""

if __name__ == "__main__":  # here: Ctrl-C is heard in the imports below, too
    from vkq_apps.terminal.program import run_module

    run_module("vkq_apps.evals.quantile_search")

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import models
from models import Inputs, Model
from models.calibration.folder import CalibrationFolder
from models.calibration.judging import divergences
from vkq_apps.files.outputs import check_record_place
from vkq_apps.files.provenance import provenance
from vkq_apps.files.results_file import source_digest, write_json
from vkq_apps.files.resuming import part_of
from vkq_apps.terminal.command_line import read_name
from vkq_apps.terminal.console import log, out
from vkq_apps.terminal.sample_prompts import batches_of
from vkq_apps.terminal.standalone import option, run_standalone
from vkq_apps.training.heldout import calibration_questions
from vkq_jax.codes.dense import Dense
from vkq_jax.codes.level_codes import Granularity, LevelCodes
from vkq_jax.codes.quantize import quantize
from vkq_jax.codes.range_rules import Quantile
from vkq_jax.pytree import nbytes
from vkq_jax.settings.config import KVQuantConfig

__all__ = ["choose", "main"]

COMMAND = "quantile_search"
GROUP_SIZES = (16, 32, 64, 128, 192, 288, None)
NORMAL = 0.2125
"""The quantile of least squared error for a normal distribution."""
QUANTILES = (0.05, 0.1, 0.15, 0.25, 0.3)
SIDES = ("key", "value")


@dataclasses.dataclass
class Search:
    """The model and prompts of the search, and all that it measured.

    Attributes:
        model: the one whose cache is coded.
        batches: calibration prompts.
        steps: most tokens of an answer.
        kept: what an earlier run measured.
        tried: rows of the results.
    """

    model: Model
    batches: Sequence[Inputs]
    steps: int
    kept: CalibrationFolder
    tried: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def measure(self, candidates: Sequence[KVQuantConfig]) -> list[float]:
        """KL of each; all of them become rows."""
        plans = [(quant, None) for quant in candidates]
        found = divergences(self.model, self.batches, plans, steps=self.steps, kept=self.kept)
        for quant, kl in zip(candidates, found, strict=True):
            sides = {name: described(getattr(quant, name)) for name in SIDES}
            self.tried.append({**sides, "kl": round(kl, 6)})
            log.print(f"{sides}: {kl:.4f}", soft_wrap=True)
        return found


def described(codes: Any) -> Any:
    """The settings of one side, for the results."""
    if not isinstance(codes, LevelCodes):
        return "full precision"
    assert isinstance(codes.range_rule, Quantile)
    return {
        "granularity": codes.granularity.value,
        "group_size": codes.group_size,
        "quantile": codes.range_rule.q,
        "rotation": codes.rotation,
    }


def bits_of(codes: LevelCodes, positions: int, head_dim: int) -> float:
    """Bits per element, the levels counted."""
    x = jax.ShapeDtypeStruct((positions, head_dim), jnp.float32)
    return 8 * nbytes(jax.eval_shape(lambda x: quantize(x, codes), x)) / (positions * head_dim)


def settings_within(limit: float, positions: int, head_dim: int) -> list[LevelCodes]:
    """Every granularity, group size and rotation of at most so many bits per element."""
    found = []
    for granularity in Granularity:
        for size in GROUP_SIZES:
            per_token = granularity is Granularity.PER_TOKEN
            if per_token and size and (head_dim % size or size == head_dim):  # the whole is None
                continue
            for rotation in (None, "hadamard"):
                codes = LevelCodes(
                    range_rule=Quantile(NORMAL),
                    granularity=granularity,
                    group_size=size,
                    rotation=rotation,
                )
                if bits_of(codes, positions, head_dim) <= limit:
                    found.append(codes)
    return found


def choose(search: Search, candidates: Sequence[LevelCodes]) -> tuple[KVQuantConfig, float]:
    """The settings of least KL, and that KL."""

    def alone(side: str, codes: LevelCodes) -> KVQuantConfig:
        return KVQuantConfig(codes, Dense()) if side == "key" else KVQuantConfig(Dense(), codes)

    def best(some: dict[str, Sequence[LevelCodes]]) -> dict[str, tuple[float, LevelCodes]]:
        asked = [(side, codes) for side, each in some.items() for codes in each]
        found = search.measure([alone(side, codes) for side, codes in asked])
        ranked: dict[str, tuple[float, LevelCodes]] = {}
        for (side, codes), kl in zip(asked, found, strict=True):
            if side not in ranked or kl < ranked[side][0]:
                ranked[side] = kl, codes
        return ranked

    def joined(some: dict[str, tuple[float, LevelCodes]]) -> KVQuantConfig:
        return KVQuantConfig(some["key"][1], some["value"][1])

    first = best(dict.fromkeys(SIDES, candidates))
    rules = [Quantile(q) for q in QUANTILES]
    second = best(
        {
            side: [dataclasses.replace(codes, range_rule=rule) for rule in rules]
            for side, (_, codes) in first.items()
        }
    )
    refined = {side: min(first[side], second[side], key=lambda x: x[0]) for side in SIDES}
    together = list(dict.fromkeys([joined(refined), joined(first)]))
    found = search.measure(together)
    place = min(range(len(together)), key=lambda i: found[i])
    return together[place], found[place]


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """The command line of the search."""

    out: Path = option(help="JSON file to write.", metavar="FILE")
    model: str = option(
        "tiny", help="Hugging Face checkpoint folder.", metavar="FOLDER", parser=read_name
    )
    samples: int = option(64, help="Calibration prompts.", min=1)
    bits: float = option(1.5, help="Most bits per element.")
    seed: int = option(0, help="Seed of the pictures.", min=0)


def run(options: SearchOptions) -> None:
    """Searches and writes the file."""
    check_record_place(options.out, COMMAND)
    model = models.load(options.model)
    pairs = calibration_questions(options.samples, seed=options.seed)
    batches = list(batches_of(model, pairs, 32))
    positions = batches[0].prompt_shape.visual
    candidates = settings_within(options.bits, positions, model.config.text.head_dim)
    if not candidates:
        raise ValueError(f"--bits: expected more than {options.bits}, which no levels fit into")
    part = part_of(options.out) / source_digest()
    search = Search(model, batches, 24, CalibrationFolder(part))
    quant, kl = choose(search, candidates)
    bits = {
        side: bits_of(getattr(quant, side), positions, model.config.text.head_dim) for side in SIDES
    }
    record = {
        "command": COMMAND,
        "model": options.model,
        "samples": options.samples,
        "seed": options.seed,
        "bits": options.bits,
        "chosen": {
            **{side: described(getattr(quant, side)) for side in SIDES},
            "bits_per_element": {side: round(one, 4) for side, one in bits.items()},
            "kl": round(kl, 6),
        },
        "tried": search.tried,
        **provenance(),
    }
    write_json(options.out, record)
    shutil.rmtree(part.parent, ignore_errors=True)
    out.print(record["chosen"])


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code, 2 for bad input."""
    module = f"vkq_apps.evals.{COMMAND}"
    return run_standalone(SearchOptions, run, module=module, help=__doc__, arguments=arguments)
