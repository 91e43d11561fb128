"""The sbatch script of docs/cluster.md on a made-up Slurm that forgets what srun is not told, as the real one does."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from launch import ROOT, environment
from torch.distributed.run import parse_args

from minivapo.errors import UserError
from minivapo.runs.folder import write_config
from scaled.config import read_job
from scaled.train import AUTO, read_arguments

pytestmark = pytest.mark.once

BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/cluster.md").read_text(), re.S)
SCRIPT = next(block for block in BLOCKS if "#SBATCH" in block)
CONFIG = "scaled/configs/qwen2.5-32b-64gpu.yaml"

TOOLS = {
    # Each task of a step gets the cores that srun was asked for, or one.
    "srun": """
import os, subprocess, sys
words = sys.argv[1:]
cores = "1"
while words[0].startswith("--"):
    name, _, value = words.pop(0).partition("=")
    cores = value if name == "--cpus-per-task" else cores
code = 0
for node in range(int(os.environ["SLURM_NNODES"])):
    env = os.environ | {"SLURM_NODEID": str(node), "CORES": cores}
    code = max(code, subprocess.run(words, env=env).returncode)
sys.exit(code)
""",
    "scontrol": """
import os, sys
if sys.argv[1] == "show":
    print("\\n".join(f"node{i}" for i in range(3, 11)))
else:
    open(os.environ["LOG"], "a").write(f'["{sys.argv[1]}", "{sys.argv[2]}"]\\n')
""",
    # What it would start is written down.
    "torchrun": """
import json, os, sys
with open(os.environ["LOG"], "a") as file:
    file.write(json.dumps([sys.argv[1:], os.environ["CORES"], os.environ["OMP_NUM_THREADS"]]) + "\\n")
sys.exit(int(os.environ.get("FAIL", "0")))
""",
}


def sbatch(folder: Path, run: Path, **extra: str) -> list:
    """Runs the script for a run folder; gives what was written down, and the exit code."""
    for name, text in TOOLS.items():
        (folder / name).write_text(f"#!{sys.executable}\n{text}")
        (folder / name).chmod(0o755)
    log = folder / "log"
    log.unlink(missing_ok=True)
    slurm = {
        "SLURM_JOB_NODELIST": "node[3-10]", "SLURM_NNODES": "8", "SLURM_CPUS_PER_TASK": "64", "SLURM_JOB_ID": "77",
        "LOG": str(log), "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    env = environment(**slurm, **extra)
    env.pop("OMP_NUM_THREADS")
    script = folder / "vapo.sbatch"
    script.write_text(re.sub(r"^run=.*$", f"run={run}", SCRIPT, flags=re.M))
    done = subprocess.run(["bash", str(script)], env=env, cwd=ROOT, capture_output=True, text=True)
    return [*map(json.loads, log.read_text().splitlines()), done.returncode]


@pytest.fixture
def started(tmp_path):
    """What the script starts for a new run."""
    (tmp_path / "bin").mkdir()
    return sbatch(tmp_path / "bin", tmp_path / "run")


def test_every_machine_starts_its_ranks_with_all_of_its_cores(started):
    *nodes, code = started
    assert code == 0 and len(nodes) == 8
    for i, (words, cores, threads) in enumerate(nodes):
        args = parse_args(words)  # torchrun's own reader
        assert (args.node_rank, args.nnodes, args.nproc_per_node) == (i, "8", "8")
        assert args.rdzv_endpoint == "node3:29500" and args.training_script == "scaled.train"
        assert (cores, threads) == ("64", "8")


def test_a_failed_job_requeues_itself_but_not_for_ever(tmp_path):
    assert sbatch(tmp_path, tmp_path / "run", FAIL="1")[-2:] == [["requeue", "77"], 1]
    *nodes, code = sbatch(tmp_path, tmp_path / "run", FAIL="1", SLURM_RESTART_COUNT="5")
    assert len(nodes) == 8 and code == 1  # no requeue


def test_the_same_line_begins_and_goes_on(started, tmp_path):
    words, run = parse_args(started[0][0]).training_script_args, tmp_path / "run"
    args, _ = read_arguments(words)
    assert args.resume == AUTO and args.job.run == run

    # Requeued before the first checkpoint, stopped between the two renames of a save, or after it.
    job = read_job(CONFIG)
    write_config(run, job.config, {"model": job.model, "task": job.task, "preset": job.preset, "critic": None})
    for name in ("metrics.jsonl", "checkpoint.old", "checkpoint"):
        (run / name).mkdir()
        args, _ = read_arguments(words)
        assert args.resume == run and args.job.config == job.config
        assert args.job.settings == job.settings  # those of the file, which may change
        (run / name).rmdir()


def test_auto_never_goes_on_with_another_configuration(tmp_path):
    job = read_job(CONFIG)
    write_config(tmp_path / "run", job.config, {"model": job.model, "task": job.task})
    (tmp_path / "run" / "checkpoint").mkdir()
    words = ["--config", CONFIG, "--run-dir", str(tmp_path / "run"), "--resume", "auto"]
    with pytest.raises(UserError, match="--actor-lr cannot be changed"):
        read_arguments([*words, "--actor-lr", "0.5"])
    with pytest.raises(UserError, match="needs --run-dir"):
        read_arguments(["--config", CONFIG, "--resume", "auto"])
    with pytest.raises(UserError, match="needs --config FILE"):
        read_arguments(["--run-dir", str(tmp_path), "--resume", "auto"])
