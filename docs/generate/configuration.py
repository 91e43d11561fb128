"""docs/configuration.md: every field of the two configurations, from their dataclasses."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

from minivapo.options.fields import Entry, reference
from minivapo.vapo import PRESETS, Config
from scaled.config import Settings

DOCS = Path(__file__).parents[1]
HEAD = """# Configuration: every field

`Config` decides what is computed, on a laptop and on a cluster alike. `Settings` says how a cluster carries it out and
changes no result. Each field is a flag (`actor_lr` is `--actor-lr 1e-4`; a switch such as `whiten` is `--whiten` or
`--no-whiten`) and a key of a YAML file that `--config` takes; a flag overrules the file, and the file overrules the
preset. A value outside its range ends in one line before anything is loaded.

This page is generated from the code by `python docs/generate/write.py`.
"""


def cell(text: str) -> str:
    """Text that a table cell can hold."""
    return text.replace("|", r"\\|")


def kind(entry: Entry) -> str:
    """The type of a field, with its range."""
    name = {"str": "text", "bool": "switch"}.get(entry.type, entry.type)
    return f"{name}, {entry.range}" if entry.range else name


def default(entry: Entry) -> str:
    """A default as a flag spells it."""
    return {"True": "on", "False": "off"}.get(entry.default, entry.default)


def tables(of: type) -> list[str]:
    """One table for each group of fields."""
    lines = []
    for group, entries in itertools.groupby(reference(of), lambda entry: entry.group):
        lines += [f"### {group.partition(':')[0]}", ""] if group else []
        lines += ["| field | type, range | default | what it is | paper |", "|---|---|---|---|---|"]
        lines += [
            f"| `{e.name}` | {cell(kind(e))} | {default(e)} | {cell(e.text)} | {cell(e.section)} |" for e in entries
        ]
        lines.append("")
    return lines


def presets() -> list[str]:
    """What each preset changes in the defaults."""
    lines = ["| preset | differs from `vapo` in |", "|---|---|"]
    for name, config in PRESETS.items():
        changed = [
            f"`{f.name}` {getattr(config, f.name)}"
            for f in dataclasses.fields(Config)
            if getattr(config, f.name) != f.default
        ]
        lines.append(f"| `{name}` | {', '.join(changed) or 'nothing: its values are the defaults below'} |")
    return lines


def pages() -> dict[Path, str]:
    """The page of both configurations."""
    lines = [HEAD, "## Presets", "", *presets(), ""]
    lines += ["## `minivapo.vapo.Config`: the algorithm", "", *tables(Config)]
    lines += ["## `scaled.config.Settings`: the cluster", "", *tables(Settings)]
    return {DOCS / "configuration.md": "\n".join(lines).rstrip() + "\n"}
