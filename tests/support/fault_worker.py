"""A job in which rank 1 dies, hangs, runs out of memory or fails at its third step; see test_faults.py.

fault_worker.py CASE TIMEOUT_SECONDS [PAUSE]
"""

import os
import signal
import sys
import time

import torch

from minivapo.interfaces import NonFiniteError, UserError
from scaled.faults import one_line_end, start_watchdog, tick
from scaled.world import join

case, timeout = sys.argv[1], float(sys.argv[2])
pause = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
rank = int(os.environ["RANK"])
with one_line_end(rank):
    world = join(max(timeout * 4 / 60, 1.0))
    start_watchdog(timeout, rank)
    for step in range(40 if pause else 4):
        tick(f"step {step}")
        if step == 2 and rank == 1:
            if case == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if case == "hang":
                time.sleep(10_000)
            if case == "memory":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            if case == "bug":
                raise ZeroDivisionError("a bug\nwith two lines")
        if step == 2 and case == "nonfinite":
            raise NonFiniteError("actor: loss nan, gradient norm inf; the step was refused.")
        if step == 2 and case == "user":
            raise UserError("mini_batch is 7; it must divide batch_size 8.")
        total = world.sum(torch.ones(1))
        if rank == 0:
            print(f"step {step}: {total.item():.0f} ranks", flush=True)
        time.sleep(pause)
print("complete", flush=True)
