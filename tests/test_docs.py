"""What the pages say is true of the code: names exist, examples run, every logged metric is explained."""

import csv
import dataclasses
import importlib
import importlib.util
import json
import math
import re
import statistics
import sys
from pathlib import Path

import pytest
import torch
from pages import blocks, patched
from toy_models import which_models

ROOT = Path(__file__).parents[1]


def resolve(name):
    """The object that a dotted name stands for; a field of a dataclass counts as an attribute."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError as error:
            if not error.name.startswith(("minivapo", "scaled")):  # a plain installation has no DeepSpeed
                if (module := ROOT.joinpath(*parts[:cut]).with_suffix(".py")).exists():
                    return module
                source = ROOT.joinpath(*parts[: cut - 1]).with_suffix(".py").read_text()
                assert re.search(rf"^((class|def) )?{parts[cut - 1]}\b", source, re.M), name
                return source
            continue
        for part in parts[cut:]:
            fields = getattr(found, "__dataclass_fields__", {})
            found = fields[part] if part in fields else getattr(found, part)
        return found
    raise AttributeError(name)


def exec_page(name, source):
    """What a page's Python leaves behind."""
    names = {}
    exec(compile(source, name, "exec"), names)
    return names


PAPER_MAP = (ROOT / "docs/paper-map.md").read_text()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:minivapo|scaled)\.[\w.]+)`", PAPER_MAP))))
def test_every_name_of_the_paper_map_exists(name):
    assert resolve(name) is not None


def test_the_paper_map_leads_to_code_test_and_notebook():
    sections = PAPER_MAP.split("\n## ")[1:]
    assert len(sections) == 15
    for section in sections:
        names = re.findall(r"`((?:minivapo|scaled)\.[\w.]+)`", section)
        links = re.findall(r'href="_modules/([\w/]+)\.html#(\w+)"', section)
        for module, name in links:  # the anchors of Sphinx's viewcode are the names that a module defines
            assert re.search(rf"^(class|def) {name}\b", (ROOT / f"{module}.py").read_text(), re.M), name
            assert any(f"{module.replace('/', '.')}.{name}" in known for known in names)
        (file, test), = re.findall(r"- Test: `([\w/.]+)::(\w+)`", section)  # fmt: skip
        assert f"def {test}(" in (ROOT / file).read_text()
        assert "$$" in section or section.startswith("The eleven rows")


def test_the_paper_map_cites_every_equation():
    for number in range(3, 11):
        spans = re.findall(r"eq\. (\d+)(?:[-→](\d+))?", PAPER_MAP)
        assert any(int(a) <= number <= int(b or a) for a, b in spans), number


def test_every_equation_is_cited_in_the_algorithm():
    source = (ROOT / "minivapo/vapo.py").read_text()
    for number in range(3, 11):
        spans = re.findall(r"eq\. (\d+)(?:[-→](\d+))?", source)
        assert any(int(a) <= number <= int(b or a) for a, b in spans), number


def test_the_readme_starts_with_two_one_line_commands():
    commands = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[:2]
    assert [c.count("\n") for c in commands] == [1, 1]
    assert "minivapo train" in commands[0]
    assert "check.py" in commands[1]


def test_the_readme_example_runs(monkeypatch):
    from minivapo import vapo

    tiny = dataclasses.replace(
        vapo.PRESETS["vapo"],
        steps=1, batch_size=16, mini_batch=8, value_pretrain_steps=1, reward_model_steps=1, eval_problems=8,
        max_new_tokens=24,
    )  # fmt: skip
    monkeypatch.setitem(vapo.PRESETS, "vapo", tiny)
    printed = []
    exec(compile(blocks("README.md", "python")[0], "README.md", "exec"), {"print": lambda *x: printed.append(x)})
    assert printed[0][0].startswith("step 0 | held-out accuracy ")
    assert printed[-1][0].startswith("step 1 | accuracy ")


def test_the_example_task_is_short_and_trains(tmp_path):
    from minivapo.local import LocalEngine
    from minivapo.tasks.base import make_base
    from minivapo.vapo import PRESETS, train

    source = blocks("docs/write-a-task.md", "python")[0]
    assert len(source.splitlines()) < 30
    names = {}
    exec(compile(source, "write-a-task.md", "exec"), names)
    task = names["Parity"]()
    test = {p.prompt for p in task.test_problems(20)}
    assert len(test) == 20
    assert not test & {p.prompt for p in task.train_problems(0, 200, seed=0)}
    base = make_base(task, tmp_path / "base", steps=3)
    config = dataclasses.replace(
        PRESETS["grpo"], steps=1, batch_size=16, mini_batch=8, eval_problems=8, max_new_tokens=4
    )
    assert [m["step"] for m in train(config, task, LocalEngine(base, config))] == [0, 1]


def test_every_link_of_readme_and_docs_leads_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), ROOT / "notebooks/index.md"]
    for page in pages:
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        for target in re.findall(r"\]\((?!https?:|#)([^)\s#]+)", prose):
            here = page.parent / target
            found = [here, here.with_suffix(".md"), here.with_suffix(".ipynb")]
            assert any(path.exists() for path in found), f"{page.name}: {target}"


@pytest.mark.once
def test_pages_made_from_code_or_data_are_up_to_date(monkeypatch):
    """`python docs/generate/write.py` writes them anew."""
    monkeypatch.syspath_prepend(ROOT / "docs/generate")
    made = importlib.import_module("write").pages()
    names = {path.name for path in made}
    assert {"configuration.md", "lambda.md", "metrics.md", "results.md", "README.md", "step.svg"} <= names
    stale = [path.name for path, text in made.items() if path.read_text() != text]
    assert stale == [], "run: python docs/generate/write.py"


FAMILIES = {
    "llama", "qwen2", "qwen3", "qwen3_moe", "qwen3_5_text", "qwen3_next", "gemma2", "gemma3_text", "phi3",
    "mistral", "mixtral", "olmo2", "olmo3", "smollm3", "granite", "granitemoehybrid", "gpt2", "gpt_neox",
    "falcon", "falcon_h1", "bloom", "opt", "mpt", "starcoder2", "cohere", "deepseek_v3", "lfm2", "mamba2",
}  # fmt: skip


def test_the_page_of_models_says_what_was_probed(tmp_path):
    """Each family on both engines: it works, or is refused with a sentence."""
    with (ROOT / "docs/results/models.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    which_models.write_page(rows, tmp_path / "models.md")
    assert (tmp_path / "models.md").read_text() == (ROOT / "docs/models.md").read_text()
    assert {row["model_type"] for row in rows} >= FAMILIES
    assert [row["family"] for row in rows] == list(which_models.ARCHITECTURES)
    for row in rows:
        assert all(row[engine] == "works" or row[engine].endswith(".") for engine in ("laptop", "cluster"))


def test_the_readme_tells_both_accountings():
    """With the responses of VAPO's critic and without them; the leads are those of the committed rows."""
    with (ROOT / "docs/results/sweeps/table1.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = ("vapo", "grpo", "dapo", "grpo, 66 rollouts", "dapo, 55 rollouts")
    mean = {n: 100 * statistics.fmean(float(row["score"]) for row in rows if row["arm"] == n) for n in names}
    row = r"critic's: ([\d,]+) \| `([\w, ]+)` \| ([\d,]+) \| ([+-][\d.]+) ±"
    said = re.findall(row, (ROOT / "README.md").read_text())
    assert [name for _, name, _, _ in said] == [*names[1:]]
    for ours, name, theirs, lead in said:
        assert mean["vapo"] - mean[name] == pytest.approx(float(lead), abs=0.051)
        equal = "rollouts" in name or name == "grpo"  # DAPO samples some groups again
        assert not equal or float(theirs.replace(",", "")) == pytest.approx(float(ours.replace(",", "")), rel=0.1)


def test_the_caption_of_the_explorer_says_what_it_shows():
    shown = json.loads((ROOT / "docs/results/explorer.json").read_text())
    text = " ".join((ROOT / "README.md").read_text().split())
    said = re.search(r"V falls from ([\d.]+) to ([\d.]+), after the wrong key it is ([\d.]+), .* `no` ([\d.]+)\.", text)
    error, values = shown["first_error"], shown["values"]
    assert [float(v) for v in said.groups()] == [round(v, 2) for v in values[error - 1 : error + 3]]
    assert shown["tokens"][error - 1 : error + 2] == ["hen", "onyx", "no"]
    assert f"from step {shown['step']}." in text
    assert not shown["correct"]


def test_the_page_of_speeds_says_what_the_files_say():
    text = " ".join((ROOT / "docs/speed.md").read_text().split())
    rows = json.loads((ROOT / "benchmarks/gae.json").read_text())["rows"]
    one = [row for row in rows if row["device"] == "cpu" and row["threads"] == 1]
    big, small = ([row for row in one if row["time"] == time] for time in (20480, 4096))
    loops = ("NeMo-RL", "OpenRLHF", "verl", "python loop")
    takes_one = ("slime (scalar)",)

    def others(part, names=None):
        return [
            row["times_ours"]
            for row in part
            if not row["name"].startswith("scaled")
            and row["name"] not in takes_one
            and (not names or row["name"] in names)
        ]

    ours = next(row["median_ms"] for row in big if row["name"] == "scaled.gae")
    assert f"{ours:.1f} ms: {min(others(big)):.1f} × faster" in text
    assert f"{min(others(big, loops)):.0f} to {max(others(big, loops)):.0f} ×" in text
    assert (
        f"{min(others(small)):.1f} × and {min(others(small, loops)):.0f} to {max(others(small, loops)):.0f} ×" in text
    )
    scalar = sorted(row["times_ours"] for row in one if row["name"] in takes_one)
    assert f"needs {scalar[0]:.1f} to {scalar[-1]:.1f} of our time" in text
    with (ROOT / "benchmarks/sampler.csv").open() as file:
        ratio = {row["length"]: row for row in csv.DictReader(file)}
    assert f"{float(ratio['natural']['ratio']):.1f} × the tokens per second" in text
    fixed = ratio["fixed"]
    assert f"{float(fixed['ratio']):.1f} × ({float(fixed['ratio_cpu']):.1f} × per CPU second)" in text
    with (ROOT / "benchmarks/grade_throughput.csv").open() as file:
        speed = {row["verifier"]: int(row["per_second"]) for row in csv.DictReader(file) if row["mix"] == "ordinary"}
    assert f"{speed['ours']:,} answers per second; math-verify alone {speed['math-verify']}" in text


def test_every_name_in_the_picture_of_a_step_exists(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs/generate")
    picture = importlib.import_module("architecture")
    for function, _, adds, uses in picture.STEPS:
        assert resolve(
            "minivapo.interfaces.Sampler.sync" if "." in function else f"minivapo.vapo.{function.split()[0]}"
        )
        assert all(resolve(f"minivapo.interfaces.{name}") for name in uses)
        fields = [name for name in adds.split(", ") if " " not in name]
        assert all(resolve(f"minivapo.interfaces.Rollout.{name}") for name in fields)
    for interface, *parts in picture.SIDES:
        assert resolve(f"minivapo.interfaces.{interface}")
        for name, _ in parts:  # by the source: DeepSpeed and vLLM need not be installed
            module, _, what = name.rpartition(".")
            path = ROOT / f"{module.replace('.', '/')}.py"
            assert (ROOT / name.replace(".", "/")).is_dir() or re.search(rf"(class|def) {what}\b", path.read_text())


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_the_names_of_a_page_exist(page):
    text = (ROOT / "docs" / page).read_text()
    names = re.findall(r"`((?:minivapo|scaled)(?:\.\w+)+)`", text)
    assert [name for name in names if not name.endswith((".yaml", ".toml")) and not resolve(name)] == []
    paths = re.findall(r"\b((?:minivapo|scaled|docs|tests|benchmarks|configs)/[\w/-]+\.(?:py|md|csv|yaml))\b", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.once
def test_the_example_of_a_loss_term_trains_alike_in_every_split(tmp_path, monkeypatch):
    from minivapo.local import LocalEngine
    from minivapo.tasks import BASES, make_task

    file = tmp_path / "vapo_near.py"
    file.write_text(patched((ROOT / "minivapo/vapo.py").read_text(), "docs/change.md"))
    specification = importlib.util.spec_from_file_location("vapo_near", file)
    near = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "vapo_near", near)
    specification.loader.exec_module(near)
    assert near.PRESETS["vapo-near"].near_coef == 0.1

    def run(**changes):
        config = dataclasses.replace(
            near.PRESETS["vapo-near"],
            steps=1, batch_size=16, mini_batch=8, value_pretrain_steps=1, reward_model_steps=1, eval_problems=8,
            max_new_tokens=24, **changes,
        )  # fmt: skip
        engine = LocalEngine(BASES / "chain", config)
        last = list(near.train(config, make_task("chain"), engine))[-1]
        return last, torch.cat([p.detach().flatten() for p in engine.actor.model.parameters()])

    (last, weights), (_, split), (_, without) = run(), run(micro_batch=3), run(near_coef=0.0)
    assert last["actor/loss_near"] > 0
    assert torch.allclose(weights, split, atol=1e-6)
    assert not torch.equal(weights, without)


def test_the_example_of_a_preset_is_one():
    mine = exec_page("docs/change.md", blocks("docs/change.md", "python")[0])["mine"]
    assert (mine.alpha, mine.clip_high) == (0.3, 0.4)


def test_the_log_says_what_the_first_sweep_found():
    """The sentence's three differences and intervals, computed anew from the committed rows."""
    with (ROOT / "docs/results/sweeps/token-loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores = {(row["axis"], row["arm"], row["seed"]): 100 * float(row["score"]) for row in rows}
    seeds = sorted({seed for _, _, seed in scores})
    assert len(seeds) == 10
    said = re.findall(r"\+(\d+\.\d) ± (\d\.\d)", (ROOT / "docs/log.md").read_text())
    for axis, (mean, half) in zip(("1", "4", "16"), said, strict=True):
        paired = [scores[axis, "token", seed] - scores[axis, "sample", seed] for seed in seeds]
        t = 2.262  # Student's t, 9 degrees of freedom, 95 %
        assert statistics.mean(paired) == pytest.approx(float(mean), abs=0.051)
        assert t * statistics.stdev(paired) / math.sqrt(len(paired)) == pytest.approx(float(half), abs=0.051)
