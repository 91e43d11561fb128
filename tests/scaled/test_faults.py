"""A rank that fails ends the job soon, with the reason on one line; two hosts, and the loss of one."""

import os
import signal
import subprocess
import sys
import time

import pytest
from launch import HERE, ROOT, environment, torchrun

pytestmark = pytest.mark.cluster

WORKER = HERE / "fault_worker.py"
REASONS = {
    "memory": "scaled.train: rank 1: out of memory",
    "bug": "scaled.train: rank 1: ZeroDivisionError: a bug with two lines",
    "nonfinite": "scaled.train: rank 0: actor: loss nan, gradient norm inf; the step was refused.",
    "user": "scaled.train: rank 0: mini_batch is 7; it must divide batch_size 8.",
    "hang": "'step 2' has lasted",
    "die": "Signal 9 (SIGKILL)",
}


@pytest.mark.parametrize("case", REASONS)
def test_a_failing_rank_ends_the_job_with_its_reason(case):
    start = time.monotonic()
    done = torchrun(2, WORKER, case, 6 if case == "hang" else 60, timeout=200)
    assert time.monotonic() - start < 150
    assert done.returncode != 0
    assert "step 1: 2 ranks" in done.stdout and "complete" not in done.stdout
    lines = [line for line in done.stderr.splitlines() if REASONS[case] in line]
    assert lines, done.stderr[-3000:]
    if case == "user":  # said once, though every rank raises it
        assert sum("mini_batch is 7" in line for line in done.stderr.splitlines()) == 1
    ours = [line for line in done.stderr.splitlines() if line.startswith("scaled.train:")]
    assert len(ours) <= 2 and not any("Traceback" in line for line in ours)


def host(namespace, node: int, pause: float) -> subprocess.Popen:
    """One host's launcher in its namespace; the first host's address is the rendezvous."""
    name, _, cable = namespace
    command = [
        "ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2",
        "--nproc_per_node", "1", "--node_rank", str(node), "--rdzv_backend", "static",
        "--rdzv_endpoint", "10.77.0.1:29555", "--rdzv_id", "7", str(WORKER), "none", "60", str(pause),
    ]  # fmt: skip
    env = environment(GLOO_SOCKET_IFNAME=cable, TP_SOCKET_IFNAME=cable)
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=ROOT, start_new_session=True
    )


def test_two_hosts_work_together(namespaces):
    hosts = [host(namespaces[i], i, 0) for i in (0, 1)]
    outs = [h.communicate(timeout=200) for h in hosts]
    assert [h.returncode for h in hosts] == [0, 0], outs
    assert "step 3: 2 ranks" in outs[0][0]


def test_the_loss_of_a_host_ends_the_other_with_a_reason(namespaces):
    hosts = [host(namespaces[i], i, 1.0) for i in (0, 1)]
    seen = [hosts[0].stdout.readline() for _ in range(2)]
    assert "step 1: 2 ranks" in seen[1], (seen, hosts[0].stderr.read() if hosts[0].poll() is not None else "")
    # The whole session of the second host: launcher and rank.
    pids = subprocess.run(["ip", "netns", "pids", namespaces[1][0]], capture_output=True, text=True).stdout.split()
    for pid in pids:
        os.kill(int(pid), signal.SIGKILL)
    start = time.monotonic()
    out, err = hosts[0].communicate(timeout=150)
    hosts[1].communicate(timeout=30)
    assert time.monotonic() - start < 120
    assert hosts[0].returncode != 0 and "complete" not in out
    assert "another rank was lost or hangs" in err or "has lasted" in err, err[-3000:]
