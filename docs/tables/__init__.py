"""Tables that are made from the files under results/.

`docs/hooks.py` puts them into the pages of the site that have `<!-- table: NAME -->`. README.md and
kernel_benchmarks.md are read without the site: `python -m docs.tables` prints their tables, to be
pasted, and `tests/test_docs.py` holds both pages to them.
"""

from docs.tables.answers import (
    ablation_rows,
    answer_rows,
    judge_rows,
    kinds_rows,
    readme_answer_rows,
    short_answer_rows,
    short_judge_rows,
    text_bed_ablation_rows,
    text_bed_plain_rows,
    text_bed_rows,
)
from docs.tables.generation import prefill_rows, speed_rows, throughput_table
from docs.tables.goals import goal_rows
from docs.tables.kernels import KERNEL_TABLES, kernel_goal_table, quantize_rows
from docs.tables.meshes import mesh_profile_rows, mesh_rows, mixer_rows, one_gpu_rows

__all__ = [
    "KERNEL_TABLES",
    "ablation_rows",
    "answer_rows",
    "goal_rows",
    "judge_rows",
    "kernel_goal_table",
    "kinds_rows",
    "mesh_profile_rows",
    "mesh_rows",
    "mixer_rows",
    "one_gpu_rows",
    "prefill_rows",
    "quantize_rows",
    "readme_answer_rows",
    "short_answer_rows",
    "short_judge_rows",
    "speed_rows",
    "text_bed_ablation_rows",
    "text_bed_plain_rows",
    "text_bed_rows",
    "throughput_table",
]
