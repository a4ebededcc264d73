"""Commands to copy, which end the help of each command."""

from typer.core import TyperCommand, TyperGroup

__all__ = ["EXAMPLES", "add_examples"]

_PHOTO = '--model FOLDER --image photo.jpg --prompt "What is this?"'

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("vkq demo", "vkq demo --quant kivi-2bit --json"),
    "generate": (
        f"vkq generate {_PHOTO}",
        f"vkq generate {_PHOTO} --quant vkq-2bit/0=none",
        'vkq generate --model FOLDER --video frames --video-fps 2 --prompt "What happens?"',
    ),
    "chat": ("vkq chat --model tiny --image receipt.png", "vkq chat --model FOLDER --text-bits 8"),
    "inspect": (
        f"vkq inspect {_PHOTO} --out report",
        'vkq inspect --model FOLDER --video clip.mp4 --prompt "What happens?" --out report',
    ),
    "calibrate": (
        "vkq calibrate --model FOLDER --images photos --out FOLDER/vkq_tables.safetensors",
        "vkq calibrate --model tiny --quant vkq-1bit --out tables.safetensors",
    ),
    "calibrate-scores": (
        f"vkq calibrate-scores {_PHOTO} --out map.safetensors",
        f"vkq generate {_PHOTO} --score-map map.safetensors",
    ),
    "eval": (
        "vkq eval --quant vkq-1bit,kivi-2bit --samples 480 --out tiny.json",
        "vkq eval --model FOLDER --data docvqa=DocVQA --quant vkq-1bit --out docvqa.json",
        "vkq eval --model FOLDER --data jsonl=questions.jsonl --out own.json --resume",
    ),
    "bench kernel": (
        "vkq bench kernel --check",
        "vkq bench kernel --cases mha-32k --baselines xla",
    ),
    "bench throughput": (
        "vkq bench throughput --shape llava-1.5-7b --budget 30 --out speed.json",
        "vkq bench throughput --baseline auto,transformers --quant vkq-1bit:text8 --budget 5",
    ),
    "bench prefill": ("vkq bench prefill --shape internvl2.5-8b --out prefill.json",),
    "bench quantize": ("vkq bench quantize --shape internvl2.5-8b --out coding.json",),
    "bench scaling": (
        "vkq bench scaling --length 4096,16384 --batch 1,16 --out scaling.json",
        "vkq bench scaling --mesh data=1 --mesh model=2 --batch 64 --out mesh.json",
    ),
    "bench join": ("vkq bench join here.json there.json --out results/throughput.json",),
    "bench plot": ("vkq bench plot scaling.json",),
    "bench explain": ("vkq bench explain --shape qwen2.5-vl-7b --batch 16",),
}


def add_examples(name: str, command: TyperCommand | TyperGroup) -> None:
    """Ends the help of a command, or of each one of a group, with its examples.

    Args:
        name: how it is called after `vkq`, a key of EXAMPLES or the start of several.
        command: changed in place: its `epilog`.
    """
    if isinstance(command, TyperGroup):
        for part, below in command.commands.items():
            assert isinstance(below, TyperCommand)
            add_examples(f"{name} {part}", below)
        return
    command.epilog = "\n\n".join(("Examples:", *(f"    {line}" for line in EXAMPLES[name])))
