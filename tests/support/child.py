"""Training in a process of its own, which may end itself by SIGKILL at the n-th operation on files."""

import multiprocessing
import os
import resource
import signal
import sys
from pathlib import Path

OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}

# A server process imports torch once; every child is a fork of it, made before any thread or autograd state exists.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    [
        *(
            "minivapo.local",
            "minivapo.runs.training",
            "minivapo.tasks",
            "minivapo.cli",
            "minivapo.show.live",
            "minivapo.show.report",
        ),
        *("tyro", "pytest", "transformers.models.llama.modeling_llama", "deepspeed"),
    ]
)


def start(function, *args):
    """A started child process."""
    process = context.Process(target=function, args=args)
    process.start()
    return process


def finish(function, *args):
    """The exit code of a child process; negative if a signal ended it."""
    process = start(function, *args)
    process.join(240)
    assert process.exitcode is not None, "the child hangs"
    return process.exitcode


def train_child(run: Path, model: Path, task, config, kill_at: int, save_every: int) -> None:
    """Starts or resumes a run; with kill_at > 0 it dies at that operation; counts them in `run`.operations."""
    import torch

    from minivapo.local import LocalEngine
    from minivapo.runs.folder import write_config
    from minivapo.runs.training import run_training

    torch.set_num_threads(1)
    resume = (run / "config.json").exists()
    if not resume:
        write_config(run, config, {})
    engine = LocalEngine(model, config)
    seen = 0

    def hook(event, args):
        nonlocal seen
        if event in OPERATIONS and (event != "open" or str(run) in str(args[0])):
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    for _ in run_training(config, task, engine, run, resume=resume, save_every=save_every):
        pass
    run.with_suffix(".operations").write_text(str(seen))


def command_child(argv: list[str], stderr: Path, file_limit: int | None = None) -> None:
    """`minivapo …` with standard error in a file; no file may grow beyond file_limit bytes, as on a full disk."""
    import torch

    from minivapo.cli import main

    torch.set_num_threads(1)
    if file_limit is not None:
        sys.dont_write_bytecode = True  # Python would leave cut .pyc files behind, for everyone
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    with stderr.open("w") as sys.stderr:
        code = main(argv)
        sys.stderr.flush()
    os._exit(code)
