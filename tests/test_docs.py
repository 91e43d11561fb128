"""What the pages say is true of the code: names exist, examples run, every logged metric is explained."""

import csv
import importlib
import math
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def blocks(page, language):
    text = (ROOT / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def resolve(name):
    """The object that a dotted name stands for; a field of a dataclass counts as an attribute."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            fields = getattr(found, "__dataclass_fields__", {})
            found = fields[part] if part in fields else getattr(found, part)
        return found
    raise AttributeError(name)


PAPER_MAP = (ROOT / "docs/paper-map.md").read_text()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:minivapo|scaled)\.[\w.]+)`", PAPER_MAP))))
def test_every_name_of_the_paper_map_exists(name):
    assert resolve(name) is not None


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
    import dataclasses

    from minivapo import vapo

    tiny = dataclasses.replace(
        vapo.PRESETS["vapo"],
        steps=1, batch_size=16, mini_batch=8, value_pretrain_steps=1, reward_model_steps=1, eval_problems=8,
        max_new_tokens=24,
    )  # fmt: skip
    monkeypatch.setitem(vapo.PRESETS, "vapo", tiny)
    printed = []
    exec(compile(blocks("README.md", "python")[0], "README.md", "exec"), {"print": lambda *x: printed.append(x)})
    assert printed[0][0] == 0
    assert 0 <= printed[-1][1] <= 1


def test_the_example_task_is_short_and_trains(tmp_path):
    import dataclasses

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


def test_the_metrics_page_is_what_its_one_home_says():
    from minivapo.show.metrics_info import markdown

    assert (ROOT / "docs/metrics.md").read_text() == markdown()


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
