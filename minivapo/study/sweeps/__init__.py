"""The map of VAPO: one sweep for each technique, from where it cannot matter to where theory says it must."""

from __future__ import annotations

from minivapo.study.sweeps.decoupled_gae import DECOUPLED_GAE
from minivapo.study.sweeps.group_sampling import GROUP_SAMPLING
from minivapo.study.sweeps.length_adaptive import LENGTH_ADAPTIVE
from minivapo.study.sweeps.machinery import Sweep
from minivapo.study.sweeps.rare_choice import CLIP_HIGHER, POSITIVE_LOSS
from minivapo.study.sweeps.table import TABLE
from minivapo.study.sweeps.token_loss import SHARE_OF_LONG, TOKEN_LOSS
from minivapo.study.sweeps.value_model import VALUE_MODEL
from minivapo.study.sweeps.value_pretraining import VALUE_PRETRAINING

SWEEPS: dict[str, Sweep] = {
    s.name: s
    for s in (
        VALUE_MODEL,
        VALUE_PRETRAINING,
        DECOUPLED_GAE,
        LENGTH_ADAPTIVE,
        TOKEN_LOSS,
        SHARE_OF_LONG,
        CLIP_HIGHER,
        POSITIVE_LOSS,
        GROUP_SAMPLING,
    )
}
"""Name -> sweep, in the order of the paper: the value side, then the loss side."""

STUDIES = SWEEPS | {TABLE.name: TABLE}
"""All that `minivapo sweep` runs: the map, and Table 1 at one of its points."""
