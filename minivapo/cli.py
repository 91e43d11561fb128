"""The command line: finds the command's module in `minivapo.commands`, and ends a mistake with one line."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence

from minivapo.errors import NonFiniteError, UsageError, UserError
from minivapo.show.text import print_anything

COMMANDS = {
    "train": "train a policy: embedded task and base by default, nothing to download",
    "eval": "RUN: mean pass rate over many samples, pass@k, interval; resumable",
    "sample": "RUN: show some responses, right and wrong",
    "ablate": "Table 1 in miniature: presets × seeds, intervals, figures",
    "sweep": "the map of VAPO: where each technique matters, one CSV a sweep",
    "report": "RUN…: one HTML file with curves and the token explorer",
    "watch": "RUN: follow a run from another terminal",
    "notebooks": "FOLDER: copy the notebooks there, one idea each",
    "make-base": "DIR: make an embedded base model from nothing",
    "reward-model": "DIR: train a reward model that a critic can start from",
}
"""Command -> what the help says; its module has the same name, with underscores."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; a mistake of the user's ends in one line and exit code 1 or 2."""
    if argv is None and not sys.warnoptions:  # libraries' notices to developers, unless -W or PYTHONWARNINGS asks
        warnings.simplefilter("ignore")
    print_anything()
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(help_text())
        return 0 if words else 2
    if words[0] == "--version":
        from minivapo import __version__

        print(__version__)
        return 0
    if words[0] not in COMMANDS:
        print(f"minivapo: there is no command '{words[0]}'; choose one of {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # accelerate loads DeepSpeed where it is installed, which then says what accelerator it would use.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    try:
        return run_command(words[0], words[1:])
    except (UserError, NonFiniteError) as error:
        print(f"minivapo: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        reason = f"{error.strerror or error}: {error.filename or ''}"
        print(f"minivapo: {reason}; what was saved before is intact.", file=sys.stderr)
    except ImportError as error:
        if "pip install" not in str(error):  # a bug of ours, not an extra that is not installed
            raise
        print(f"minivapo: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        again = "`minivapo train --resume RUN`" if words[0] == "train" else "the same command"
        print(f"minivapo: stopped; go on with {again}.", file=sys.stderr)
        return 130
    return 1


def run_command(name: str, words: Sequence[str]) -> int:
    """Reads the command's arguments and runs it."""
    from minivapo.options.parse import parse

    if name == "train" and not {"-h", "--help"} & set(words):
        print("MiniVAPO: starting …", flush=True)  # before torch, whose import takes seconds
    module = importlib.import_module(f"minivapo.commands.{name.replace('-', '_')}")
    read = getattr(module, "read", None)
    return module.run(read(words) if read else parse(module.Arguments, words, f"minivapo {name}"))


def help_text() -> str:
    """One line for each command."""
    lines = [f"  minivapo {name:<13} {text}" for name, text in COMMANDS.items()]
    end = "minivapo COMMAND --help explains each flag."
    return "\n".join(["MiniVAPO: VAPO in one readable file.", "", *lines, "", end])


if __name__ == "__main__":
    sys.exit(main())
