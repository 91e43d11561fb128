"""A job in which rank 1 dies, freezes, hangs, runs out of memory or fails at its third step; see test_faults.py.

fault_worker.py CASE TIMEOUT_SECONDS [PAUSE [RUN]]
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch

from minivapo.interfaces import NonFiniteError, UserError
from scaled.faults import farewell, one_line_end, start_watchdog, tick, write_failures_to
from scaled.world import join

case, timeout = sys.argv[1], float(sys.argv[2])
pause = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
rank = int(os.environ["RANK"])
with one_line_end(rank):
    world = join(max(timeout * 4 / 60, 1.0))
    start_watchdog(timeout, rank, world.size, silence=8)
    if len(sys.argv) > 4:
        write_failures_to(Path(sys.argv[4]))
    for step in range(40 if pause else 4):
        tick(f"step {step}")
        time.sleep(pause)
        if step == 2 and rank == 1:
            if case == "die" or (case == "die-once" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"):
                os.kill(os.getpid(), signal.SIGKILL)
            if case == "frozen":
                os.kill(os.getpid(), signal.SIGSTOP)
            if case == "alone":
                raise UserError("a prompt has 9999 tokens; 1 to 512 are allowed.")
            if case == "full":
                Path("/dev/full").write_text("no room")
            if case == "hang":
                time.sleep(10_000)
            if case == "memory":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            if case == "bug":
                raise ZeroDivisionError("a bug\nwith two lines")
        if case == "clock":  # it jumps by two days every step, ahead and back
            time.time = lambda step=step: time.monotonic() + 86400 * (-1) ** step
        if step == 2 and case == "nonfinite":
            raise NonFiniteError("actor: loss nan, gradient norm inf; the step was refused.")
        if step == 2 and case == "user":
            raise UserError("mini_batch is 7; it must divide batch_size 8.")
        total = world.sum(torch.ones(1))
        if rank == 0:
            print(f"step {step}: {total.item():.0f} ranks", flush=True)
    farewell()
print("complete", flush=True)
os._exit(0)  # as scaled.train: threads that still speak with the store could abort a normal exit
