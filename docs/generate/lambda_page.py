"""docs/lambda.md: what λ and α mean for the lengths of one's own responses, computed by `length_adaptive_lambda`."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from minivapo.vapo import length_adaptive_lambda

DOCS = Path(__file__).parents[1]
LENGTHS = (20, 50, 100, 320, 1_000, 5_000, 20_000)
ALPHAS = (0.05, 0.3, 1.0)
TEXT = """# What λ and α mean for your lengths

A verdict comes at the end of a response, and the advantage of a token hears of it through GAE:

$$
\\hat A_t = \\sum_{{k \\ge 0}} (\\gamma\\lambda)^k \\, \\delta_{{t+k}}, \\qquad
\\delta_t = r_t + \\gamma V(s_{{t+1}}) - V(s_t).
$$

With $\\gamma = 1$ the verdict has the weight $\\lambda^k$ at the token $k$ places before the end. All that is missing
to 1 is the critic's opinion. So λ decides whom a token believes:

- **λ near 1**: the verdict. No bias, whatever the critic thinks, but much noise: one verdict for thousands of tokens.
- **λ near 0**: the critic. Little noise, but an error of the critic is an error of the advantage.

A fixed λ has a fixed reach, the *horizon* $1/(1-\\lambda)$: 20 tokens for λ = 0.95, whether the response has 50 or
20,000. VAPO makes the horizon a share α of the length $l$ (§4.2, eq. 4-5):

$$ \\lambda = 1 - \\frac{{1}}{{\\alpha\\, l}} \\quad\\Longrightarrow\\quad \\frac{{1}}{{1-\\lambda}} = \\alpha\\, l . $$

## In numbers

λ, and behind it after how many tokens half of the verdict's weight is gone:

{table}

The last row is the weight of the verdict at the *first* token of a long response. It tends to $e^{{-1/\\alpha}}$ and
does not depend on the length: with the paper's α = 0.05 early tokens learn from the critic alone, at any length. That
is why value-pretraining comes first.

## What to choose

- **Thousands of tokens and a pretrained critic**: the paper's regime. Keep α = 0.05.
- **Below 1/α tokens** (20 for α = 0.05) λ would be negative; it is set to 0 here, and the advantage of a token is
  $r_t + V(s_{{t+1}}) - V(s_t)$: the critic's word and nothing else.
- **A hundred tokens**, as in the embedded tasks: α = 0.05 looks {horizon:.0f} tokens ahead. Measured on `chain`, that
  was *too short*: λ = 0.95 made smaller errors ([the mechanisms by
  themselves](results.md#the-mechanisms-by-themselves)).
- **Look before you choose**: `value/explained_variance` near 0 says that the critic knows little, so a larger α
  listens more to verdicts; the [token explorer](start.md) shows the advantages of a real response while you move α.

For your own lengths:

```python
import torch
from minivapo.vapo import length_adaptive_lambda

lengths = torch.tensor([80, 400, 2000])  # tokens
print(length_adaptive_lambda(lengths, alpha=0.05))  # {example}
```

λ of the critic's *targets* is another matter: `lam_critic` is 1 (Decoupled-GAE, §4.1), so the critic learns from
verdicts alone, however long the response."""


def half_life(lam: float) -> str:
    """After how many tokens half of the verdict's weight is gone."""
    return "at once" if lam == 0 else f"{math.log(0.5) / math.log(lam):,.1f}"


def table() -> str:
    """λ and its reach for some lengths and α."""
    lengths = torch.tensor(LENGTHS)
    columns = {alpha: length_adaptive_lambda(lengths, alpha).double().tolist() for alpha in ALPHAS}
    lines = ["| tokens | " + " | ".join(f"α = {alpha:g}" for alpha in ALPHAS) + " |", "|--:" * (1 + len(ALPHAS)) + "|"]
    for i, length in enumerate(LENGTHS):
        cells = [f"{columns[alpha][i]:.5g} ({half_life(columns[alpha][i])})" for alpha in ALPHAS]
        lines.append(f"| {length:,} | {' | '.join(cells)} |")
    first = [f"{lam[-1] ** (LENGTHS[-1] - 1):.2g}" for lam in columns.values()]
    lines.append(f"| weight at the first of {LENGTHS[-1]:,} | {' | '.join(first)} |")
    return "\n".join(lines)


def pages() -> dict[Path, str]:
    """The page, with its numbers."""
    example = length_adaptive_lambda(torch.tensor([80, 400, 2000]), 0.05)
    return {DOCS / "lambda.md": TEXT.format(table=table(), horizon=0.05 * 100, example=example)}
