"""The report: what it reads, how it compares runs, and what a real browser makes of the page.

One long file, since all of it looks at one report, which is made once.
"""

import base64
import gzip
import html
import json
import math
import random
import re
import unicodedata
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from browser import PATIENCE

from minivapo.interfaces import UserError
from minivapo.runs import evaluation
from minivapo.show import report, run_files
from minivapo.show.metrics_info import GROUPS, HEADLINES, METRICS, explain, markdown
from minivapo.vapo import PRESETS, gae, length_adaptive_lambda

pytestmark = pytest.mark.once

# ---------------------------------------------------------------------------------------------------------
# A run folder with every feature of the format
# ---------------------------------------------------------------------------------------------------------


def make_sample(rng, step, length, correct, *, critic=True, first_error=None, gamma=1.0, lam=None, tokens=None):
    """One line of samples.jsonl; advantages are those of minivapo.vapo.gae."""
    tokens = tokens or [rng.choice(["A", "5", "hm", "so", "twist", "="]) for _ in range(length)]
    length = len(tokens)
    values = [round(rng.uniform(0, 1), 6) for _ in tokens]
    rewards = [0.0] * (length - 1) + [float(correct)]
    lam = float(length_adaptive_lambda(torch.tensor([length]), 0.05)) if lam is None else lam
    row = torch.tensor([rewards], dtype=torch.float64), torch.tensor([values], dtype=torch.float64)
    advantages = gae(*row, torch.ones(1, length), gamma, lam)[0].tolist() if critic else [0.5] * length
    old = [-rng.expovariate(2) for _ in tokens]
    return {
        "step": step, "prompt": "4 A inc B twist ?", "answer": "5", "id": f"p{step}", "correct": correct,
        "terminated": True, "tokens": tokens, "token_ids": list(range(length)),
        "logprobs": [x + rng.gauss(0, 1e-6) for x in old], "old_logprobs": old,
        "new_logprobs": [x + rng.gauss(0, 0.05) for x in old],
        "entropy": [rng.uniform(0, 2) for _ in tokens], "values": values if critic else None,
        "true_values": [rng.uniform(0, 1) for _ in tokens],
        "advantages": advantages, "returns": [float(correct)] * length if critic else None, "rewards": rewards,
        "lam": lam if critic else None, "gamma": gamma, "first_error": first_error,
    }  # fmt: skip


def make_run(folder, preset="vapo", seed=0, steps=8, samples=None, **fields):
    """Writes a run folder like those of `minivapo train`, with made-up numbers."""
    rng = random.Random(f"{preset}{seed}")
    config = replace(PRESETS[preset], seed=seed, steps=steps, reward_model_steps=2, value_pretrain_steps=3, **fields)
    critic = config.advantage == "gae"
    folder.mkdir(parents=True)
    meta = {"preset": preset, "task": "chain", "task_options": {}, "model": "base", "critic": None}
    meta |= {"config": asdict(config), "commit": "0123456789abcdef", "versions": {"python": "3.11"}}
    (folder / "config.json").write_text(json.dumps(meta))
    names = [n for n in METRICS if not n.startswith(("eval", "pretrain", "value/", "step")) and "*" not in n]
    values = ["value/mean", "value/explained_variance", *(f"value/explained_variance_q{i}" for i in "1234")]
    evaluation = {f"eval/{n}": 0.25 for n in ("accuracy", "length", "truncated", "verifier_errors")}
    lines = [{"step": 0, **evaluation, "time/cpu_seconds": 1.0}]
    if critic:
        for i in range(1, 6):
            extra = {"pretrain/reward_model_loss": 0.1} if i <= 2 else {"pretrain/value_loss": 0.1}
            extra |= {n: rng.random() for n in values[1:]} if i > 2 else {}
            lines.append({"step": 0, "pretrain/rollout": i, **extra, "time/cpu_seconds": 1.0 + i})
    for step in range(1, steps + 1):
        line = {"step": step} | {n: rng.random() for n in names} | {"samples": step * 256}
        line |= {n: rng.random() for n in values} if critic else {}
        line |= {"reward/accuracy": 0.2 + 0.5 * step / steps + rng.gauss(0, 0.02), "time/cpu_seconds": 10.0 * step}
        line |= evaluation | {"eval/accuracy": 0.7 + 0.01 * seed} if step == steps else {}
        lines.append(line)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    if samples is None:
        samples = [
            make_sample(rng, s, n, ok, critic=critic, first_error=None if ok else n // 3, gamma=config.gamma)
            for s in range(1, steps + 1)
            for n, ok in ((7, True), (60, False))
        ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(x) + "\n" for x in samples))
    write_people_files(folder, "A small program.", ["4 A inc ?", "5", "A hm 5 = 5"], steps)
    return folder


def write_people_files(folder, about, texts, steps):
    """task.json and held_out.jsonl of a run: what the task is, and one problem before and after."""
    prompt, answer, response = texts
    example = {"prompt": prompt, "answer": answer, "response": response}
    (folder / "task.json").write_text(json.dumps({"name": "chain", "about": about, **example}))
    rows = [{**example, "step": s, "id": "x", "correct": s > 0, "terminated": True, "length": 5} for s in (0, steps)]
    (folder / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def told(runs):
    """What a report of these run folders says."""
    return report.report_data(report.read_runs(runs))


def data_of(page):
    """The data embedded in a report."""
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert text
    return json.loads(text[1])


# ---------------------------------------------------------------------------------------------------------
# What every metric means
# ---------------------------------------------------------------------------------------------------------


def test_every_metric_of_the_sources_is_explained():
    """Names are collected from the sources here; a test of a real run checks those it logs."""
    package = Path(report.__file__).parents[1]
    names = ("vapo.py", "measure.py", "runs/training.py")
    source = "".join((package / name).read_text() for name in names)
    groups = "|".join(GROUPS)
    names = set(re.findall(rf'[^f]"((?:{groups})/[a-z_0-9]+)"', source))
    assert {"reward/accuracy", "value/explained_variance", "time/cpu_seconds"} <= names
    assert [n for n in names if explain(n) is None] == []


def test_metric_explanations_are_complete_and_make_a_page():
    for name, info in METRICS.items():
        assert info.title and info.meaning.endswith("."), name
    assert {name.partition("/")[0] for name in METRICS} == GROUPS.keys() | {"step", "samples"}
    assert all(explain(name) for name in HEADLINES)
    assert "third" in explain("value/explained_variance_q3").meaning
    assert explain("value/explained_variance_q9") is None and explain("no/such") is None
    page = markdown()
    assert all(f"`{name}`" in page for name in METRICS) and "{}" not in page


# ---------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------


def test_half_written_last_line_is_left_out_and_said(tmp_path):
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "reward/mean": 0.')
    with (run / "samples.jsonl").open("a") as file:
        file.write('{"step": 9, "tokens": ["<')
    read = report.read_run(run)
    assert read.metrics[-1]["step"] == 8
    assert any("half written" in n for n in read.notices)
    data = told([run])
    assert data["samples"][0]["total"] == 16
    assert any("half written" in n for n in data["notices"])


def test_unfinished_run_is_reported_as_such(tmp_path):
    run = make_run(tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-3]))
    (run / "samples.jsonl").unlink()
    data = told([run])
    assert any("at step 5 of 8" in n for n in data["notices"])
    assert data["groups"][0]["summary"]["accuracy"] is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", "", "no complete line yet"),
        ("metrics.jsonl", '{"step": 0', "no complete line yet"),
        ("metrics.jsonl", '{"step": 0}\ngarbage\n{"step": 1}\n', "line 2: not a JSON object"),
        ("metrics.jsonl", '{"step": 0}\n[1]\n{"step": 1}\n', "line 2: not a JSON object"),
        ("metrics.jsonl", '{"reward/mean": 0}\n', "needs a whole number `step`"),
        ("metrics.jsonl", b"\xff\xfe\n\n", "not a JSON object"),
        ("config.json", "{", "not valid JSON"),
        ("config.json", "[]", "must hold a JSON object"),
        ("config.json", '{"config": []}', "must hold an object"),
        ("samples.jsonl", "garbage\n", "not a JSON object"),
        ("samples.jsonl", '{"step": 1, "tokens": []}\n', "without `tokens`"),
        ("samples.jsonl", '{"step": 1, "tokens": ["a"], "values": [1, 2]}\n', "`values` of a response of 1 tokens"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, message):
    run = make_run(tmp_path / "run")
    (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=re.escape(message)) as error:
        report.make_report([run])
    assert name in str(error.value)
    assert not (run / "report.html").exists()


def test_what_is_no_run_folder(tmp_path):
    with pytest.raises(UserError, match="not a folder"):
        report.make_report([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"has no config\.json"):
        report.make_report([tmp_path])
    with pytest.raises(UserError, match="at least one"):
        report.make_report([])


def test_non_finite_numbers_do_not_break_the_page(tmp_path):
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "reward/mean": NaN, "actor/loss": -Infinity, "policy/entropy": 0.5}\n')
    row = make_sample(random.Random(0), 9, 3, True) | {"entropy": [math.nan, math.inf, 0.1], "lam": math.nan}
    with (run / "samples.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    data = told([run])
    assert data["samples"][0]["rows"][-1]["entropy"] == [None, None, 0.1]
    chart = next(c for c in data["charts"] if c["name"] == "reward/mean")
    assert chart["series"][0]["x"][-1] == 8


# ---------------------------------------------------------------------------------------------------------
# Comparing
# ---------------------------------------------------------------------------------------------------------


def test_seeds_are_one_line_with_a_band(tmp_path):
    runs = [make_run(tmp_path / f"vapo-{i}", seed=i) for i in range(3)] + [make_run(tmp_path / "ppo", "ppo")]
    data = told(runs)
    assert [(g["name"], len(g["runs"])) for g in data["groups"]] == [("vapo", 3), ("ppo", 1)]
    chart = next(c for c in data["charts"] if c["name"] == "reward/accuracy")
    rows = [[json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()] for run in runs[:3]]
    at_three = [next(r["reward/accuracy"] for r in run if r["step"] == 3) for run in rows]
    series = chart["series"][0]
    i = series["x"].index(3)
    assert series["mean"][i] == pytest.approx(sum(at_three) / 3, rel=1e-4)
    assert series["low"][i] == pytest.approx(min(at_three), rel=1e-4)
    assert series["high"][i] == pytest.approx(max(at_three), rel=1e-4)
    assert "low" not in chart["series"][1]
    assert dict(data["differences"])["decoupled_gae"] == [True, False]
    assert "seed" not in dict(data["differences"])
    assert data["groups"][0]["summary"]["accuracy"] == {"mean": 0.71, "low": 0.7, "high": 0.72, "n": 3}


def test_runs_of_one_preset_are_named_by_what_differs(tmp_path):
    runs = [make_run(tmp_path / "x" / "r", alpha=0.05), make_run(tmp_path / "y" / "r", alpha=0.2)]
    data = told(runs)
    assert [g["name"] for g in data["groups"]] == ["vapo (alpha=0.05)", "vapo (alpha=0.2)"]
    assert [g["runs"][0]["name"] for g in data["groups"]] == ["x/r", "y/r"]
    changes = {name: (preset, own) for name, preset, own in data["groups"][1]["changes"]}
    assert changes["alpha"] == (0.05, 0.2)
    assert set(changes) == {"alpha", "value_pretrain_steps", "reward_model_steps", "steps"}


def test_one_run_given_twice_is_one_run(tmp_path):
    run = make_run(tmp_path / "run")
    data = told([run, run / ".." / "run"])
    assert len(data["groups"]) == 1 and len(data["groups"][0]["runs"]) == 1


def test_every_setting_is_explained(tmp_path):
    data = told([make_run(tmp_path / "run")])
    assert set(data["groups"][0]["settings"]) - {"task", "model"} == set(data["fields"]) - {"seed"}


def test_stays_below_5_mb_with_many_runs_and_long_responses(tmp_path):
    rng = random.Random(0)
    long = [{**row, "step": s} for row in [make_sample(rng, 0, 3000, True)] for s in range(1, 13)]
    runs = [make_run(tmp_path / f"vapo-{i}", seed=i, steps=1500 if i < 2 else 60, samples=long) for i in range(4)]
    path = report.make_report(runs, tmp_path / "all.html")
    assert path.stat().st_size < report.LIMIT
    data = data_of(path.read_text())
    kept = [len(s["rows"]) for s in data["samples"]]
    assert all(0 < k < 12 for k in kept)
    assert max(len(s["x"]) for c in data["charts"] for s in c["series"]) <= 402


def test_a_report_of_one_run_tells_what_happened(tmp_path):
    runs = [make_run(tmp_path / name) for name in "ab"]
    [text] = told(runs[:1])["stories"]
    assert f'<p id="story">{text}</p>' in html.unescape(report.make_report(runs[:1]).read_text())
    assert told(runs)["stories"] == []


def test_a_report_says_what_the_task_is_and_shows_a_problem_before_and_after(tmp_path):
    page = Elements(report.make_report([make_run(tmp_path / "run")]).read_text())

    def says(text):  # spaces between elements are the browser's
        return re.sub(r"\s", "", text) in re.sub(r"\s", "", page.text)

    assert says("A small program. For example: 4 A inc ?, and a right response: A hm 5 = 5")
    assert says("Of 1 held-out problems the base policy solved 0 and the policy after step 8 1: 1 gained, 0 lost.")
    assert says("after step 8 4 A inc ? 5 wrong, 5 tokens A hm 5 = 5 right, 5 tokens A hm 5 = 5")


def test_evaluations_of_a_run_are_in_its_report(tmp_path):
    run = make_run(tmp_path / "run")
    assert told([run])["evaluations"] == []
    add_evaluation(run)
    (run / "eval-mine.json").write_text('{"accuracy": 1}')
    data = told([run])
    [row] = data["evaluations"]
    assert row["run"] == "run" and row["accuracy"] == 0.25 and row["pass_at"]["4"] == 1 and row["length"] == 25
    assert row["settings"]["task"] == "aime2024" and "problems" not in row
    assert [n for n in data["notices"] if "eval-mine.json is not a result" in n]


def test_equal_runs_give_equal_bytes(tmp_path):
    run = make_run(tmp_path / "run")
    assert report.make_report([run]).read_bytes() == report.make_report([run]).read_bytes()


# ---------------------------------------------------------------------------------------------------------
# The page as text
# ---------------------------------------------------------------------------------------------------------

HOSTILE = [
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    "<!--<script>",
    "]]>&lt;\u2028\u2029\x00\x1b[31m",
    "\ud800",
    "@@data@@",
    "javascript:window.hacked=1",
    "<b>bold</b>",
    "%{y}<a href='javascript:window.hacked=1'>x</a>",
]


def add_evaluation(run, name="aime2024"):
    """A result as `minivapo eval` leaves it in a run folder, of problems that are right once in four samples."""
    records = [
        {"id": f"p{i}", "correct": 1, "samples": 4, "errors": 0, "truncated": 2, "lengths": [10, 20, 30, 40],
         "verdicts": [True, False, False, False]}
        for i in range(3)
    ]  # fmt: skip
    settings = evaluation.Settings(
        model="run", weights="0", files="0", stop_ids=(2,), task=name, problems=3, problems_hash="0", samples=4,
        temperature=1.0, top_p=0.7, max_new_tokens=40, max_prompt_tokens=200, stop=(), seed=0, sampler="vllm",
        sample_batch=8, dtype="float32", device="cpu",
    )  # fmt: skip
    evaluation.write_result(run / f"eval-{settings.key}.json", evaluation.summarise(settings, records), 1.0)


def hostile_run(folder):
    """A run whose every text is hostile."""
    rng = random.Random(1)
    sample = make_sample(rng, 1, 0, False, tokens=list(HOSTILE), first_error=1)
    sample |= {"prompt": "".join(HOSTILE), "answer": HOSTILE[0], "id": HOSTILE[1]}
    run = make_run(folder, samples=[sample])
    meta = json.loads((run / "config.json").read_text())
    meta |= {"preset": HOSTILE[0], "task": HOSTILE[1], "model": HOSTILE[0], "commit": HOSTILE[1]}
    meta["versions"] = {HOSTILE[1]: HOSTILE[0]}
    meta["config"]["critic_init"] = HOSTILE[1]
    (run / "config.json").write_text(json.dumps(meta))
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(lines + json.dumps({"step": 9, HOSTILE[1]: 1.0, HOSTILE[0]: 2.0}) + "\n")
    add_evaluation(run, "".join(HOSTILE[:4]))
    write_people_files(run, "".join(HOSTILE), ["".join(HOSTILE), HOSTILE[0], HOSTILE[1]], 8)
    return run


class Elements(HTMLParser):
    """Every element of a page with its attributes, and all text outside scripts."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_hostile_text_makes_no_element_and_no_attribute(tmp_path):
    page = report.make_report([hostile_run(tmp_path / "run")]).read_text()
    like = make_run(tmp_path / "tame")
    add_evaluation(like)
    with (like / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "new/metric": 1.0}\n')
    tame = Elements(report.make_report([like]).read_text())
    wild = Elements(page)
    assert [a for tag, a in wild.found if tag == "script"] == [
        {"type": "application/json", "id": "data"}, {"type": "application/octet-stream", "id": "plotly"}, {},
    ]  # fmt: skip
    allowed = {(tag, name) for tag, attributes in tame.found for name in attributes}
    assert {(tag, name) for tag, attributes in wild.found for name in attributes} <= allowed
    assert {tag for tag, _ in wild.found} <= {tag for tag, _ in tame.found}
    assert "b" not in {tag for tag, _ in wild.found} and "img" not in {tag for tag, _ in wild.found}
    assert HOSTILE[1] in wild.text  # it is shown, as text
    assert not any(unicodedata.category(c) in ("Cc", "Cs") and c != "\n" for c in page.split('id="plotly"')[0])


def test_embedded_text_cannot_leave_its_element(tmp_path):
    page = report.make_report([hostile_run(tmp_path / "run")]).read_text()
    assert len(re.findall(r"<script", page, re.I)) == 3 and len(re.findall(r"</script", page, re.I)) == 3
    data = data_of(page)
    assert data["samples"][0]["rows"][0]["tokens"] == HOSTILE
    text = page.split('id="data">')[1].split("</script>")[0]
    assert text.isascii() and not set(text) & set("<>&")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/ada/models/base", "…/models/base"),
        ("/home/ada", "…/ada"),
        ("/root/base", "…/base"),
        ("~/models/base", "…/base"),
        ("file:///home/ada/data/test.jsonl", "…/data/test.jsonl"),
        ("gsm8k:/home/ada lovelace/data/test.jsonl", "gsm8k:…/data/test.jsonl"),
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
        ("runs/base", "runs/base"),
        ("https://example.org/a/b/c", "https://example.org/a/b/c"),
        (0.5, 0.5),
    ],
)
def test_paths_lose_the_place_of_a_home(value, shown):
    assert run_files.portable(value) == shown


def test_no_home_is_in_the_file(tmp_path):
    home = "/home/ada/secret/place"
    runs = [
        make_run(tmp_path / name, critic_init=f"{home}/{name}", samples=[make_sample(random.Random(0), 1, 3, True)])
        for name in ("a", "b")
    ]
    for run in runs:
        meta = json.loads((run / "config.json").read_text())
        meta |= {"task": f"gsm8k:{home}/test.jsonl", "model": f"{home}/base", "critic": f"{home}/critic"}
        (run / "config.json").write_text(json.dumps(meta))
        rows = (run / "samples.jsonl").read_text()
        (run / "samples.jsonl").write_text(rows.replace('"id": "p1"', f'"id": "{home}/x"'))
        add_evaluation(run, f"gsm8k:{home}/test.jsonl")
    for chosen in (runs, runs[:1]):
        page = report.make_report(chosen).read_text()
        assert "/home/" not in page and str(tmp_path) not in page and "secret" not in page
        assert "gsm8k:…/place/test.jsonl" in page
    assert "critic_init=…/place/a" in report.make_report(runs).read_text()


def test_tables_and_curves_are_there_without_javascript(tmp_path):
    runs = [make_run(tmp_path / f"vapo-{i}", seed=i) for i in range(2)] + [make_run(tmp_path / "ppo", "ppo")]
    page = report.make_report(runs).read_text()
    data = data_of(page)
    for chart, picture in zip(data["charts"], re.findall(r'<svg class="still".*?</svg>', page, re.S), strict=False):
        lines = len(re.findall("<polyline", picture)) + len(re.findall("<circle", picture))
        assert lines == len(chart["series"]), chart["name"]
    assert page.count('<svg class="still"') == len(data["charts"]) == page.count("<figure")
    assert "length_adaptive" in page.split('id="data"')[0] and "70.5 %" in page.split('id="data"')[0]


def test_policy_allows_the_reports_own_scripts_only(tmp_path):
    page = report.make_report([make_run(tmp_path / "run")]).read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    own = page.rpartition("<script>")[2].partition("</script>")[0]
    plotly = gzip.decompress(base64.b64decode(re.search(r'id="plotly">([^<]*)<', page)[1])).decode()
    sources = policy.split("script-src ")[1].split(";")[0].split()
    assert sources == [report.script_hash(own), report.script_hash(plotly)]
    assert "default-src 'none'" in policy and "unsafe-eval" not in policy
    outside = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith(("#", "data:")) for link in outside)


# ---------------------------------------------------------------------------------------------------------
# In a real browser
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_settings(tmp_path_factory):
    """A report of two seeds of vapo and one of ppo."""
    folder = tmp_path_factory.mktemp("report")
    runs = [make_run(folder / f"vapo-{i}", seed=i) for i in range(2)] + [make_run(folder / "ppo", "ppo")]
    return runs, report.make_report(runs, folder / "all.html")


def set_number(page, name, value):
    page.fill(f"#{name}-n", repr(value))


def shown_values(page):
    """The full-precision numbers behind the colours of the tokens."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.eval_on_selector_all(".token", "nodes => nodes.map(n => Number(n.dataset.value))")


def test_opens_from_disk_and_draws(show, two_settings):
    page = show(two_settings[1])
    assert page.locator("#charts figure").count() > 40
    assert page.locator("#x-plot svg").count() > 0
    page.locator('figure[data-metric="reward/accuracy"]').scroll_into_view_if_needed()
    page.wait_for_selector('figure[data-metric="reward/accuracy"] .plot[data-drawn] svg', state="attached")
    traces = page.eval_on_selector('figure[data-metric="reward/accuracy"] .plot', "n => n.data.map(t => t.y)")
    assert len(traces) == 4  # band below, band above, mean; and one line without a band
    assert page.locator("#settings tbody tr").count() > 5
    page.select_option("#axis", "samples")
    xs = page.eval_on_selector('figure[data-metric="reward/accuracy"] .plot', "n => Array.from(n.data.at(-1).x)")
    assert xs == [256 * i for i in range(1, 9)]
    page.locator("#legend input").first.uncheck()
    count = page.eval_on_selector('figure[data-metric="reward/accuracy"] .plot', "n => n.data.length")
    assert count == 1
    page.fill("#find", "entropy")
    assert page.locator("#charts figure:visible").count() == 1


def test_advantages_equal_those_of_the_library(show, two_settings):
    runs, path = two_settings
    page = show(path)
    samples = [json.loads(x) for x in (runs[0] / "samples.jsonl").read_text().splitlines()]
    for index in (0, 5, len(samples) - 1):
        sample = samples[index]
        page.select_option("#x-sample", str(index))
        rows = [torch.tensor([sample[k]], dtype=torch.float64) for k in ("rewards", "values")]
        mask = torch.ones_like(rows[0])
        assert shown_values(page) == pytest.approx(sample["advantages"], abs=1e-6)  # as trained
        for adaptive, alpha, lam, gamma in [
            (False, 0.05, 0.0, 1.0), (False, 0.05, 0.95, 1.0), (False, 0.05, 1.0, 1.0), (False, 0.05, 0.7, 0.9),
            (False, 0.05, 1.0, 0.0), (True, 0.05, 0.5, 1.0), (True, 0.2, 0.5, 0.97), (True, 0.001, 0.5, 1.0),
        ]:  # fmt: skip
            page.set_checked("#x-adaptive", adaptive)
            set_number(page, "x-gamma", gamma)
            set_number(page, *(("x-alpha", alpha) if adaptive else ("x-lam", lam)))
            if adaptive:
                lam = length_adaptive_lambda(torch.tensor([len(sample["tokens"])]), alpha).double()
            expected = gae(*rows, mask, gamma, lam)[0].tolist()
            assert shown_values(page) == pytest.approx(expected, abs=1e-6)
        page.click("#x-reset")
        assert shown_values(page) == pytest.approx(sample["advantages"], abs=1e-6)


def test_other_quantities_and_the_panel(show, two_settings):
    runs, path = two_settings
    page = show(path)
    sample = json.loads((runs[0] / "samples.jsonl").read_text().splitlines()[1])
    page.select_option("#x-sample", "1")
    values, rewards = sample["values"], sample["rewards"]
    deltas = [r + n - v for r, n, v in zip(rewards, [*values[1:], 0.0], values, strict=True)]
    ratios = [math.exp(new - old) for new, old in zip(sample["new_logprobs"], sample["old_logprobs"], strict=True)]
    true = sample["true_values"]
    rises = [r + n - v for r, n, v in zip(rewards, [*true[1:], 0.0], true, strict=True)]
    errors = [v - w for v, w in zip(values, true, strict=True)]
    expected = {"value": values, "delta": deltas, "logprob": sample["logprobs"], "entropy": sample["entropy"]}
    expected |= {"truth": rises, "error": errors}
    for name, wanted in expected.items():
        page.check(f"#colour-{name}")
        assert shown_values(page) == pytest.approx(wanted, abs=1e-6), name
    page.check("#colour-ratio")
    assert shown_values(page) == pytest.approx(ratios, abs=1e-6)
    page.locator(".token").nth(3).hover()
    panel = page.locator("#x-numbers").inner_text()
    assert "token 4 of 60" in panel
    shown = page.locator('#x-numbers tr[data-row="value"] td.n').inner_text()
    assert float(shown.replace("−", "-")) == pytest.approx(values[3], rel=1e-3)
    assert page.locator(".token.error").get_attribute("data-index") == "20"


def test_keyboard_alone_is_enough(show, two_settings):
    page = show(two_settings[1])
    page.select_option("#x-sample", "1")
    for _ in range(80):  # Tab reaches the tokens
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('token')"):
            break
    else:
        pytest.fail("Tab never reached a token")
    index = lambda: int(page.evaluate("document.activeElement.dataset.index"))  # noqa: E731
    assert index() == 20  # the first error
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert float(outline.removesuffix("px")) >= 2
    page.keyboard.press("Home")
    assert index() == 0
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert index() == 1
    assert "token 2 of 60" in page.locator("#x-numbers").inner_text()
    assert page.locator("#x-live").inner_text().startswith("token 2")
    page.keyboard.press("ArrowDown")
    below = index()
    assert below > 5
    page.keyboard.press("ArrowUp")
    assert index() < below
    page.keyboard.press("End")
    assert index() == 59
    page.keyboard.press("e")
    assert index() == 20
    assert page.locator('.token[aria-selected="true"]').count() == 1
    page.focus("#x-gamma")
    before = shown_values(page)
    page.keyboard.press("ArrowLeft")
    assert shown_values(page) != before
    named = (
        """nodes => nodes.filter(n => !n.labels?.length && !n.getAttribute('aria-label') && !n.textContent.trim())"""
    )
    assert page.eval_on_selector_all("input, select, button", f"{named[:-1]}).map(n => n.outerHTML)") == []


def test_hostile_text_is_only_text(show, tmp_path):
    page = show(report.make_report([hostile_run(tmp_path / "run")]))
    for key in ("e", "End", "ArrowLeft", "Home"):
        page.locator('.token[tabindex="0"]').press(key)
    page.locator(".token").nth(1).hover()
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    for section in ("curves", "settings", "samples"):
        page.evaluate(f"document.getElementById('{section}').scrollIntoView()")
        page.wait_for_timeout(200)
    page.mouse.move(600, 400)
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img").count() == 0 and page.locator("main b b").count() == 0
    assert page.locator(".token").nth(0).inner_text() == HOSTILE[0]
    assert page.locator("#x-plot a, #charts a").count() == 0


def test_print_shows_every_chart(show, two_settings):
    page = show(two_settings[1])
    page.locator('figure[data-metric="reward/accuracy"]').scroll_into_view_if_needed()
    page.wait_for_selector('figure[data-metric="reward/accuracy"] .plot[data-drawn] svg', state="attached")
    page.evaluate("addEventListener('beforeprint', () => (window.asked = true))")
    seen = """() => [...document.querySelectorAll('figure')].map(f => {
        const lines = [...f.querySelectorAll('.still polyline, .still circle')].filter(n => n.checkVisibility());
        const widths = lines.map(n => n.getBoundingClientRect().width);
        return [f.dataset.metric, Math.max(0, ...widths), f.querySelector('.plot').offsetHeight]; })"""
    page.emulate_media(media="print")
    folded = [name for name, width, _ in page.evaluate(seen) if not width > 0]
    assert folded  # parts that are closed on the screen
    page.pdf()
    assert page.evaluate("window.asked") is True  # the browser asks before it prints, and here is what it prints then
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    for name, width, live in page.evaluate(seen):
        assert width > 5 and live == 0, name
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert [name for name, width, _ in page.evaluate(seen) if not width > 0] == folded


def test_light_and_dark_and_readable(show, two_settings):
    contrast = """nodes => nodes.map(n => {
        const rgb = c => c.match(/[\\d.]+/g).slice(0, 3).map(Number);
        const s = getComputedStyle(n), l = [luminance(rgb(s.color)), luminance(rgb(s.backgroundColor))].sort();
        return (Math.max(...l) + 0.05) / (Math.min(...l) + 0.05); })"""
    grounds = {}
    for scheme in ("light", "dark"):
        page = show(two_settings[1], color_scheme=scheme)
        for name in ("advantage", "value", "delta", "ratio", "logprob", "entropy"):
            page.check(f"#colour-{name}")
            assert min(page.eval_on_selector_all(".token", contrast)) >= 4.5, (scheme, name)
        grounds[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.select_option("#theme", "dark" if scheme == "light" else "light")
        grounds[f"{scheme} toggled"] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert min(page.eval_on_selector_all(".token", contrast)) >= 4.5
        line = page.eval_on_selector("#x-plot", "n => n.data.at(-1).line.color")
        assert line == ("#56b4e9" if scheme == "light" else "#0072b2")
    assert grounds["light"] == grounds["dark toggled"] != grounds["dark"] == grounds["light toggled"]


def test_a_run_without_a_value_model(show, tmp_path):
    page = show(report.make_report([make_run(tmp_path / "run", "grpo")]))
    assert page.locator("#x-gamma").is_disabled()
    assert "no value model" in page.locator("#x-note").inner_text()
    assert page.locator("#colour-value").is_disabled()
    assert set(shown_values(page)) == {0.5}


def test_a_run_without_responses(show, tmp_path):
    run = make_run(tmp_path / "run", samples=[])
    page = show(report.make_report([run]))
    assert page.locator("#explorer-empty").is_visible()
    assert page.locator("#samples-lead").inner_text() == "No responses were kept."


def test_evaluations_are_a_table(show, tmp_path):
    run = make_run(tmp_path / "run")
    page = show(report.make_report([run]))
    assert page.locator("#evaluations").count() == 0 and not page.locator("#evaluations-link").is_visible()
    add_evaluation(run)
    page = show(report.make_report([run]))
    page.locator("#evaluations-link").click()
    cells = page.locator("#evaluations-table tbody td").all_inner_texts()
    assert cells[:4] == ["aime2024", "25.0 %", "25.0 % – 25.0 %", "@1 25.0 %, @2 50.0 %, @4 100.0 %"]
    assert cells[4:8] == ["3 × 4", "1", "0.7", "25 of 40"]


def test_samples_table_leads_to_the_explorer(show, two_settings):
    page = show(two_settings[1])
    page.select_option("#s-verdict", "right")
    page.select_option("#s-order", "last")
    assert set(page.locator("#samples-table td:nth-child(4)").all_inner_texts()) == {"✓ right"}
    page.locator("#samples-table button").first.click()
    assert "right" in page.locator("#x-facts").inner_text()
    assert page.evaluate("document.activeElement.classList.contains('token')")


def test_the_samples_can_be_searched(show, two_settings):
    page = show(two_settings[1])
    rows, found = page.locator("#samples-table tbody tr"), page.locator("#s-found")
    kept = int(page.locator("#samples-lead").inner_text().split()[0])
    texts = page.locator("#samples-table tbody td:nth-last-child(2)")
    wanted = max((text for text in texts.all_inner_texts() if "…" not in text), key=len)
    page.fill("#s-search", wanted.upper())
    assert all(wanted in text for text in texts.all_inner_texts())
    assert 1 <= int(found.inner_text().removesuffix(" found")) < kept
    page.fill("#s-search", "no such words")
    assert rows.count() == 0 and found.inner_text() == "0 found"
    page.fill("#s-search", "")
    assert rows.count() == min(kept, 25) and found.inner_text() == ""


def test_narrow_screens_do_not_scroll_sideways(browser, two_settings):
    page = browser.new_page(viewport={"width": 380, "height": 800})
    page.set_default_timeout(PATIENCE)
    page.goto(two_settings[1].resolve().as_uri())
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    page.close()
