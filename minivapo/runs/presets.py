"""Presets by name: the paper's, and those of a user's own code."""

from __future__ import annotations

import dataclasses

from minivapo.errors import UserError
from minivapo.options.embedded import fitted
from minivapo.tasks import custom
from minivapo.vapo import PRESETS, Config


def find_preset(name: str) -> Config:
    """The configuration that a name stands for.

    Args:
        name: one of `minivapo.vapo.PRESETS`, or FILE.py:NAME or PACKAGE.MODULE:NAME of a `Config` of the user's.

    Raises:
        UserError: there is none, or the user's code fails.
    """
    if name in PRESETS:
        return PRESETS[name]
    own = custom.split(name)
    if own is None:
        raise UserError(f"there is no preset '{name}'; choose one of {', '.join(PRESETS)}, or FILE.py:NAME.")
    where, what = own
    config = getattr(custom.load_module(where), what, None)
    if not isinstance(config, Config):
        raise UserError(f"{where} has no Config '{what}'; a preset is named FILE.py:NAME or PACKAGE.MODULE:NAME.")
    return config


def preset_for(name: str, task: str, critic: bool = False) -> Config:
    """A preset with what an embedded task changes in it (`minivapo.options.embedded`).

    Of a user's own preset that leaves alone what is not as it is by default: it was chosen.

    Args:
        name: see `find_preset`.
        task: its name.
        critic: whether the critic that comes with the task's base may take the place of value-pretraining.

    Raises:
        UserError: see `find_preset`.
    """
    config, default = find_preset(name), Config()
    if name in PRESETS:
        return fitted(config, task, critic)
    chosen = {f.name: getattr(config, f.name) for f in dataclasses.fields(Config)}
    chosen = {field: value for field, value in chosen.items() if value != getattr(default, field)}
    return dataclasses.replace(fitted(config, task, critic and "critic_init" not in chosen), **chosen)


def preset_label(name: str) -> str:
    """A preset's name for a folder: without the path of its code."""
    own = None if name in PRESETS else custom.split(name)
    return own[1].lower() if own else name
