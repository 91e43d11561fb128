"""Every command of the README and the docs: run here at a small size, or read by its real parser, and why only that."""

import contextlib
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import blocks, patched

from minivapo import cli
from minivapo.options.parse import parse, read_words

ROOT = Path(__file__).parents[1]
SMALL = shlex.split(
    "--steps 1 --batch-size 16 --mini-batch 8 --value-pretrain-steps 1 --reward-model-steps 1 --eval-problems 8 "
    "--max-new-tokens 24"
)
RUN_HERE = {"README.md", "docs/start.md", "docs/change.md"}
"""Pages whose commands are run by the tests below."""
ONLY_READ = {
    "docs/real-models.md": "needs weights and data from a network, or a GPU",
    "docs/cluster.md": "tests/scaled runs such lines at a small size; the others need GPUs",
    "docs/models.md": "needs weights and data from a network, or a GPU",
    "docs/plan-32b.md": "needs GPUs",
    "docs/map.md": "takes hours",
    "docs/protocol.md": "takes hours",
    "docs/sweeps-protocol.md": "takes hours",
    "docs/write-a-task.md": "the task that it writes is run below; a real model needs weights from a network",
}
"""Pages whose commands are only read by the parser of the command, and why."""


def pages():
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page, blocks=True, inline=True):
    """The words of each command in a page, without what a shell does with them."""
    text = re.sub(r"\\\n", " ", page.read_text())
    lines = []
    for language, block in re.findall(r"^```(.*?)\n(.*?)^```$", text, re.S | re.M):
        if blocks and language in ("bash", "text", ""):
            for line in block.splitlines():
                lines += re.split(r"&&|;", re.sub(r"(^|\s)#.*", "", line))
    if inline:  # with arguments: without, a command is only named
        rest = re.sub(r"```.*?```", "", text, flags=re.S)
        lines += re.findall(r"`((?:minivapo [\w-]+|python -m scaled\.\w+|torchrun) [^`]+)`", rest)
    for line in lines:
        words = [word for word in shlex.split(line.replace("'", "")) if word != "…"]
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words.pop(0)
        if words and "--help" not in words:
            yield [words[0].removeprefix(".venv/bin/"), *words[1:]]


def ours(words):
    """(command of ours, its arguments), or None: `minivapo eval RUN` and `torchrun … -m scaled.train --config FILE`."""
    if words[0] == "minivapo" and len(words) > 1 and words[1] in cli.COMMANDS:
        return words[1], words[2:]
    for name in ("scaled.train", "scaled.plan"):
        if name in words:
            return name, words[words.index(name) + 1 :]
    return None


def of_page(name, **kinds):
    return [found for words in commands(ROOT / name, **kinds) if (found := ours(words))]


FOUND = {
    f"{page.stem}: {' '.join([name, *arguments])[:60]}": (name, arguments)
    for page in pages()
    for name, arguments in of_page(page)
}


@pytest.mark.parametrize(("name", "arguments"), FOUND.values(), ids=FOUND.keys())
def test_flags_and_values_are_those_of_the_command(name, arguments, monkeypatch):
    """The real parser of the command reads them; files and runs that a page only names need not exist."""
    monkeypatch.chdir(ROOT)
    module = {"scaled.train": "scaled.train", "scaled.plan": "scaled.planning.command"}.get(
        name, f"minivapo.commands.{name.replace('-', '_')}"
    )
    kind = importlib.import_module(module).Arguments
    words = ["scaled/configs/smoke.yaml" if word in ("CONFIG", "FILE") else word for word in arguments]
    parse(kind, read_words(kind, words) if name.startswith("scaled") or name == "train" else words, name)


def test_a_page_with_commands_runs_them_or_says_why_not():
    for page in pages():
        name = str(page.relative_to(ROOT))
        if of_page(name, inline=False) and name not in RUN_HERE:
            assert ONLY_READ.get(name), f"{name}: run its commands in this file, or say in ONLY_READ why not"


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory):
    """A folder where the commands of the start page ran in their order, with fewer steps."""
    folder, names = tmp_path_factory.mktemp("newcomer"), []
    with contextlib.chdir(folder):
        for name, arguments in of_page("docs/start.md", inline=False):
            extra = {"train": SMALL, "eval": ["--problems", "4"]}.get(name, [])
            assert cli.main([name, *arguments, *extra]) == 0, name
            names.append(name)
    assert names == ["train", "sample", "eval", "train", "report"]
    return folder


def test_the_start_page_leads_to_a_trained_policy(newcomer):
    run = newcomer / "runs/locks-vapo-0"
    assert (run / "report.html").exists()
    assert (newcomer / "runs/locks-ppo-0").exists()
    assert len(list(run.glob("eval-locks-*.json"))) == 1
    compare_with_page(run)


@pytest.mark.once
def test_a_newcomer_explores_a_response_of_that_run(newcomer, show):
    """What step 4 of the page promises: curves, and a token's numbers that follow the pointer and the slider of α."""
    page = show(newcomer / "runs/locks-vapo-0/report.html")
    assert page.locator("#charts figure").count() > 10
    tokens = page.locator(".token")
    assert tokens.count() > 3
    tokens.nth(1).hover()
    assert "token 2 of" in page.locator("#x-numbers").inner_text()
    advantage = page.locator('#x-numbers tr[data-row="advantage"] td.n')
    before = advantage.inner_text()
    page.locator("#x-alpha").evaluate("x => { x.value = x.min; x.dispatchEvent(new Event('input')) }")
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")  # drawn anew
    assert advantage.inner_text() != before


def compare_with_page(run):
    """docs/run-folder.md names every file and key of a real run, and no other."""

    def said(heading):
        text = (ROOT / "docs/run-folder.md").read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
        return {name.rstrip("/") for name in re.findall(r"^\| `([^`]+)` \|", text, re.M)}

    assert said("Files") == {path.name for path in run.iterdir() if not path.name.startswith("eval-")}
    assert said("checkpoint/") == {path.name for path in (run / "checkpoint").iterdir()}
    assert said("config.json") == json.loads((run / "config.json").read_text()).keys()
    for name in ("samples.jsonl", "held_out.jsonl"):
        assert said(f"A line of {name}") == json.loads((run / name).read_text().partition("\n")[0]).keys()
    assert said("task.json") == json.loads((run / "task.json").read_text()).keys()


@pytest.mark.once
def test_a_newcomer_trains_on_a_task_of_their_own(tmp_path, monkeypatch):
    """The page's class in a file, and its two commands."""
    monkeypatch.chdir(tmp_path)
    Path("parity.py").write_text(blocks("docs/write-a-task.md", "python")[0])
    mine = [found for found in of_page("docs/write-a-task.md", inline=False) if "parity.py:Parity" in found[1]]
    assert [name for name, _ in mine] == ["make-base", "train"]
    for name, arguments in mine:
        assert cli.main([name, *arguments, *(SMALL if name == "train" else ["--steps", "20"])]) == 0
    assert json.loads(Path("runs/parity-grpo-0/task.json").read_text())["response"] in ("odd", "even")


@pytest.mark.once
def test_a_newcomer_trains_with_a_preset_of_their_own(tmp_path, monkeypatch):
    """The page's preset in a file, and its command: what it chose stays, the rest is fitted to the task."""
    monkeypatch.chdir(tmp_path)
    Path("my_presets.py").write_text(blocks("docs/change.md", "python")[0])
    (name, arguments), *_ = (found for found in of_page("docs/change.md", inline=False) if "--preset" in found[1])
    assert cli.main([name, *arguments, "--steps", "1", *SMALL[2:-2]]) == 0
    recorded = json.loads(Path("runs/locks-mine-0/config.json").read_text())
    config = recorded["config"]
    assert recorded["preset"] == "my_presets.py:mine"
    assert (config["alpha"], config["clip_high"]) == (0.3, 0.4)
    assert config["lam"] == 0.4
    Path("my_presets.py").unlink()
    assert cli.main(["train", "--resume", "runs/locks-mine-0", "--steps", "2"]) == 0


@pytest.mark.once
def test_a_newcomer_trains_with_a_loss_term_of_their_own(tmp_path):
    """The page's three edits in a copy of the package, and its command there."""
    shutil.copytree(ROOT / "minivapo", tmp_path / "minivapo", ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "minivapo/vapo.py"
    file.write_text(patched(file.read_text(), "docs/change.md"))
    (name, arguments), *_ = (found for found in of_page("docs/change.md", blocks=False) if "vapo-near" in found[1])
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "minivapo", name, *arguments, *SMALL]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "runs/locks-vapo-near-0/metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["actor/loss_near"] >= 0
    assert json.loads((tmp_path / "runs/locks-vapo-near-0/config.json").read_text())["config"]["near_coef"] == 0.1


@pytest.mark.once
def test_the_plan_works_after_the_installation_of_the_readme(tmp_path):
    """In a process where only the packages of a plain installation can be imported."""
    found = [arguments for name, arguments in of_page("README.md") if name == "scaled.plan"]
    assert len(found) == 1
    hide = (
        "import sys; sys.modules.update(dict.fromkeys(['accelerate', 'deepspeed', 'vllm', 'datasets', 'math_verify']));"
    )
    code = f"{hide} from scaled.plan import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *found[0]], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "fits:" in done.stdout
