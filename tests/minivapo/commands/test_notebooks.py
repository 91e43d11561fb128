"""`minivapo notebooks`: what it copies is all that a notebook reads."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from minivapo.cli import main
from minivapo.commands.notebooks import READ

ROOT = Path(__file__).parents[3]


def test_it_copies_notebooks_and_results_and_overwrites_nothing(tmp_path, capsys):
    folder = tmp_path / "mine"
    assert main(["notebooks", str(folder)]) == 0
    assert sorted(p.name for p in folder.glob("*.ipynb")) == sorted(p.name for p in ROOT.glob("notebooks/*.ipynb"))
    assert {p.name for p in (folder / "results/sweeps").iterdir()} >= {"token-loss.csv", "clip-higher.csv"}
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    packed = {source.removeprefix("docs/results/") for source in wheel["force-include"] if source != "notebooks"}
    assert packed == {pattern.removesuffix("/*.csv") for pattern in READ}
    mine = folder / "01_reasoning_as_an_mdp.ipynb"
    mine.write_text("my notes")
    (folder / "style.mplstyle").unlink()
    capsys.readouterr()
    assert main(["notebooks", str(folder)]) == 1
    assert capsys.readouterr().err.strip() == f"minivapo: {mine} exists already; name another folder."
    assert mine.read_text() == "my notes"
    assert not (folder / "style.mplstyle").exists()


@pytest.mark.once
def test_the_copies_find_their_results(tmp_path):
    assert main(["notebooks", str(tmp_path / "mine")]) == 0
    look = "import setup_notebook as s; s.prepare(); print(s.RESULTS); print(len(s.sweep('token-loss')[1]) > 1)"
    done = subprocess.run(
        [sys.executable, "-c", look],
        cwd=tmp_path / "mine",
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(tmp_path / "mine/results"), "True"]
