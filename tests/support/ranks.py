"""Ranks as forks of one process that has imported DeepSpeed and vLLM: every rank would spend 6 to 20 s of CPU on it.

ranks.py    reads jobs from standard input and answers each with the exit code of its first rank that failed, or 0:
            lines of JSON, {"script": FILE.py or MODULE, "words": […], "ranks": 2, "log": …, "env": {…}}, {"code": 0}.
"""

import json
import os
import runpy
import signal
import sys
import traceback

import vllm.v1.engine.llm_engine
import vllm.v1.worker.cpu_worker  # noqa: F401

import scaled.engine
import scaled.learner
import scaled.sampler
import scaled.world


def rank_main(rank: int, job: dict, port: int) -> None:
    """In a fork: becomes `python SCRIPT WORDS…`, or `-m MODULE`, as a launcher would have started it. Never returns."""
    with open(job["log"], "ab", buffering=0) as log, open(os.devnull, "rb") as nothing:
        for target, source in ((0, nothing), (1, log), (2, log)):
            os.dup2(source.fileno(), target)
    os.environ |= {
        **dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)),
        **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(job["ranks"])),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **job["env"],
    }
    sys.argv = [job["script"], *job["words"]]
    code = 1
    try:
        if job["script"].endswith(".py"):
            sys.path.insert(0, os.path.dirname(job["script"]))
            runpy.run_path(job["script"], run_name="__main__")
        else:
            runpy.run_module(job["script"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        print("" if isinstance(end.code, int | None) else end.code, file=sys.stderr)
    except BaseException:  # whatever it is: a fork must end here, not go on as the server
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(job: dict) -> int:
    """Starts the ranks and waits for them; where one fails the others end."""
    port, ranks, failed = scaled.world.free_port(), set(), 0
    for rank in range(job["ranks"]):
        process = os.fork()
        if process == 0:
            rank_main(rank, job, port)
        ranks.add(process)
    while ranks:
        process, status = os.waitpid(-1, 0)
        ranks.discard(process)
        code = os.waitstatus_to_exitcode(status)
        if code and not failed:
            failed = code
            for other in ranks:
                os.kill(other, signal.SIGKILL)
    return failed


for line in sys.stdin:
    print(json.dumps({"code": run(json.loads(line))}), flush=True)
