"""A process that makes reasoning-gym's problems and scores answers to them; started by `minivapo.tasks.reasoning_gym`.

It is run as a script and imports nothing of ours. First line in: `{"name", "options", "time_limit", "memory_limit"}`;
first line out: `{"ready": true}` or `{"error", "names" or "options"}`. Then a line for each request: `[index]` is
answered by `{"question", "answer"}`, `[index, text]` by `{"score"}`, and whatever raises by `{"error"}`.

Some of the package's scorers evaluate the text that they judge. So once the package is loaded, nothing here may write a
file, start a program or open a connection: enough against what a language model writes, not against an attacker.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import json
import os
import resource
import signal
import sys
from typing import Any

REMEMBERED = 4096
"""Problems kept for their verdicts; an older one is made again from its index."""
FORBIDDEN = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "tempfile.", "webbrowser.", "pty.")
HARMLESS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk")


def load(name: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(generator, {}) or (None, reply that says why there is none)."""
    from reasoning_gym.factory import DATASETS, create_dataset

    if name not in DATASETS:
        return None, {"error": "unknown", "names": sorted(DATASETS)}
    fields = sorted(field.name for field in dataclasses.fields(DATASETS[name][1]))
    if not set(options) <= set(fields):
        return None, {"error": "option", "options": fields}
    return create_dataset(name, **({"seed": 0} | options)), {}


def make(generator: Any, index: int) -> dict[str, Any]:
    """Problem number `index` with all that its scorer needs; a finite generator begins again at its end."""
    try:
        return generator[index]
    except IndexError:
        return generator[index % len(generator)]


def guard(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: refuses what no scorer needs."""
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or (event.startswith(FORBIDDEN) and event not in HARMLESS):
        raise PermissionError(f"{event} is not allowed here")


def main() -> None:
    """Answers requests until the other side is gone."""
    replies = os.fdopen(os.dup(1), "w")  # ours alone: what a scorer prints must not be taken for its verdict
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    settings = json.loads(sys.stdin.readline())
    resource.setrlimit(resource.RLIMIT_AS, (settings["memory_limit"],) * 2)
    entries: collections.OrderedDict[int, dict[str, Any]] = collections.OrderedDict()

    def reply(answer: dict[str, Any]) -> None:
        replies.write(json.dumps(answer) + "\n")
        replies.flush()

    try:
        generator, refusal = load(settings["name"], settings["options"])
    except Exception as error:
        generator, refusal = None, {"error": f"{type(error).__name__}: {error}"}
    reply(refusal or {"ready": True})
    if generator is None:
        return
    timer = signal.setitimer
    sys.dont_write_bytecode = True
    sys.addaudithook(guard)
    for line in sys.stdin:
        index, *text = json.loads(line)
        timer(signal.ITIMER_PROF, settings["time_limit"])  # of processor time; the signal ends this process
        try:
            if index not in entries:
                entries[index] = make(generator, index)
                if len(entries) > REMEMBERED:
                    entries.popitem(last=False)
            entry = entries[index]
            if text:
                with contextlib.redirect_stderr(io.StringIO()):
                    answer = {"score": float(generator.score_answer(text[0], entry))}
            else:
                answer = {"question": str(entry["question"]), "answer": str(entry["answer"] or "")}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        timer(signal.ITIMER_PROF, 0)
        reply(answer)


if __name__ == "__main__":
    main()
