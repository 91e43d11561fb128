"""A rank that fails ends the job soon, with the reason on one line; two hosts, and the loss of one."""

import os
import signal
import subprocess
import time

import pytest
from hosts import cut, join, processes, start_on
from launch import HERE, torchrun

pytestmark = pytest.mark.cluster

WORKER = HERE / "fault_worker.py"
REASONS = {
    "memory": "rank 1: out of memory",
    "bug": "rank 1: ZeroDivisionError: a bug with two lines",
    "alone": "rank 1: a prompt has 9999 tokens; 1 to 512 are allowed.",
    "full": "rank 1: OSError: [Errno 28] No space left on device",
    "nonfinite": "actor: loss nan, gradient norm inf; the step was refused.",
    "user": "mini_batch is 7; it must divide batch_size 8.",
    "hang": "'step 2' has lasted",
    "frozen": "rank 1: no sign of life for",
    "die": "rank 1: its process died without a word",
}


@pytest.mark.parametrize("case", REASONS)
def test_a_failing_rank_ends_the_job_with_one_line(case, tmp_path):
    """It names the rank, the cause and the phase, on the terminal and in the run folder, within a minute."""
    start = time.monotonic()
    pause = 1.5 if case in ("frozen", "die") else 0  # what a rank last did is known to the second
    done = torchrun(2, WORKER, case, 6 if case == "hang" else 60, pause, tmp_path, timeout=200)
    assert time.monotonic() - start < 75  # imports included
    assert done.returncode != 0
    assert "step 1: 2 ranks" in done.stdout and "complete" not in done.stdout
    ours = [line for line in done.stderr.splitlines() if line.startswith("scaled.train:")]
    assert len(ours) == 1, done.stderr[-3000:]
    assert REASONS[case] in ours[0] and "step 2" in ours[0]
    [kept] = (tmp_path / "failures.log").read_text().splitlines()
    assert REASONS[case].removeprefix("rank 1: ") in kept and "UTC  scaled.train: rank " in kept


def test_a_launcher_starts_a_job_anew(tmp_path):
    """The ranks find each other again, though the launcher's store still knows those of the first start."""
    done = torchrun(2, "--max-restarts", "1", WORKER, "die-once", 60, 0.1, tmp_path, timeout=200)
    assert done.returncode == 0 and done.stdout.count("complete") == 2, done.stderr[-3000:]
    assert done.stdout.count("step 1: 2 ranks") == 2


def test_a_clock_that_jumps_ends_no_job(tmp_path):
    """Signs of life and limits go by a clock that never jumps; 8 s of silence, and a minute a phase, are allowed."""
    done = torchrun(2, WORKER, "clock", 60, 0.3, tmp_path, timeout=200)
    assert done.returncode == 0 and done.stdout.count("complete") == 2, done.stderr[-3000:]
    assert not (tmp_path / "failures.log").exists()


def host(namespaces, node: int, pause: float, *words: object, case: str = "none") -> subprocess.Popen:
    """One host's launcher with the worker."""
    script = (WORKER, case, "60", pause, *words)
    return start_on(namespaces[node], node, namespaces[0], *script, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_hosts_work_together(namespaces):
    hosts = [host(namespaces, i, 0) for i in (0, 1)]
    outs = [h.communicate(timeout=200) for h in hosts]
    assert [h.returncode for h in hosts] == [0, 0], outs
    assert "step 3: 2 ranks" in outs[0][0]


def test_the_line_of_a_rank_elsewhere_reaches_rank_0(namespaces, tmp_path):
    hosts = [host(namespaces, i, 0.1, tmp_path, case="alone") for i in (0, 1)]
    outs = [h.communicate(timeout=200) for h in hosts]
    for (_, err), launcher in zip(outs, hosts, strict=True):
        assert launcher.returncode != 0
        assert sum("a prompt has 9999 tokens" in line for line in err.splitlines()) == 1, err[-3000:]
    assert "rank 1 on " in outs[0][1] and "rank 1: a prompt" in outs[1][1]
    assert "a prompt has 9999 tokens" in (tmp_path / "failures.log").read_text()


def end_of_the_first(hosts, tmp_path) -> str:
    """Waits for the first host to end by itself within a minute; returns what it said."""
    start = time.monotonic()
    out, err = hosts[0].communicate(timeout=150)
    assert time.monotonic() - start < 60
    assert hosts[0].returncode != 0 and "complete" not in out
    lines = [line for line in err.splitlines() if line.startswith("scaled.train:")]
    assert len(lines) == 1, err[-3000:]
    assert "step " in lines[0] and "scaled.train: rank 1" in (tmp_path / "failures.log").read_text()
    return lines[0]


def test_the_loss_of_a_host_ends_the_other_with_a_reason(namespaces, tmp_path):
    hosts = [host(namespaces, i, 1.0, tmp_path) for i in (0, 1)]
    seen = [hosts[0].stdout.readline() for _ in range(2)]
    assert "step 1: 2 ranks" in seen[1], (seen, hosts[0].stderr.read() if hosts[0].poll() is not None else "")
    # The whole session of the second host: launcher and rank.
    for pid in processes(namespaces[1]):
        os.kill(pid, signal.SIGKILL)
    assert "rank 1" in (said := end_of_the_first(hosts, tmp_path)) and "no sign of life" in said
    hosts[1].communicate(timeout=30)


def test_a_lost_network_ends_both_sides(namespaces, tmp_path):
    hosts = [host(namespaces, i, 1.0, tmp_path) for i in (0, 1)]
    seen = [hosts[0].stdout.readline() for _ in range(2)]
    assert "step 1: 2 ranks" in seen[1], seen
    cut(namespaces[1])
    try:
        assert "rank 1" in (said := end_of_the_first(hosts, tmp_path)) and "no sign of life" in said
        _, err = hosts[1].communicate(timeout=60)
        assert hosts[1].returncode != 0
        assert "rank 0's machine (10.77.0.1) has not answered" in err, err[-3000:]
    finally:
        join(namespaces[1])
