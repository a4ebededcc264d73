"""`vkq chat`: questions and answers about pictures, in a terminal or through a pipe."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

import models
import vkq_jax
from models import Clip, Inputs
from models.attached_tables import find_codes
from models.inputs.images import read_picture
from vkq_apps.conversation import CacheSize, Conversation
from vkq_apps.files.text_files import with_home
from vkq_apps.terminal.arguments import (
    JsonOption,
    MaxNewTokensOption,
    ModelOption,
    NumFramesOption,
    QuantizeAtOption,
    QuantOption,
    TablesOption,
    TextBitsOption,
    VideoFpsOption,
    VideoOption,
    check_before_loading,
    check_clips,
    load_model,
    say_if_uncalibrated,
)
from vkq_apps.terminal.codes_option import parse_codes
from vkq_apps.terminal.compiling import compiling_for
from vkq_apps.terminal.console import log, print_json, stage
from vkq_apps.terminal.draws import (
    SeedOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    check_draws,
    draw_options,
)
from vkq_apps.terminal.errors import describe
from vkq_apps.terminal.interrupts import first_interrupt_stops
from vkq_jax.byte_units import human_bytes
from vkq_jax.cache.text_bank import check_text_bits

__all__ = ["chat"]

HELP = (
    "/image FILE adds a picture to the next question, /video FILE a clip, /bytes says what the "
    "cache takes, /reset starts anew, /quit or Ctrl-D ends; Ctrl-C stops an answer"
)
STOPPING = "stopping this answer; Ctrl-C once more leaves"


def chat(
    model: ModelOption,
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Picture of the first question; repeat for several."),
    ] = None,
    video: VideoOption = None,
    video_fps: VideoFpsOption = None,
    num_frames: NumFramesOption = None,
    quant: QuantOption = "vkq-1bit",
    max_new_tokens: MaxNewTokensOption = 128,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = None,
    quantize_at: QuantizeAtOption = "prompt",
    tables: TablesOption = None,
    text_bits: TextBitsOption = None,
    json: JsonOption = False,
) -> None:
    """Answers question after question from one cache, whose pictures stay coded.

    Each line of standard input is a question, or a command: /image FILE adds a picture to the next
    question, /video FILE a clip, /bytes says what the cache takes, /reset starts anew, /quit or
    Ctrl-D ends. Ctrl-C stops an answer, and the conversation goes on from it; a second one leaves.
    A faulty line gets one line of error, and the conversation goes on. With --json each line gets
    one object.
    """
    codes = parse_codes(quant)
    given = None if tables is None else vkq_jax.load_tables(tables)
    draws = draw_options(check_draws(temperature, top_k, top_p, seed))
    pictures, clips = list(image or ()), [Clip(path, video_fps) for path in video or ()]
    bits = check_text_bits(text_bits)
    check_before_loading(
        model,
        pictures,
        [],
        per_prompt=len(pictures),
        max_new_tokens=max_new_tokens,
        text_bits=bits,
    )
    # The options of clips are for those of later lines, too.
    if clips or video_fps is not None or num_frames is not None:
        check_clips(models.read_config(model), clips)
    loaded = load_model(model)
    find_codes(loaded, codes, given)  # layers, heads and tables that the model does not have
    say_if_uncalibrated(loaded, quant, given)
    options = {
        **draws,
        "quant": codes,
        "quantize_at": quantize_at,
        "tables": given,
        "text_bits": bits,
    }
    conversation = Conversation(
        loaded, max_new_tokens=max_new_tokens, num_frames=num_frames, **options
    )
    talk = _Talk(conversation, pictures, clips, video_fps, json)
    if not json:
        log.print(HELP, soft_wrap=True)
    for line in _lines():
        if line and not talk.answer(line):
            break


class _Talk:
    """Answers lines; holds the pictures and clips that wait for the next question."""

    def __init__(
        self,
        conversation: Conversation,
        pictures: list[Path],
        clips: list[Clip],
        fps: float | None,
        json: bool,
    ):
        self._conversation, self._fps, self._json = conversation, fps, json
        self._waiting, self._clips = pictures, clips

    def answer(self, line: str) -> bool:
        """Answers one line; returns whether the conversation goes on."""
        name, _, rest = line.partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/image": self._add_picture,
            "/video": self._add_clip,
            "/bytes": self._show_bytes,
            "/reset": self._reset,
            "/help": lambda rest: self._say(HELP, {"help": HELP}),
        }
        if name == "/quit":
            return False
        try:
            if name in commands:
                commands[name](rest.strip())
            elif name.startswith("/"):
                raise ValueError(f"{name}: no such command; {HELP}")
            else:
                self._ask(line)
        except BrokenPipeError:
            raise
        except Exception as error:  # whatever it was, the conversation is not lost
            text = describe(error)
            if self._json:
                print_json({"error": text})
            log.print(f"vkq: error: {text}", soft_wrap=True)
        return True

    def _ask(self, question: str) -> None:
        answer = _Printed(shown=not self._json)
        with ExitStack() as stack:
            stop = stack.enter_context(first_interrupt_stops(STOPPING))
            reading = stack.enter_context(ExitStack())
            prompts: list[Inputs] = []
            compiling = None if self._json else lambda: compiling_for(next(iter(prompts), None))
            reading.enter_context(stage("reading", compiling))

            def show(text: str) -> None:
                reading.close()  # the spinner's line is the answer's now
                answer.grow(text)

            pictures = [read_picture(path) for path in self._waiting]
            turn = self._conversation.ask(
                question,
                pictures,
                self._clips,
                on_prompt=prompts.append,
                on_text=show,
                stop=stop.is_set,
            )
        names = {
            "images": [str(path) for path in self._waiting],
            "videos": [str(clip.frames) for clip in self._clips],
        }
        self._waiting, self._clips = [], []
        cut = "" if turn.finished else " [stopped]" if turn.stopped else " [cut]"
        answer.end(turn.answer, cut)
        if self._json:
            record = {"question": question, **names, **turn._asdict()}
            print_json({**record, "cache": self._conversation.size._asdict()})

    def _add_picture(self, name: str) -> None:
        if not name:
            raise ValueError("/image: expected the name of a picture file behind it")
        path = with_home(name)
        read_picture(path)
        self._waiting.append(path)
        self._say_waiting("picture", {"image": name}, len(self._waiting))

    def _add_clip(self, name: str) -> None:
        if not name:
            raise ValueError("/video: expected the name of a clip's file or folder behind it")
        clip = Clip(with_home(name), self._fps)
        check_clips(self._conversation.model.config, [clip])
        self._clips.append(clip)
        self._say_waiting("clip", {"video": name}, len(self._clips))

    def _say_waiting(self, kind: str, record: dict[str, Any], count: int) -> None:
        text = f"{count} {kind}{'s' if count > 1 else ''} for the next question"
        self._say(text, record | {"waiting": count})

    def _show_bytes(self, rest: str) -> None:
        size = self._conversation.size
        self._say(_sentence(size), {"cache": size._asdict()})

    def _reset(self, rest: str) -> None:
        self._conversation.reset()
        self._waiting, self._clips = [], []
        self._say("a new conversation", {"reset": True})

    def _say(self, text: str, record: dict[str, Any]) -> None:
        if self._json:
            print_json(record)
        else:
            log.print(text, soft_wrap=True)


class _Printed:
    """An answer that grows on stdout; letters that are not whole yet wait."""

    def __init__(self, *, shown: bool):
        self._shown, self._printed = shown, ""

    def grow(self, text: str) -> None:
        text = text.rstrip("\N{REPLACEMENT CHARACTER}")
        if self._shown and text.startswith(self._printed):
            print(text[len(self._printed) :], end="", flush=True)
            self._printed = text

    def end(self, text: str, mark: str) -> None:
        """Prints what is left of the answer, and the mark of one that did not end by itself."""
        if not self._shown:
            return
        if not text.startswith(self._printed):  # the tokenizer changed its mind
            print()
            self._printed = ""
        print(text[len(self._printed) :] + mark, flush=True)


def _sentence(size: CacheSize) -> str:
    return (
        f"{size.visual_tokens} visual tokens in {human_bytes(size.visual_kv_bytes)} "
        f"({human_bytes(size.visual_kv_bytes_full_precision)} at full precision), "
        f"{size.text_tokens} text tokens in a bank of {human_bytes(size.text_kv_bytes)}"
    )


def _lines() -> Iterator[str]:
    """Lines of standard input without spaces around them, edited where a person types."""
    stdin = sys.stdin
    if stdin is None:
        raise ValueError("standard input is closed: expected questions, one a line")
    if not stdin.isatty():
        if hasattr(stdin, "reconfigure"):
            stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
        for line in stdin:
            yield line.strip()
        return
    import readline  # noqa: F401  # `input` then edits lines and remembers them

    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            print()
            return
