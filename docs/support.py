"""Makes the table of families: each compared with transformers, then answered from a 1-bit cache.

    uv run --group parity python docs/support.py

runs the parity tests of all families, which build tiny random checkpoints with transformers and
compare logits and greedy tokens; writes results/support.json, and README.md's table between its
markers. Arguments go to pytest, for instance the files to run: records of other families stay.
`--table` measures nothing and writes the table again, for instance after a family was added.
`tests/test_docs.py` holds the table to the file, and its families to those that load.
"""

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FILE = ROOT / "results" / "support.json"
README = ROOT / "README.md"
START, END = "<!-- families: docs/support.py -->", "<!-- /families -->"
HEAD = "| models | `model_type` | text decoders compared | video | logits differ by |"

NAMES = {
    "aya_vision": "Aya Vision",
    "cohere2_vision": "Command A Vision",
    "deepseek_vl": "DeepSeek-VL",
    "gemma3": "Gemma 3",
    "gemma4": "Gemma 4",
    "gemma4_unified": "Gemma 4 12B",
    "glm46v": "GLM-4.6V",
    "glm4v": "GLM-4.1V",
    "glm4v_moe": "GLM-4.5V",
    "glm_ocr": "GLM-OCR",
    "idefics3": "Idefics3",
    "internvl": "InternVL2.5, InternVL3, InternVL3.5",
    "lighton_ocr": "LightOnOCR",
    "llava": "LLaVA-1.5, Pixtral",
    "llava_next": "LLaVA-NeXT, Granite Vision",
    "llava_next_video": "LLaVA-NeXT-Video",
    "llava_onevision": "LLaVA-OneVision",
    "mistral3": "Mistral Small 3, Ministral 3",
    "mllama": "Llama 3.2 Vision",
    "paddleocr_vl": "PaddleOCR-VL",
    "paligemma": "PaliGemma, PaliGemma 2",
    "qianfan_ocr": "Qianfan-OCR",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen2_vl": "Qwen2-VL",
    "qwen3_5": "Qwen3.5",
    "qwen3_5_moe": "Qwen3.5 MoE",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_vl_moe": "Qwen3-VL MoE",
    "smolvlm": "SmolVLM, SmolVLM2",
    "vipllava": "ViP-LLaVA",
}
"""Names by which people know the models of a `model_type`, in transformers' format."""

# Families that share a row: descendants of LLaVA, and Gemma's versions.
_LLAVA_KIN = ("deepseek_vl", "llava_next", "llava_next_video", "llava_onevision", "vipllava")
_KIN = dict.fromkeys(_LLAVA_KIN, "llava kin")
_KIN |= dict.fromkeys(("gemma3", "gemma4"), "gemma")


def measure(arguments: list[str]) -> list[dict[str, Any]]:
    """The records that `tests/support/hf_parity.py` makes of each comparison."""
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "lines"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-m", "parity"]
        command += arguments or ["tests/models/families"]
        environment = os.environ | {"VKQ_SUPPORT_FILE": str(lines)}
        failed = subprocess.run(command, cwd=ROOT, env=environment).returncode
        if failed or not lines.exists():
            raise SystemExit("results/support.json stays: expected comparisons that all pass")
        return [json.loads(line) for line in lines.read_text().splitlines()]


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """By model_type: vision towers, decoders, clips, comparisons, the largest difference."""
    from models.families.registry import MODEL_TYPES

    found: dict[str, Any] = {}
    for name in MODEL_TYPES:
        own = [record for record in records if record["model_type"] == name]
        if own:
            found[name] = {
                "vision": sorted({record["vision"] for record in own}),
                "text": sorted({record["text"] for record in own}),
                "clips": any(record["clips"] for record in own),
                "comparisons": len(own),
                "largest_logit_difference": max(record["logit_error"] for record in own),
                "transformers": version("transformers"),
            }
    return found


def table(families: dict[str, Any]) -> list[str]:
    """README.md's rows, one for each folder of models/families but for those of `_KIN`."""
    from models.families.registry import MODEL_TYPES, family_folder

    rows: dict[str, list[str]] = {}
    for name in sorted(MODEL_TYPES):
        folder = family_folder(name)
        rows.setdefault(_KIN.get(folder, folder), []).append(name)
    lines = [HEAD, f"|{'---|' * 5}"]
    for names in rows.values():
        own = [families[name] for name in names if name in families]
        texts = sorted({_plain(text) for row in own for text in row["text"]})
        clips = [
            NAMES.get(name, name) for name in names if name in families and families[name]["clips"]
        ]
        shown = "yes" if own and len(clips) == len(names) else ", ".join(clips)
        worst = max((row["largest_logit_difference"] for row in own), default=None)
        missing = [f"`{name}`" for name in names if name not in families]
        if missing:
            texts.append(f"not measured: {', '.join(missing)}")
        called = ", ".join(NAMES.get(name, name) for name in names)
        cells = [called, ", ".join(f"`{name}`" for name in names), ", ".join(texts), shown]
        lines.append(f"| {' | '.join([*cells, '' if worst is None else f'{worst:.0e}'])} |")
    return lines


def _plain(model_type: str) -> str:
    """A tower's model_type without the words that say it is one."""
    for ending in ("_model", "_vision", "_text"):
        model_type = model_type.removesuffix(ending)
    return model_type


def in_readme(lines: list[str]) -> str:
    """README.md with these lines between its markers."""
    before, _, rest = README.read_text().partition(START)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"README.md has no {START} ... {END}")
    return "\n".join([before + START, *lines, END + after])


def main() -> None:
    """Measures, and writes both files; with `--table` README.md alone, from what was measured."""
    families = json.loads(FILE.read_text()) if FILE.is_file() else {}
    if sys.argv[1:] != ["--table"]:
        families |= summary(measure(sys.argv[1:]))
        FILE.write_text(json.dumps(families, indent=2, sort_keys=True) + "\n")
    README.write_text(in_readme(table(families)))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
