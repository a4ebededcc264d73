"""The text bed: what codes of keys and values do to the next tokens of a pretrained text model.

    python -m vkq_apps.evals.text_bed --model GGUF_OR_FOLDER --quant NAMES --out FILE

A second judge beside the visual one: its weights are real, though its tokens are not visual. Each
text's first positions are read at full precision; all but the first few are then coded, and the
rest of the text is predicted from codes. kl: mean KL(full precision || codes) of the next token, in
nats. Tables are fitted to other texts, among them none of one kind that is measured; of a preset's
plans the one of least KL on a few of those texts is taken. PyTorch runs the model
(`uv run --group parity`, for GGUF files also `--with gguf --with accelerate`).
"""

if __name__ == "__main__":  # here: Ctrl-C is heard in the imports below, too
    from vkq_apps.terminal.program import run_module

    run_module("vkq_apps.evals.text_bed")

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from models.calibration.samples import CodeSamples
from vkq_apps.evals.intervals import bootstrap
from vkq_apps.evals.text_bed_codes import Plan, code, fitted, plans_of, samples_of, uncalibrated
from vkq_apps.evals.text_bed_model import Span, TextModel
from vkq_apps.evals.text_bed_texts import Excerpt, cut_texts
from vkq_apps.files.outputs import check_record_place
from vkq_apps.files.provenance import provenance
from vkq_apps.files.results_file import write_json
from vkq_apps.terminal.console import log, out
from vkq_apps.terminal.lists import entries_of
from vkq_apps.terminal.progress import progress
from vkq_apps.terminal.standalone import option, run_standalone

__all__ = ["BedOptions", "MeasuredTexts", "figures", "judge", "main", "sample"]

DEFAULT_PRESETS = "vkq-1bit,vkq-half,vkq-2bit,signs-1bit,quantile-1bit,kivi-2bit"
WITHOUT_TABLES = ", no tables"
JUDGES = 8  # calibration texts that plans are compared on
COMMAND = "text_bed"


class MeasuredTexts:
    """Some texts read at full precision: what every preset is compared with."""

    def __init__(self, model: TextModel, texts: Sequence[Excerpt], done: Callable[[], None]):
        self.model, self.texts = model, texts
        self.caches, self.exact, attention = [], [], []
        for text in texts:
            cache, paid = model.read(text.ids)
            self.caches.append(cache)
            attention.append(paid)
            self.exact.append(model.predict(text.ids, self.caches[-1]).half())
            done()
        sides = zip(*(model.coded_part(cache) for cache in self.caches), strict=True)
        self.key, self.value = (np.stack(side, 1) for side in sides)  # [L, B, K, V, H]
        self.attention = np.stack(attention, 1)  # [L, B, K, V]

    def measure(self, plan: Plan, done: Callable[[], None]) -> dict[str, Any]:
        """KL and agreement of each text, and bits per element."""
        coded = code(plan, self.key, self.value, self.attention)
        kl, same = [], []
        for number, (text, cache) in enumerate(zip(self.texts, self.caches, strict=True)):
            found = self.model.predict(text.ids, cache, coded.of_text(number))
            exact = self.exact[number].float()
            kl.append(float((exact.exp() * (exact - found)).sum(-1).mean()))
            same.append(float((exact.argmax(-1) == found.argmax(-1)).float().mean()))
            done()
        return {"kl": kl, "same": same, "bits": coded.bits}


def judge(
    model: TextModel,
    names: Sequence[str],
    calibration: Sequence[Excerpt],
    texts: Sequence[Excerpt],
    *,
    seed: int = 0,
    show: Callable[[str, int, int], None] = lambda stage, more, total: None,
) -> dict[str, Any]:
    """The figures of presets: with tables where they have some, and without.

    Args:
        model: whose keys and values are coded.
        names: of presets.
        calibration: texts for tables.
        texts: those to measure on.
        seed: of fits and intervals.
        show: told what is done, how many more texts, and how many in all.

    Raises:
        ValueError: a preset is unknown, or is more than codes of keys and values.
    """
    plain = {name: uncalibrated(name) for name in names}
    with_tables = [name for name in names if plans_of(name)]
    judges = list(calibration[:JUDGES])
    choices = sum(len(plans_of(name)) for name in with_tables)
    total = len(texts) * (1 + len(names) + len(with_tables))
    if with_tables:
        total += len(calibration) + len(judges) * (1 + choices)

    def done(stage: str) -> Callable[[], None]:
        return lambda: show(stage, 1, total)

    rows: dict[str, Any] = {}
    chosen = _calibrated(model, with_tables, calibration, judges, seed, done)
    measured = MeasuredTexts(model, texts, done("full precision"))
    for name in names:
        if name in chosen:
            plan, divergence = chosen[name]
            row = figures(measured.measure(plan, done(name)), texts, seed)
            choice = {"plan": plan.number, "kl_of_plans": [round(x, 5) for x in divergence]}
            rows[name] = row | choice
        row = name + WITHOUT_TABLES if name in chosen else name
        rows[row] = figures(measured.measure(plain[name], done(row)), texts, seed)
    return rows


def _calibrated(
    model: TextModel,
    names: Sequence[str],
    calibration: Sequence[Excerpt],
    judges: Sequence[Excerpt],
    seed: int,
    done: Callable[[str], Callable[[], None]],
) -> dict[str, tuple[Plan, list[float]]]:
    """The plan of least KL of each preset, and the KL of all its plans, on the judges."""
    if not names:
        return {}
    samples = sample(model, calibration, done("calibrating"))
    held_in = MeasuredTexts(model, judges, done("calibrating"))
    chosen = {}
    for name in names:
        plans = fitted(name, samples, seed)
        of = done(f"{name}: plans")
        divergence = [float(np.mean(held_in.measure(plan, of)["kl"])) for plan in plans]
        chosen[name] = plans[int(np.argmin(divergence))], divergence
    return chosen


def sample(model: TextModel, texts: Sequence[Excerpt], done: Callable[[], None]) -> CodeSamples:
    """The samples of texts that tables are fitted to; `done` is called after each text."""
    found = []
    for text in texts:
        found.append(model.observe(text.ids))
        done()
    return samples_of(found)


def figures(measured: dict[str, Any], texts: Sequence[Excerpt], seed: int) -> dict[str, Any]:
    """Means and intervals of what `MeasuredTexts.measure` found; `seed`: of the bootstrap."""
    kl, same = (np.array(measured[name]) for name in ("kl", "same"))
    names = [text.name for text in texts]
    kinds = {kind: np.array([t.kind == kind for t in texts]) for kind in {t.kind for t in texts}}
    key, value = measured["bits"]
    return {
        "bits_per_element": {
            name: round(bits, 4)
            for name, bits in (("key", key), ("value", value), ("mean", (key + value) / 2))
        },
        "kl": round(float(kl.mean()), 5),
        "kl_interval": [round(x, 5) for x in bootstrap(kl.tolist(), names, seed=seed)],
        "agreement": round(float(same.mean()), 4),
        "agreement_interval": [round(x, 4) for x in bootstrap(same.tolist(), names, seed=seed)],
        "kl_by_kind": {kind: round(float(kl[of].mean()), 5) for kind, of in sorted(kinds.items())},
    }


def results_table(rows: dict[str, Any], title: str) -> Table:
    """The figures for people."""
    table = Table(title=title)
    table.add_column("codes", no_wrap=True)
    for name in ("bits", "KL", "same next token", "plan"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in rows.items():
        low, high = row["kl_interval"]
        table.add_row(
            name,
            f"{row['bits_per_element']['mean']:.2f}",
            f"{row['kl']:.4f} [{low:.4f}, {high:.4f}]",
            f"{row['agreement']:.1%}",
            str(row.get("plan", "")),
        )
    return table


@dataclasses.dataclass(frozen=True, kw_only=True)
class BedOptions:
    """What a command on the text bed is told: the model, the texts, where results go."""

    model: Path = option(help="Folder or GGUF file.", metavar="PATH")
    out: Path | None = option(None, help="JSON file to write.", metavar="FILE")
    texts: Path | None = option(
        None, help="Folder of prose and code, instead of Python's.", metavar="FOLDER"
    )
    calibration: int = option(32, help="Texts that tables are fitted to.", min=1)
    samples: int = option(32, help="Texts to measure on.", min=1)
    dense: int = option(4, help="First positions of a text, which stay as they are.", min=0)
    coded: int = option(384, help="Positions to code.", min=1)
    predicted: int = option(
        93, help="Positions behind, all but the last of which are predicted from.", min=2
    )
    seed: int = option(0, help="Seed of texts, fits and intervals.", min=0)

    def load(self, command: str) -> tuple[TextModel, list[Excerpt], list[Excerpt]]:
        """The model, the texts to calibrate with and those to measure on.

        Raises:
            ValueError: see `TextModel.load` and `cut_texts`; `out` cannot be written, or is no
                output of `command`.
        """
        if self.out is not None:
            check_record_place(self.out, command)
        span = Span(self.dense, self.coded, self.predicted)
        model = TextModel.load(self.model, span)
        calibration, texts = cut_texts(
            model.tokenize,
            calibration=self.calibration,
            test=self.samples,
            tokens=span.tokens,
            folder=self.texts,
            seed=self.seed,
        )
        return model, calibration, texts

    def record(
        self,
        command: str,
        rows: dict[str, Any],
        calibration: Sequence[Excerpt],
        measured: Sequence[Excerpt],
    ) -> dict[str, Any]:
        """The results as a file has them; written if there is an `out`."""
        counts = ("calibration", "samples", "dense", "coded", "predicted", "seed")
        record = {
            "command": command,
            "model": self.model.name,
            **{name: getattr(self, name) for name in counts},
            "texts": {
                role: [f"{text.kind}/{text.name}" for text in some]
                for role, some in (("calibration", calibration), ("measured", measured))
            },
            "presets": rows,
            **provenance(),
        }
        if self.out is not None:
            write_json(self.out, record)
        return record


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextBedOptions(BedOptions):
    """The command line of the text bed."""

    quant: str = option(DEFAULT_PRESETS, help="Presets, comma-separated.", metavar="NAMES")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code, 2 for bad input."""
    module = f"vkq_apps.evals.{COMMAND}"
    return run_standalone(TextBedOptions, run, module=module, help=__doc__, arguments=arguments)


def run(options: TextBedOptions) -> None:
    """Measures, writes the file and shows it."""
    names = entries_of(options.quant)
    for name in names:
        uncalibrated(name)
    model, calibration, texts = options.load(COMMAND)
    with progress(log, "texts") as show:
        rows = judge(model, names, calibration, texts, seed=options.seed, show=show)
    record = options.record(COMMAND, rows, calibration, texts)
    out.print(results_table(record["presets"], f"{options.samples} texts (95 % intervals)"))
