"""The map of VAPO: one sweep for each technique, from where it cannot matter to where theory says it must."""

from __future__ import annotations

from minivapo.study.sweeps.group_sampling import GROUP_SAMPLING
from minivapo.study.sweeps.machinery import Sweep
from minivapo.study.sweeps.rare_choice import CLIP_HIGHER, POSITIVE_LOSS
from minivapo.study.sweeps.token_loss import TOKEN_LOSS

SWEEPS: dict[str, Sweep] = {s.name: s for s in (TOKEN_LOSS, CLIP_HIGHER, POSITIVE_LOSS, GROUP_SAMPLING)}
"""Name -> sweep, the cheapest and most decisive first."""
