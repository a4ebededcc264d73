"""The use of each part of the presets: the same codes with one part left out.

    python -m vkq_apps.evals.ablation --out results/ablation.json

Every row is a preset, or one of its plans, with one part left out or replaced at about equal bits;
its tables are fitted anew to the samples of the whole one. All answer the same held-out questions
of the embedded model's recipe, the cache coded before the question is read: points lost against
full precision, and KL of the next token, with 95 % intervals. `--calibrate-kinds` and `--kinds` fit
to some kinds of pictures and ask about others.
"""

if __name__ == "__main__":  # here: Ctrl-C is heard in the imports below, too
    from vkq_apps.terminal.program import run_module

    run_module("vkq_apps.evals.ablation")

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from rich.table import Table

import models
import vkq_jax
from models.calibration.codes import gather_samples
from models.calibration.fitting import CodeFitter
from models.calibration.folder import CalibrationFolder, digest_of
from models.calibration.samples import CodeSamples
from vkq_apps.evals.evaluation import Options, evaluate_model
from vkq_apps.evals.plan import make_plan
from vkq_apps.evals.settings import FULL, Setting
from vkq_apps.evals.synthetic import synthetic_tasks
from vkq_apps.files.outputs import check_record_place
from vkq_apps.files.results_file import source_digest, write_json
from vkq_apps.terminal.arguments import IMPLEMENTATION_HELP
from vkq_apps.terminal.console import log, out
from vkq_apps.terminal.implementation import implementation_of, layers_apart_with
from vkq_apps.terminal.lists import names
from vkq_apps.terminal.progress import progress
from vkq_apps.terminal.sample_prompts import batches_of
from vkq_apps.terminal.standalone import option, run_standalone
from vkq_apps.training.heldout import calibration_questions
from vkq_apps.training.pictures import KINDS
from vkq_jax.codes.code_tables import ClassTables, CodeTables
from vkq_jax.codes.token_classes import TokenClass
from vkq_jax.settings.config import KVQuantConfig
from vkq_jax.settings.presets import calibrated_presets, presets

__all__ = ["PARTS", "PARTS_HELP", "PLANS", "Variant", "chosen_rows", "main", "variants"]

COMMAND = "ablation"
BY_ENERGY = "classes by energy alone"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row: a plan with a part left out.

    Attributes:
        name: of the row.
        quant: the codes.
        samples: what is done to the samples before tables are fitted.
        tables: to the tables.
    """

    name: str
    quant: KVQuantConfig
    samples: Callable[[CodeSamples], CodeSamples] = lambda samples: samples
    tables: Callable[[CodeTables], CodeTables] = lambda tables: tables

    @property
    def uses_tables(self) -> bool:
        """Whether its codes need tables."""
        assert isinstance(self.quant.key, vkq_jax.DictionaryCodes)
        return self.quant.key.uses_tables

    @property
    def part(self) -> str:
        """The part that is left out or replaced; "" for a whole plan."""
        return self.name.partition(": ")[2]


def one_class(quant: KVQuantConfig) -> KVQuantConfig:
    """All tokens alike, with the mean of the classes' bits, to the next half."""

    def mean(codes: vkq_jax.DictionaryCodes) -> tuple[TokenClass, ...]:
        return (TokenClass(1.0, round(2 * sum(c.share * c.planes for c in codes.classes)) / 2),)

    sides = {side: getattr(quant, side) for side in ("key", "value")}
    return KVQuantConfig(
        **{side: dataclasses.replace(c, classes=mean(c)) for side, c in sides.items()}
    )


def whole_planes(quant: KVQuantConfig) -> KVQuantConfig:
    """Hadamard planes in place of learned dictionaries; tokens have scales where they had none."""

    def planes(codes: vkq_jax.Quantizer) -> vkq_jax.DictionaryCodes:
        assert isinstance(codes, vkq_jax.DictionaryCodes)
        scale = codes.scale or "norm"
        return dataclasses.replace(
            codes, learned=False, metric=False, basis="principal", scale=scale
        )

    return KVQuantConfig(planes(quant.key), planes(quant.value))


def equal_weights(samples: CodeSamples) -> CodeSamples:
    """Every token counts alike, whatever attention it gets."""
    return dataclasses.replace(
        samples,
        key_weight=jnp.ones_like(samples.key_weight),
        value_weight=jnp.ones_like(samples.value_weight),
    )


def without_gains(tables: CodeTables) -> CodeTables:
    """Channels as the grid of least squared error has them, which is biased towards 0."""

    def plain(one: ClassTables) -> ClassTables:
        step = jnp.take_along_axis(one.step, one.channel, axis=-1)
        return dataclasses.replace(one, weight=step * 2.0 ** (one.shift - 1).astype(jnp.float32))

    def side(tables):
        return dataclasses.replace(tables, classes=tuple(map(plain, tables.classes)))

    return CodeTables(side(tables.key), side(tables.value))


def variants(name: str, number: str) -> Iterator[Variant]:
    """A plan of a preset and its rows, the whole plan first; "plain": that without tables."""
    if number == PLAIN:
        yield from _plain_variants(name)
        return
    quant = calibrated_presets[name][int(number)]
    label = f"{name}, plan {number}"
    key, value = quant.key, quant.value
    assert isinstance(key, vkq_jax.DictionaryCodes)
    assert isinstance(value, vkq_jax.DictionaryCodes)
    yield Variant(label, quant)
    yield Variant(f"{label}: one class of tokens", one_class(quant))
    if key.order == "attention":
        yield Variant(f"{label}: {BY_ENERGY}", quant.with_codes(order="energy"))
    yield Variant(f"{label}: no codebook", quant.with_codes(codebook=0, centres=1))
    if key.centres:
        yield Variant(f"{label}: no mean of the image's own", quant.with_codes(centres=0))
    else:
        yield Variant(f"{label}: with the image's own mean", quant.with_codes(centres=1))
    yield Variant(f"{label}: tokens not weighted", quant, samples=equal_weights)
    if key.learned:
        yield Variant(f"{label}: no gains", quant, tables=without_gains)
        if key.metric:
            yield Variant(f"{label}: no metric", quant.with_codes(metric=False))
        yield Variant(f"{label}: Hadamard planes", whole_planes(quant))
    if key.scale == "unbiased":
        yield Variant(f"{label}: scales of least squared error", quant.with_codes(scale="norm"))
    elif key.scale == "norm":
        yield Variant(f"{label}: unbiased scales", quant.with_codes(scale="unbiased"))


def _plain_variants(name: str) -> Iterator[Variant]:
    quant, label = presets[name], f"{name} without tables"
    yield Variant(label, quant)
    yield Variant(f"{label}: one class of tokens", one_class(quant))
    yield Variant(f"{label}: {BY_ENERGY}", quant.with_codes(order="energy"))
    yield Variant(f"{label}: one centre", quant.with_codes(centres=1))
    assert isinstance(quant.key, vkq_jax.DictionaryCodes)
    if quant.key.smoothing:
        alike = dataclasses.replace(quant.key, smoothing=0.0)
        yield Variant(f"{label}: channels in one unit", KVQuantConfig(alike, quant.value))
    if quant.key.scale != "unbiased":
        yield Variant(f"{label}: unbiased scales", quant.with_codes(scale="unbiased"))


PLAIN = "plain"
PLANS = [
    f"{name}/{number}"
    for name, some in calibrated_presets.items()
    for number in [*range(len(some)), *[PLAIN] * name.startswith("vkq-")]
]
ROWS = {plan: list(variants(name, i)) for plan in PLANS for name, i in [plan.split("/")]}
PARTS = list(dict.fromkeys(row.part for some in ROWS.values() for row in some if row.part))
PARTS_HELP = "Rows of the plans to measure, beside the whole ones."
DEFAULT_PLANS = ",".join(x for x in PLANS if x.startswith("vkq-") and not x.endswith(PLAIN))


def chosen_rows(plans: Sequence[str], parts: Sequence[str]) -> list[list[Variant]]:
    """The rows of each plan, the whole one first, then those of `parts` that it has."""
    return [[row for row in ROWS[plan] if not row.part or row.part in parts] for plan in plans]


@dataclasses.dataclass(frozen=True)
class AblationOptions:
    """The command line of the ablation; lists are comma-separated."""

    out: Path = option(help="JSON file to write; the log lies beside it.", metavar="FILE")
    plans: str = option(
        DEFAULT_PLANS,
        help=f"PRESET/PLAN, of {', '.join(PLANS)}.",
        metavar="NAMES",
    )
    parts: str = option(",".join(PARTS), help=PARTS_HELP, metavar="NAMES")
    whole: bool = option(False, help="Only the whole plans.")
    samples: int = option(300, help="Questions.", min=1)
    seed: int = option(21, help="Seed of the questions.", min=0)
    calibration: int = option(128, help="Calibration prompts.", min=1)
    calibrate_kinds: str = option(",".join(KINDS), help="Kinds to fit to.", metavar="NAMES")
    kinds: str = option(",".join(KINDS), help="Kinds to ask about.", metavar="NAMES")
    batch_size: int = option(50, help="Questions answered at once.", min=1)
    implementation: str = option("auto", help=IMPLEMENTATION_HELP, metavar="NAME")
    resume: bool = option(False, help="Go on from the log.")


def _measure(options: AblationOptions) -> dict[str, Any]:
    """The record of the results."""
    plans = names("--plans", options.plans, PLANS)
    kinds = names("--kinds", options.kinds, KINDS)
    calibrate_kinds = names("--calibrate-kinds", options.calibrate_kinds, KINDS)
    chosen = implementation_of(options.implementation)
    check_record_place(options.out, COMMAND)
    model = models.load("tiny", layers_apart=layers_apart_with(chosen))
    part = options.out.with_name(f"{options.out.name}.part") / source_digest()
    kept = CalibrationFolder(part)
    parts = () if options.whole else names("--parts", options.parts, PARTS)
    rows = [row for some in chosen_rows(plans, parts) for row in some]
    settings, fitters = [FULL], {}
    sampled = None
    for row in rows:
        quant, tables = row.quant, None
        if row.uses_tables:
            sampled = sampled or _sampled(model, options, calibrate_kinds, kept)
            samples, digest = sampled
            if row.samples not in fitters:
                fitters[row.samples] = CodeFitter(row.samples(samples))

            def fit(fitter=fitters[row.samples], row=row):
                return row.tables(fitter.fit(row.quant))

            tables = kept.tables(digest_of(digest, row.name, quant), quant, fit)
            log.print(f"{row.name}: has its tables")
        settings.append(Setting(row.name, quant, tables))
    known = synthetic_tasks()
    asked = make_plan(",".join(kinds), known, {}, samples=options.samples, seed=options.seed)
    with progress(log, "questions") as show:
        record = evaluate_model(
            model,
            asked,
            settings,
            Options(
                "image",
                options.samples,
                options.seed,
                options.batch_size,
                implementation=chosen,
            ),
            results=options.out,
            resume=options.resume,
            progress=show,
        )
    fitted = {"calibration": options.calibration, "calibrate_kinds": calibrate_kinds}
    record = record | {"command": COMMAND} | fitted
    write_json(options.out, record)
    shutil.rmtree(part.parent, ignore_errors=True)
    return record


def _sampled(
    model: models.Model,
    options: AblationOptions,
    calibrate_kinds: list[str],
    kept: CalibrationFolder,
) -> tuple[CodeSamples, str]:
    """The samples that tables are fitted to, and their digest."""
    pairs = calibration_questions(options.calibration, kinds=calibrate_kinds)
    with progress(log, "calibration prompts") as show:

        def batches():
            for batch in batches_of(model, pairs, 32):
                yield batch
                show("answering", len(batch.mask), len(pairs))

        (samples,), digest = gather_samples(  # of a model whose layers are alike
            model,
            batches(),
            tokens=256,
            max_new_tokens=24,
            seed=0,
            kept=kept,
            implementation=implementation_of(options.implementation),
        )
    return samples, digest


def results_table(record: dict[str, Any]) -> Table:
    """The rows for people."""
    table = Table(title=f"{record['samples']} questions (95 % intervals)")
    table.add_column("codes")
    for name in ("bits", "points lost", "KL"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in record["presets"].items():
        whole = row["tasks"]["all"]
        low, high = whole["lost_interval"]
        least, most = whole["kl_interval"]
        table.add_row(
            name,
            f"{row['bits_per_element']['mean']:.2f}",
            f"{whole['lost']:.1f} [{low:.1f}, {high:.1f}]",
            f"{whole['kl']:.5f} [{least:.5f}, {most:.5f}]",
        )
    return table


def run(options: AblationOptions) -> None:
    """Measures, writes the file and shows it."""
    out.print(results_table(_measure(options)))


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code, 2 for bad input."""
    module = f"vkq_apps.evals.{COMMAND}"
    return run_standalone(AblationOptions, run, module=module, help=__doc__, arguments=arguments)
