"""Tables and figures in README.md and docs/ are those of the files under results/."""

import json
import re
import runpy

import pytest

from docs import tables
from docs.tables.pages import DOCS, PAGES, with_tables
from docs.tables.results import read


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_are_those_of_the_result_files(page):
    """`python -m docs.tables` would change nothing, and each table has rows of one width."""
    text = page.read_text()
    assert with_tables(text) == text
    marks = re.findall(r"<!-- (table: \w+|/table) -->", text)
    assert [mark.startswith("table") for mark in marks] == [True, False] * (len(marks) // 2)
    for name in (mark.removeprefix("table: ") for mark in marks[::2]):
        head, line, *rows = getattr(tables, name)()
        assert rows, name
        assert {row.count("|") for row in (line, *rows)} == {head.count("|")}, name


def test_every_table_stands_in_a_page():
    text = "".join(page.read_text() for page in PAGES)
    assert [name for name in tables.__all__ if f"<!-- table: {name} -->" not in text] == []


def test_figures_in_the_text_of_readme_are_those_of_the_result_files():
    readme = " ".join((DOCS.parent / "README.md").read_text().split())
    answers, throughput = read("answers.json"), read("throughput.json")
    gains = [
        row["ratio_to_bf16_at_equal_batch"]
        for row in throughput["rows"]
        if "ratio_to_bf16_at_equal_batch" in row
    ]
    assert f"decodes {min(gains):.2f} to {max(gains):.2f} times faster" in readme
    full, plain, tables = read("prefill.json")["rows"]
    (device, wall), (plain_device, plain_wall) = (
        [f"{row[clock] / full[clock]:.2f}" for clock in ("milliseconds", "wall_milliseconds")]
        for row in (tables, plain)
    )
    assert f"takes {device} times as long as one in 16 bits by the device's clock and {wall}" in (
        readme
    )
    assert f"without tables {plain_device} and {plain_wall}" in readme
    saved = answers["presets"]["vkq-1bit"]["visual_kv_reduction"]
    assert f"visual_reduction # {saved:.3f} of the visual bytes saved" in readme
    assert f"{100 * saved:.0f} % of the visual cache is saved" in readme
    assert f"[{answers['presets']['vkq-1bit']['tasks']['all']['lost']:.1f} points]" in readme
    assert f"answers {answers['samples']:,} questions" in readme
    bits = answers["presets"]["vkq-1bit:plain"]["bits_per_element"]["mean"]
    assert f"in about {bits:.1f} bits per number" in readme
    judge = read("judge_gemma.json")["presets"]

    def lost(name: str) -> str:
        whole = judge[name]["tasks"]["all"]
        low, high = whole["lost_interval"]
        return f"{whole['lost']:.1f}{{}} [{low:.1f}, {high:.1f}]"

    bits = {name: row["bits_per_element"]["mean"] for name, row in judge.items()}
    judges = [
        f"{read(file)['presets']['vkq-1bit']['tasks']['all']['lost']:.1f}"
        for file in ("judge_gemma.json", "judge_qwen.json")
    ]
    assert f"two with pretrained text towers {' and '.join(judges)}." in readme
    first = lost("vkq-1bit").format(" points")
    assert f"`vkq-1bit` loses {first} at {bits['vkq-1bit']:.2f} bits" in readme
    second = lost("kivi-2bit").format("")
    assert f"`kivi-2bit` {second} at {bits['kivi-2bit']:.2f}" in readme
    assert f"`vkq-1bit:plain` {lost('vkq-1bit:plain').format('')}" in readme
    assert f"({judge['vkq-1bit']['tasks']['all']['samples']:,} questions)" in readme


def test_figures_in_the_text_of_the_answers_are_those_of_their_file():
    rows = read("answers.json")["presets"]
    lost = {name: f"{row['tasks']['all']['lost']:.1f}" for name, row in rows.items()}
    page, choosing = (
        " ".join((DOCS / name).read_text().split())
        for name in ("benchmarks.md", "choosing_codes.md")
    )
    with_tables, plain = lost["vkq-half"], lost["vkq-half:plain"]
    assert f"without tables `vkq-half` loses {plain} points, with them {with_tables}." in page
    assert f"tokens** at the same bytes loses {lost['keep-7%']} points (`keep-7%`)" in page
    assert f"{with_tables} points on the embedded model with tables and {plain} without" in choosing


def test_figures_in_the_text_of_the_ablation_are_those_of_its_file():
    rows = read("ablation.json")["presets"]
    page = " ".join((DOCS / "benchmarks.md").read_text().split())

    def figures(name):
        return rows[name]["tasks"]["all"]

    def less(plan, part):
        return round(figures(f"{plan}: {part}")["kl"] / figures(plan)["kl"])

    half, one, two = "vkq-half, plan 0", "vkq-1bit, plan 1", "vkq-2bit, plan 1"
    lost = [round(figures(f"{half}: {x}")["lost"]) for x in ("one class of tokens", "no codebook")]
    assert f"without them `vkq-half` loses {lost[0]} and {lost[1]} points" in page
    gains = [less(plan, "no gains") for plan in (one, two)]
    assert f"gains divide the KL by {gains[0]} and {gains[1]}" in page
    assert f"the weights of tokens by {less(two, 'tokens not weighted')}" in page
    kinds = read("kinds_apart_four_planes.json")["presets"]["vkq-1bit, plan 3"]["tasks"]["all"]
    first = read("kinds_apart.json")["presets"]["vkq-1bit, plan 0"]["tasks"]["all"]["kl"]
    assert f"it loses {kinds['lost']:.1f} points, at {kinds['kl'] / first:.0f} times the KL" in page
    own = read("answers.json")["presets"]["vkq-1bit"]["tasks"]["all"]["lost"]
    limits = " ".join((DOCS / "limits.md").read_text().split())
    assert f"loses {kinds['lost']:.1f} points with `vkq-1bit`" in limits
    assert f"of its own tables, {own:.1f} on those that they have seen" in limits
    apart = [
        read("scales_apart.json")["presets"][name]["tasks"]["all"]
        for name in (half, f"{half}: scales of least squared error")
    ]
    assert apart[0]["kl_interval"][1] < apart[1]["kl_interval"][0], (
        "the page says that these differ"
    )
    assert f"pictures is {apart[1]['kl'] / apart[0]['kl']:.0f} times as large" in page
    four = read("ablation_four_planes.json")["presets"]
    bare = four["vkq-1bit, plan 3: no codebook"]["tasks"]["all"]["lost"]
    assert f"{bare:.1f} points are lost without it in `vkq-1bit`" in page
    for name, row in four.items():
        whole = four[name.partition(": ")[0]]["tasks"]["all"]["kl"]
        assert row["tasks"]["all"]["kl"] >= whole, "the page says that each part lowers the KL"
    for part in ("Hadamard planes", "scales of least squared error"):
        assert figures(f"{half}: {part}")["kl"] <= figures(half)["kl"]
    plain = "vkq-1bit without tables"
    one = figures(f"{plain}: one class of tokens")["kl"] / figures(plain)["kl"]
    assert f"they divide the KL by {one:.0f}" in page
    assert figures(f"{plain}: channels in one unit")["kl"] < figures(plain)["kl"]


def test_figures_in_the_text_of_the_text_bed_are_those_of_its_files():
    rows = read("text_bed_ablation.json")["presets"]
    page = " ".join((DOCS / "benchmarks.md").read_text().split())
    half, one, scales = "vkq-half, plan 0", "vkq-1bit, plan 0", "scales of least squared error"
    planes = rows[f"{half}: Hadamard planes"]
    assert planes["more_interval"][0] > 0, "the page says that learned dictionaries help"
    assert f"add {planes['more']:.2f} to the KL of `vkq-half`" in page
    assert all(rows[f"{plan}: {scales}"]["more_interval"][1] < 0 for plan in (half, one))
    fallen = rows[one]["kl"], rows[f"{one}: {scales}"]["kl"]
    assert f"falls from {fallen[0]:.2f} to {fallen[1]:.2f}" in page
    chosen = read("text_bed.json")["presets"]["vkq-1bit"]
    assert f"takes plan {chosen['plan']} here, which has {chosen['kl']:.2f}" in page
    plain = read("text_bed_plain.json")["presets"]
    whole, alike = (
        plain[f"vkq-1bit without tables{x}"]["kl"] for x in ("", ": channels in one unit")
    )
    assert f"Without units the KL is {alike:.2f} in place of {whole:.2f}" in page
    kl = read("answers.json")["presets"]["vkq-1bit:plain"]["tasks"]["all"]["kl"]
    assert f"with a KL of {kl:.4f}, 0.0013 before" in page
    bed = read("text_bed.json")["presets"]["vkq-1bit, no tables"]["kl"]
    assert f"took the KL from 2.49 to {bed:.2f}" in page


def test_figures_in_the_text_of_the_judge_are_those_of_its_log():
    text = (DOCS.parent / "results/judge_training.jsonl").read_text()
    log = [json.loads(line) for line in text.splitlines()]
    page = " ".join((DOCS / "benchmarks.md").read_text().split())
    steps = log[-1]["step"]
    assert f"{round(steps * 64, -4):,} pictures in {steps:,} steps of 64" in page
    losses = {entry["step"]: entry["loss"] for entry in log if entry["event"] == "steps"}
    assert f"from {losses[400]:.2f} to {losses[800]:.2f} between steps 400 and 800" in page
    assert f"ended at {losses[steps]:.2f}" in page


def test_figures_in_the_text_of_the_judge_trained_further_are_those_of_its_log():
    text = (DOCS.parent / "results/judge_training_further.jsonl").read_text()
    log = [json.loads(line) for line in text.splitlines()]
    *_, exact = (entry["exact"] for entry in log if entry["event"] == "evaluation")
    percent = {task: f"{100 * share:.0f}" for task, share in exact.items()}
    page = " ".join((DOCS / "benchmarks.md").read_text().split())
    assert f"The third piece, {log[-1]['step']:,} steps" in page
    assert (
        f"fields of documents in {percent['document_field']} %, "
        f"captions in {percent['caption']} %, "
        f"single lines in {percent['read_line']}-{percent['read_one']} % and all lines together in "
        f"{percent['read_lines']} %"
    ) in page
    missed = [round(90 - 100 * exact[x]) for x in ("document_field", "read_one", "read_line")]
    by = "missed by {} points for fields, {} for pictures of one line and {} for a line among"
    assert by.format(*missed) in page


def test_figures_in_the_text_of_the_judge_with_key_biases_are_those_of_its_files():
    record = read("judge_qwen.json")
    rows = {name: row["tasks"]["all"] for name, row in record["presets"].items()}
    benchmarks, limits, readme = (
        " ".join(path.read_text().split())
        for path in (DOCS / "benchmarks.md", DOCS / "limits.md", DOCS.parent / "README.md")
    )

    def lost(name: str, form: str) -> str:
        return form.format(rows[name]["lost"], *rows[name]["lost_interval"])

    points = "{:.2f} ({:.2f} to {:.2f})"
    bits = {name: row["bits_per_element"]["mean"] for name, row in record["presets"].items()}
    ours, kivi = (lost(name, points) for name in ("vkq-1bit", "kivi-2bit"))
    times = rows["kivi-2bit"]["kl"] / rows["vkq-1bit"]["kl"]
    assert f"`vkq-1bit` loses {ours} points at {bits['vkq-1bit']:.2f} bits, where 0.5" in benchmarks
    assert f"KIVI loses {kivi} with 3 bits, at {times:.1f} times the KL" in benchmarks
    plain, half = (lost(name, points) for name in ("vkq-1bit:plain", "vkq-half"))
    assert f"Without tables `vkq-1bit` loses {plain} points, where 2 is the goal" in benchmarks
    assert f"`vkq-half` loses {half}, where 1 is the goal" in benchmarks
    names = ("vkq-1bit", "kivi-2bit", "vkq-1bit:plain")
    ours, kivi, plain = (lost(name, "{:.1f} [{:.1f}, {:.1f}]") for name in names)
    assert (
        f"`vkq-1bit` loses {ours} at {bits['vkq-1bit']:.2f} bits, `kivi-2bit` {kivi} at "
        f"{bits['kivi-2bit']:.2f} and `vkq-1bit:plain` {plain}."
    ) in readme
    ours, plain = (f"{rows[name]['lost']:.1f}" for name in ("vkq-1bit", "vkq-1bit:plain"))
    assert f"judge's and {ours} on the Qwen tower" in limits
    assert f"without tables it loses {plain} points on the Qwen tower" in limits
    first, second = (
        [json.loads(line) for line in (DOCS.parent / f"results/{name}").read_text().splitlines()]
        for name in ("judge_qwen_training.jsonl", "judge_qwen_training_further.jsonl")
    )
    *_, exact = (entry["exact"] for entry in second if entry["event"] == "evaluation")
    percent = {task: f"{100 * share:.0f}" for task, share in exact.items()}
    assert (
        f"fields of documents in {percent['document_field']} %, captions in {percent['caption']} % "
        f"and single lines in {percent['read_line']}-{percent['read_one']} %"
    ) in benchmarks
    for log in (first, second):
        seconds, steps = log[-1]["seconds"], log[-1]["step"]
        assert f"for {seconds:.0f} seconds with {steps:,} steps" in benchmarks


def test_figures_in_the_text_of_the_judge_are_those_of_its_file():
    record = read("judge_gemma.json")
    rows = {name: row["tasks"] for name, row in record["presets"].items()}
    page = " ".join((DOCS / "benchmarks.md").read_text().split())

    def lost(name):
        low, high = rows[name]["all"]["lost_interval"]
        return f"{rows[name]['all']['lost']:.2f} ({low:.2f} to {high:.2f})"

    own, kivi = rows["vkq-1bit"], rows["kivi-2bit"]
    bits = record["presets"]["vkq-1bit"]["bits_per_element"]["mean"]
    assert f"then the judge was asked {own['all']['samples']:,} questions" in page.lower()
    assert f"`vkq-1bit` loses {lost('vkq-1bit')} points at {bits:.2f} bits" in page
    low, high = own["all"]["lost_interval"]
    assert low < 0.5 < own["all"]["lost"] < high, "the page says that its goal is in the interval"
    times = kivi["all"]["kl"] / own["all"]["kl"]
    assert f"loses {lost('kivi-2bit')} at {times:.1f} times the KL" in page
    assert f"Without tables `vkq-1bit` loses {lost('vkq-1bit:plain')}" in page
    worst = sorted(rows["vkq-1bit:plain"].items(), key=lambda row: -row[1]["lost"])[:2]
    assert {kind for kind, _ in worst} == {"text", "table"}, "the page names these"
    choosing, limits = (
        " ".join((DOCS / page).read_text().split()) for page in ("choosing_codes.md", "limits.md")
    )
    with_tables = f"{own['all']['lost']:.1f}"
    bed = read("text_bed.json")["presets"]
    kl, plain_kl = (bed[name]["kl"] for name in ("vkq-1bit", "vkq-1bit, no tables"))
    assert f"KL of `vkq-1bit` is {kl:.2f} with them and {plain_kl:.2f} without" in choosing
    half = rows["vkq-half"]["all"]["lost"]
    qwen_half = read("judge_qwen.json")["presets"]["vkq-half"]["tasks"]["all"]["lost"]
    assert f"{half:.1f} and {qwen_half:.1f} on two judges" in choosing
    assert f"points of the embedded model's answers, {with_tables} of the judge's" in limits
    assert f"(KL {plain_kl:.2f} and {kl:.2f}," in limits


def test_the_fit_of_decode_steps_is_that_of_the_script():
    script = runpy.run_path(str(DOCS / "scaling_out.py"))
    assert script["fit_line"]() in " ".join((DOCS / "scaling_benchmarks.md").read_text().split())


def test_figures_in_the_text_of_the_kernels_are_those_of_their_files():
    files = ("kernel.json", "kernel_tables.json")
    rows = {row["case"]: row for file in files for row in read(file)["rows"]}
    limits, kernels = (
        " ".join((DOCS / name).read_text().split())
        for name in ("limits.md", "kernel_benchmarks.md")
    )

    def speeds(*cases: str) -> str:
        ratios = [rows[f"gqa7-8k-{case}"]["ratio_to_cudnn"] for case in cases]
        return f"{min(ratios):.1f} to {max(ratios):.1f} times"

    assert f"{speeds('vkq-half-tables', 'vkq-2bit-tables')} its speed at 7 queries" in limits
    assert f"{speeds('signs8-bias', 'vkq-1bit-bias')} with M-RoPE" in limits
    assert f"{speeds('signs8-bias-line', 'vkq-1bit-bias-line')} with positions on one" in limits

    def biased(codes: str) -> tuple[str, str]:
        before, after = (rows[f"gqa7-8k-{codes}{x}"]["microseconds"] for x in ("", "-bias"))
        return f"{after - before:.0f}", f"{after / before:.1f} times"

    (signs, slower), (ours, ours_slower) = biased("signs8"), biased("vkq-1bit")
    assert f"costs {signs} microseconds (`signs8`: {slower} the time without)" in kernels
    assert f"and {ours} (`vkq-1bit`: {ours_slower};" in kernels
    calibrated = [
        100 * (rows[f"{case}-calibrated"]["microseconds"] / rows[case]["microseconds"] - 1)
        for case in ("mha-32k", "mha-2304", "gqa4-32k")
    ]
    assert calibrated[0] < 0, "the page says that it may cost nothing"
    assert f"costs one query nothing to {calibrated[1]:.0f} %" in kernels
    assert f"take {calibrated[2]:.0f} % longer" in kernels
