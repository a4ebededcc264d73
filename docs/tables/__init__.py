"""Tables that are made from the files under results/.

A page has one between `<!-- table: NAME -->` and `<!-- /table -->`; NAME is a function of this
package. `python -m docs.tables` writes all of them anew, and `tests/test_docs_figures.py` holds the
pages to them.
"""

from docs.tables.answers import (
    ablation_rows,
    answer_rows,
    four_plane_ablation_rows,
    gemma_judge_rows,
    kinds_rows,
    qwen_judge_rows,
    readme_answer_rows,
    scales_apart_rows,
    short_answer_rows,
    short_gemma_judge_rows,
    short_qwen_judge_rows,
    text_bed_ablation_rows,
    text_bed_plain_rows,
    text_bed_rows,
    whole_plan_rows,
)
from docs.tables.generation import prefill_rows, speed_rows, throughput_table
from docs.tables.goals import goal_rows
from docs.tables.kernels import (
    bias_kernel_rows,
    calibration_kernel_rows,
    dense_kernel_rows,
    dictionary_kernel_rows,
    goal_kernel_rows,
    level_kernel_rows,
    plan_rows,
    portable_rows,
    quantize_rows,
    sign_kernel_rows,
    text_kernel_rows,
)
from docs.tables.meshes import (
    expected_rows,
    mesh_profile_rows,
    mesh_rows,
    mixer_rows,
    one_gpu_rows,
)

__all__ = [
    "ablation_rows",
    "answer_rows",
    "bias_kernel_rows",
    "calibration_kernel_rows",
    "dense_kernel_rows",
    "dictionary_kernel_rows",
    "expected_rows",
    "four_plane_ablation_rows",
    "gemma_judge_rows",
    "goal_kernel_rows",
    "goal_rows",
    "kinds_rows",
    "level_kernel_rows",
    "mesh_profile_rows",
    "mesh_rows",
    "mixer_rows",
    "one_gpu_rows",
    "plan_rows",
    "portable_rows",
    "prefill_rows",
    "quantize_rows",
    "qwen_judge_rows",
    "readme_answer_rows",
    "scales_apart_rows",
    "short_answer_rows",
    "short_gemma_judge_rows",
    "short_qwen_judge_rows",
    "sign_kernel_rows",
    "speed_rows",
    "text_bed_ablation_rows",
    "text_bed_plain_rows",
    "text_bed_rows",
    "text_kernel_rows",
    "throughput_table",
    "whole_plan_rows",
]
