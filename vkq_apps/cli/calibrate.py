"""`vkq calibrate`: tables of codes for a model, from a folder of pictures and clips."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import jax
import typer

import models
import vkq_jax
from models import Clip
from models.calibration.folder import digest_of
from vkq_apps.cli.sample_folder import asked, read_folder, read_prompts
from vkq_apps.evals.checkpoint_digest import files_digest
from vkq_apps.evals.synthetic import is_recipe_folder
from vkq_apps.files.outputs import check_stored_place
from vkq_apps.files.results_file import source_digest
from vkq_apps.files.resuming import check_part_folder, kept_parts
from vkq_apps.recipe import check_recipe
from vkq_apps.terminal.arguments import (
    ImplementationOption,
    JsonOption,
    MaxNewTokensOption,
    MeshOption,
    ModelOption,
    NumFramesOption,
    check_before_loading,
    load_model,
)
from vkq_apps.terminal.console import log, out, print_json
from vkq_apps.terminal.counts import check_count
from vkq_apps.terminal.hosts import check_mesh_of, on_all_hosts
from vkq_apps.terminal.implementation import implementation_of, layers_apart_with
from vkq_apps.terminal.lists import entries_of
from vkq_apps.terminal.progress import progress, resumable
from vkq_apps.terminal.sample_prompts import BatchSizeOption, batches_of
from vkq_jax.files.atomic_write import reserved
from vkq_jax.sharding.hosts import spans_hosts

__all__ = ["calibrate"]

_COMMAND = "vkq calibrate"


def calibrate(
    model: ModelOption,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Pictures like those that the model will see, a few dozen; clips, too, where it "
            "takes them: video files and animated GIF, WebP and PNG files.",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Questions about the pictures, one a line; built-in ones by default.",
        ),
    ] = None,
    out_file: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="File to write; beside the checkpoint, as vkq_tables.safetensors, it is found by "
            "itself.",
        ),
    ] = None,
    quant: Annotated[
        str, typer.Option(metavar="NAMES", help="Presets to calibrate, comma-separated, or all.")
    ] = "all",
    samples: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", callback=check_count, help="Most pictures and clips to take."
        ),
    ] = 128,
    num_frames: NumFramesOption = None,
    max_new_tokens: MaxNewTokensOption = 24,
    batch_size: BatchSizeOption = 16,
    seed: Annotated[
        int,
        typer.Option(min=0, metavar="N", callback=check_count, help="Seed of all random draws."),
    ] = 0,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on from what a run that was stopped left in FILE.part; without it a run "
            "starts anew.",
        ),
    ] = False,
    implementation: ImplementationOption = "auto",
    mesh: MeshOption = None,
    json: JsonOption = False,
) -> None:
    """Fits codebooks and dictionaries to a model's own keys, values and queries.

    The model answers questions about pictures and clips at full precision; then plans of equal bits
    are compared on its own answers, and the best is kept for each preset. The embedded model
    ("tiny") and others that its recipe trained take pictures of that recipe if no folder is given.
    """
    started = time.perf_counter()
    names, chosen = _names(quant), implementation_of(implementation)
    out_file = _check_files(model, images, out_file, resume)
    visuals, pairs = _samples(model, images, prompts, samples, seed)
    questions = [question for _, question in pairs]
    clips = [visual for visual in visuals if isinstance(visual, Clip)]
    pictures = [visual for visual in visuals if not isinstance(visual, Clip)]
    files = [*pictures, *(Path(str(clip.frames)) for clip in clips)]
    if num_frames is not None and not clips:
        raise ValueError(f"--num-frames={num_frames}: expected a clip in --images, got none")
    with on_all_hosts() as alike:
        check_mesh_of(model, mesh)
        check_before_loading(
            model,
            pictures,
            questions,
            clips=clips,
            per_prompt=1 if pictures else 0,
            max_new_tokens=max_new_tokens,
        )
        loaded = load_model(model, mesh=mesh, layers_apart=layers_apart_with(chosen))
        options = {
            "quant": names,
            "max_new_tokens": max_new_tokens,
            "batch_size": batch_size,
            "seed": seed,
            "num_frames": num_frames,
            "implementation": chosen,
        }
        weights, digests = files_digest(loaded), [_digest(file) for file in files]
        alike |= {
            "weights": lambda: weights,
            "pictures": lambda: digests,
            "questions": lambda: questions,
            "options": lambda: options,
        }
    settings = options | {
        "mesh": mesh,
        "samples": len(pairs),
        "model weights": weights,
        "pictures": digest_of(digests),
        "questions": digest_of(questions),
        "source": source_digest(),
    }
    found: dict[str, list[float]] = {}
    with (
        _reserved(out_file, settings, resume=resume) as part,
        progress(log, "prompts") as show,
    ):
        codes = models.calibrate_codes(
            loaded,
            batches_of(loaded, pairs, batch_size, num_frames=num_frames),
            presets=names,
            max_new_tokens=max_new_tokens,
            seed=seed,
            folder=part,
            implementation=chosen,
            on_batch=lambda done: show("answering", done, len(pairs)),
            on_plan=lambda name, number: log.print(f"{name}: plan {number} has its tables"),
            on_preset=lambda name, kl: found.update({name: [float(x) for x in kl]}),
        )
        if not jax.process_index() or spans_hosts(codes):  # all hosts save what lies on several
            vkq_jax.save_tables(out_file, codes)
    record = {
        "model": model,
        "prompts": len(pairs),
        "presets": {
            preset.name: {
                "plan_kl": found[preset.name],
                "table_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(preset.tables)),
            }
            for preset in codes.presets
        },
        "file": str(out_file),
        "seconds": round(time.perf_counter() - started, 2),
    }
    if json:
        print_json(record)
        return
    for name, one in record["presets"].items():
        plans = " / ".join(f"{kl:.3g}" for kl in one["plan_kl"])
        compared = f"KL of its plans {plans}" if plans else "one plan"
        out.print(f"{name}: {compared}, {one['table_bytes'] / 1e6:.1f} MB of tables")
    out.print(f"{out_file}: calibrated on {len(pairs)} prompts", soft_wrap=True)


def _check_files(model: str, images: Path | None, out_file: Path | None, resume: bool) -> Path:
    """The file of --out; refuses files that are missing or not this command's."""
    if images is None and model != "tiny" and not is_recipe_folder(Path(model)):
        raise ValueError(
            "--images: expected a folder of pictures (only models that the recipe trained, such as "
            '"tiny", draw their own)'
        )
    if out_file is None:
        raise ValueError("--out: expected a file to write the tables to")
    check_stored_place(out_file, "tables", _COMMAND)
    check_part_folder(out_file, _COMMAND)
    if resume and jax.process_count() > 1:
        raise ValueError("--resume: expected one host: several hosts keep no FILE.part")
    return out_file


def _samples(
    model: str, images: Path | None, prompts: Path | None, samples: int, seed: int
) -> tuple[list[Path | Clip], list[tuple[Any, str]]]:
    """Files and clips of --images, none where the recipe draws; each picture with its question."""
    questions = read_prompts(prompts)
    if images is None:
        check_recipe("--images FOLDER, with pictures of your own")
        from vkq_apps.training.heldout import calibration_questions  # not in the wheel

        return [], calibration_questions(samples, seed=seed)
    visuals = read_folder(images, models.read_config(model))[:samples]
    return visuals, asked(visuals, questions)


@contextmanager
def _reserved(out_file: Path, settings: dict[str, Any], *, resume: bool) -> Iterator[Path | None]:
    """Reserves the file, and gives the folder of what --resume takes; None on several hosts."""
    if jax.process_index():  # the first host writes
        yield None
        return
    with reserved(out_file):
        if jax.process_count() > 1:
            yield None
            return
        kept = kept_parts(out_file, _COMMAND, settings, resume=resume)
        with kept as part, resumable(log, part):
            yield part


def _names(quant: str) -> list[str]:
    known = list(vkq_jax.calibrated_presets)
    names = entries_of(quant)
    if names == ["all"]:
        return known
    if not names:
        raise ValueError(f"--quant: expected all, or some of {', '.join(known)}, got {quant!r}")
    for name in names:
        if name not in known:
            raise ValueError(f"--quant: expected some of {', '.join(known)}, got {name!r}")
    return names


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
