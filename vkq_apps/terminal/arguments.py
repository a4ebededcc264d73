"""Arguments that several commands take, and the way from there to a model and its inputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import models
import vkq_jax
from models import Clip, Inputs, Model
from models.attached_tables import is_uncalibrated
from models.checkpoints.memory import free_memory, weight_bytes
from models.families.base import ModelConfig
from models.families.registry import family_of
from models.generation.options import QuantizeAt
from models.inputs.clips import read_clip
from models.inputs.images import read_picture
from models.prompts.processor import processor_of
from models.prompts.visuals import check_takes_clips
from pallas_kernels import IMPLEMENTATIONS
from vkq_apps.terminal.codes_option import FORMS
from vkq_apps.terminal.command_line import read_name
from vkq_apps.terminal.console import log, stage
from vkq_apps.terminal.counts import check_count
from vkq_apps.terminal.hosts import HOSTS_HELP, check_mesh
from vkq_apps.terminal.room import check_room
from vkq_jax.byte_units import human_bytes
from vkq_jax.cache.text_bank import TextBits, check_text_bits

__all__ = [
    "IMPLEMENTATION_HELP",
    "PRESETS",
    "ImageOption",
    "ImplementationOption",
    "JsonOption",
    "MaxNewTokensOption",
    "MeshOption",
    "ModelOption",
    "NumFramesOption",
    "PromptOption",
    "QuantOption",
    "QuantizeAtOption",
    "TablesOption",
    "TextBitsOption",
    "VideoFpsOption",
    "VideoOption",
    "check_before_loading",
    "check_clips",
    "check_question",
    "check_visuals",
    "describe_images",
    "load_and_prepare",
    "load_model",
    "say_if_uncalibrated",
    "whole_prompt",
]

PRESETS = f"Preset of the visual cache: {', '.join(vkq_jax.presets)}."

ModelOption = Annotated[
    str,
    typer.Option(
        metavar="FOLDER",
        parser=read_name,
        help='Hugging Face checkpoint folder, a Hub name in the local cache, or "tiny".',
    ),
]
ImageOption = Annotated[
    list[Path] | None, typer.Option(metavar="FILE", help="Picture file; repeat for several.")
]
VideoOption = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE_OR_FOLDER",
        help="Clip: a video file such as MP4, an animated GIF, WebP or PNG file, or a folder of "
        "frames; repeat for several.",
    ),
]
VideoFpsOption = Annotated[
    float | None,
    typer.Option(
        min=0.001, metavar="N", help="Frames per second of --video, where its file does not say it."
    ),
]
NumFramesOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        callback=check_count,
        help="Frames to take of each clip; by default what the checkpoint's settings say.",
    ),
]
PromptOption = Annotated[
    str,
    typer.Option(metavar="TEXT", help="Question, or a whole prompt with <image> or <video> in it."),
]
MaxNewTokensOption = Annotated[
    int,
    typer.Option(min=1, metavar="N", callback=check_count, help="Most tokens of each answer."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
MeshOption = Annotated[
    str | None,
    typer.Option(
        metavar="data=N,model=N",
        callback=check_mesh,
        help="Devices to split the work over: sequences over data; heads, MLP and vocabulary over "
        f"model. {HOSTS_HELP}",
    ),
]
QuantOption = Annotated[str, typer.Option(metavar="NAME", help=f"{PRESETS} {FORMS}")]
QuantizeAtOption = Annotated[
    QuantizeAt, typer.Option(help="Code images after the whole prompt, or before the question.")
]

IMPLEMENTATION_HELP = (
    f"Attention over the cache and coding: auto or {', '.join(IMPLEMENTATIONS)}. With xla a GPU "
    "has the layers in stacks and the cache's layout of a CPU; programs compile in a fraction of "
    "the time."
)
ImplementationOption = Annotated[str, typer.Option(metavar="NAME", help=IMPLEMENTATION_HELP)]
TablesOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Tables of the codes, a file of `vkq calibrate`; by default those beside the "
        "checkpoint.",
    ),
]


def _check_text_bits(bits: int | None) -> TextBits:
    try:
        return check_text_bits(bits)
    except ValueError as error:
        raise typer.BadParameter(f"expected 8, got {bits}") from error


TextBitsOption = Annotated[
    int | None,
    typer.Option(
        metavar="8",
        callback=_check_text_bits,
        help="Bits of text keys and values, with a scale for each token and head; by default they "
        "stay in the model's dtype.",
    ),
]


def load_and_prepare(
    source: str,
    images: Sequence[Path],
    prompt: str,
    *,
    videos: Sequence[Clip] = (),
    num_frames: int | None = None,
    max_new_tokens: int = 0,
    text_bits: TextBits = None,
    mesh: str | None = None,
) -> tuple[Model, str, Inputs]:
    """The model, the whole prompt, and the inputs; everything that can be is checked first."""
    check_before_loading(
        source,
        images,
        [prompt],
        per_prompt=len(images),
        clips=videos,
        max_new_tokens=max_new_tokens,
        text_bits=text_bits,
    )
    model = load_model(source, mesh=mesh)
    with stage("reading the prompt"):
        prompt = whole_prompt(model, prompt, num_images=len(images), num_videos=len(videos))
        inputs = models.prepare(
            model,
            images=list(images) or None,
            videos=list(videos) or None,
            num_frames=num_frames,
            prompts=prompt,
        )
    shape = inputs.prompt_shape
    check_room(
        model.config,
        visual=shape.visual,
        text=shape.text,
        max_new_tokens=max_new_tokens,
        text_bits=text_bits,
    )
    return model, prompt, inputs


def load_model(source: str, *, mesh: str | None = None, layers_apart: bool | None = None) -> Model:
    """The model, in bfloat16; says before how much memory its weights take, and how much is free.

    Arguments as those of `models.load`.

    Raises:
        MemoryError: they do not fit. Else as `models.load`.
    """
    free = free_memory()
    room = "" if free is None else f", {human_bytes(free)} free"
    with stage(f"loading {source}: {human_bytes(weight_bytes(source))} of weights{room}"):
        return models.load(source, mesh=mesh, layers_apart=layers_apart)


def check_before_loading(
    source: str,
    images: Sequence[Path],
    prompts: Sequence[str],
    *,
    clips: Sequence[Clip] = (),
    per_prompt: int,
    max_new_tokens: int,
    text_bits: TextBits = None,
) -> None:
    """Checks arguments before a model is loaded, which takes long.

    Args:
        source: folder of the model.
        images, prompts, clips: as given.
        per_prompt: images of one prompt.
        max_new_tokens: of the answer; 0 for none.
        text_bits: of text keys and values.

    Raises:
        FileNotFoundError: a file that is not there.
        NotImplementedError: a model that `models.load` refuses, or clips that it does not take.
        ValueError: an empty prompt, an unreadable image or clip, or no room for the answer.
    """
    for prompt in prompts:
        check_question(prompt)
    config = models.read_config(source)
    # Zero where it depends on the picture: what does not fit is refused once pictures are read.
    visual = per_prompt * (family_of(config.model_type).features_per_image(config) or 0)
    check_room(config, visual=visual, text=0, max_new_tokens=max_new_tokens, text_bits=text_bits)
    for path in images:
        read_picture(path)
    if clips:
        check_clips(config, clips)


def check_question(prompt: str) -> None:
    """Raises ValueError for a prompt without a word."""
    if not prompt.strip():
        raise ValueError(f"--prompt: expected a question, or a prompt with <image>, got {prompt!r}")


def say_if_uncalibrated(model: Model, quant: str, tables: object | None) -> None:
    """Says where a preset runs without tables of the model that it could have."""
    if tables is None and is_uncalibrated(model, quant):
        log.print(
            f"{quant}: this model has no tables, without which answers may be lost "
            "(docs/calibration.md); `vkq calibrate` makes them"
        )


def whole_prompt(model: Model, prompt: str, *, num_images: int = 1, num_videos: int = 0) -> str:
    """A bare question in the chat template; a prompt that places its pictures or clips as it is.

    `<image>`, `<video>` and the model's own tokens for them place one.
    """
    if processor_of(model).places_visuals(prompt, clips=num_videos > 0):
        return prompt
    return models.chat_prompt(model, prompt, num_images=num_images, num_videos=num_videos)


def check_clips(config: ModelConfig, clips: Sequence[Clip]) -> None:
    """Checks that a model takes clips, and that these can be read.

    Raises:
        FileNotFoundError, NotImplementedError, ValueError: as `models.prepare`.
    """
    check_takes_clips(config)
    for clip in clips:
        read_clip(clip, lambda total, fps: [0])


def check_visuals(
    images: Sequence[Path] | None,
    videos: Sequence[Path] | None,
    fps: float | None,
    num_frames: int | None,
) -> list[Clip]:
    """The clips that the options name.

    Raises:
        ValueError: neither pictures nor clips, or options of clips without one.
    """
    if not images and not videos:
        raise ValueError("--image, --video: expected a picture or a clip, got neither")
    for name, value in (("--video-fps", fps), ("--num-frames", num_frames)):
        if value is not None and not videos:
            raise ValueError(f"{name}={value}: expected a clip (--video) beside it, got none")
    return [Clip(path, fps) for path in videos or ()]


def describe_images(images: Sequence[Path]) -> str | list[str] | None:
    """The files in a record: one path, or the list of several; None without any."""
    if not images:
        return None
    return str(images[0]) if len(images) == 1 else [str(path) for path in images]
