"""The contract that both engines, all tasks and every measure speak: data, interfaces, errors."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minivapo.errors import NonFiniteError as NonFiniteError
from minivapo.errors import UserError as UserError

if TYPE_CHECKING:  # the algorithm itself runs without transformers
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Problem:
    """One verifiable question."""

    prompt: str
    """Text given to the policy."""
    answer: str
    """Gold answer, for the verifier."""
    id: str
    """Unique key."""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any], compare=False)
    """What else the task knows of it, for its own `judge`: test cases, a level, a source."""


@dataclass(frozen=True)
class Sample:
    """One response as sampled."""

    tokens: list[int]
    """Token ids, EOS included when there is one; never empty."""
    logprobs: list[float]
    """log π(token | prefix) of the untempered, untruncated policy at sampling time, in nats."""
    terminated: bool
    """True if it ended by EOS or a stop string; False if the length limit cut it (truncated)."""


@dataclass
class Rollout:
    """Responses of one rank, one row each: prompt, response, padding.

    Column t of a [batch, time] tensor speaks of tokens[:, t]; all but `tokens` hold something on response
    tokens alone. Rows of one prompt stand together until the engine balances them over the ranks.
    """

    tokens: Int[Tensor, "batch time"]
    """Token ids."""
    mask: Bool[Tensor, "batch time"]
    """True on response tokens (EOS included) of rows that were judged: those that enter a loss."""
    sampled_logprobs: Float[Tensor, "batch time"]
    """log π(tokens[t] | tokens[<t]) as the sampler computed it, in nats."""
    rewards: Float[Tensor, "batch time"]
    """r_t: the response's reward on its last token, 0 elsewhere."""
    lengths: Int[Tensor, " batch"]
    """Response tokens."""
    totals: Int[Tensor, " batch"]
    """Prompt and response tokens."""
    terminated: Bool[Tensor, " batch"]
    """It ended by EOS or a stop string; False: the length limit cut it (truncated)."""
    correct: Bool[Tensor, " batch"]
    """The verifier called it right."""
    judged: Bool[Tensor, " batch"]
    """False where the verifier itself failed: such a row is masked out of every loss."""
    group: Int[Tensor, " batch"]
    """Number of the prompt in the stream of training prompts."""
    number: Int[Tensor, " batch"]
    """Place in the rollout over all ranks, shuffled: mini-batch k has the numbers k · mini_batch and following."""
    problems: list[Problem] = field(default_factory=list[Problem])
    """One for each row, or empty where nobody asks for them."""
    mixed: Tensor | None = None
    """[batch], bool: the row's group has right and wrong responses."""
    outcome: Tensor | None = None
    """[batch]: the reward against those of the row's group, see `minivapo.vapo.group_advantages`."""
    old_logprobs: Tensor | None = None
    """[batch, time]: log π(tokens[t] | tokens[<t]) of the learner before the update, in nats."""
    entropy: Tensor | None = None
    """[batch, time]: entropy of the policy where tokens[t] was chosen, in nats."""
    ref_logprobs: Tensor | None = None
    """[batch, time]: log π_ref of the tokens, in nats; None unless kl_coef > 0."""
    values: Tensor | None = None
    """[batch, time]: V(s_t) with s_t = tokens[<t], in reward units; None without a critic."""
    advantages: Tensor | None = None
    """[batch, time]: Â_t."""
    returns: Tensor | None = None
    """[batch, time]: the critic's targets; None without a critic."""
    lam: Tensor | None = None
    """[batch]: λ of the policy's advantages; None for group advantages."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        if not len(self):
            return "Rollout(no responses)"
        lengths = f"{int(self.lengths.min())} to {int(self.lengths.max())} tokens"
        right = f"{100 * float(self.correct.float().mean()):.1f} % right"
        return f"Rollout({len(self)} responses, {lengths}, {right})"

    def rows(self, index: Sequence[int] | Tensor) -> Rollout:
        """These rows, in this order, without columns in which all of them are padding."""
        index = torch.as_tensor(index, dtype=torch.long)
        width = int(self.totals[index].max()) if len(index) else 0
        parts: dict[str, Any] = {"problems": [self.problems[int(i)] for i in index] if self.problems else []}
        for f in dataclasses.fields(self):
            x = getattr(self, f.name)
            if isinstance(x, Tensor):
                parts[f.name] = x[index, :width] if x.ndim == 2 else x[index]
        return Rollout(**parts)

    @property
    def last(self) -> Int[Tensor, " batch"]:
        """Column of the last response token."""
        return self.totals - 1


def make_rollout(
    prompts: Sequence[Sequence[int]],
    samples: Sequence[Sample],
    group: Sequence[int],
    pad: int,
    verdicts: Sequence[bool | None] | None = None,
) -> Rollout:
    """Pads prompts and their responses into a rollout without rewards.

    Args:
        prompts: token ids, one prompt for each sample.
        samples: the responses.
        group: number of each row's prompt in the stream.
        pad: the padding id.
        verdicts: on each response; None where the verifier failed. Without verdicts all are wrong.
    """
    verdicts = [False] * len(samples) if verdicts is None else verdicts
    judged = torch.tensor([v is not None for v in verdicts], dtype=torch.bool)
    totals = torch.tensor([len(p) + len(s.tokens) for p, s in zip(prompts, samples, strict=True)])
    lengths = torch.tensor([len(s.tokens) for s in samples])
    shape = (len(samples), int(totals.max()))
    tokens = torch.full(shape, pad)
    logprobs = torch.zeros(shape)
    for i, (prompt, sample) in enumerate(zip(prompts, samples, strict=True)):
        tokens[i, : totals[i]] = torch.tensor([*prompt, *sample.tokens])
        logprobs[i, len(prompt) : totals[i]] = torch.tensor(sample.logprobs)
    t = torch.arange(shape[1])
    mask = (t >= (totals - lengths)[:, None]) & (t < totals[:, None]) & judged[:, None]
    return Rollout(
        tokens=tokens,
        mask=mask,
        sampled_logprobs=logprobs,
        rewards=torch.zeros(shape),
        lengths=lengths,
        totals=totals,
        terminated=torch.tensor([s.terminated for s in samples]),
        correct=torch.tensor([v is True for v in verdicts], dtype=torch.bool),
        judged=judged,
        group=torch.tensor(list(group)),
        number=torch.arange(shape[0]),
    )


def join(parts: Sequence[Rollout], pad: int) -> Rollout:
    """One rollout of the rows of all parts, in order, padded to the longest."""
    width = max(p.tokens.shape[1] for p in parts)
    columns: dict[str, Any] = {}
    for f in dataclasses.fields(Rollout):
        xs: list[Any] = [getattr(p, f.name) for p in parts]
        if f.name == "problems":
            columns[f.name] = [problem for x in xs for problem in x]
        elif xs[0] is not None:
            fill = pad if f.name == "tokens" else 0
            xs = [nn.functional.pad(x, (0, width - x.shape[1]), value=fill) if x.ndim == 2 else x for x in xs]
            columns[f.name] = torch.cat(xs)
    return Rollout(**columns)


def derive_seed(*key: object) -> int:
    """A 63-bit seed that depends on every part of the key, the same on every machine.

    All randomness is drawn from generators seeded so; no random state has to be saved with a checkpoint.
    """
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest()) >> 1


# ---------------------------------------------------------------------------------------------------------
# Task, sampler, learners, world: what the loop runs on
# ---------------------------------------------------------------------------------------------------------

Metrics = dict[str, float]
Outputs = dict[str, Tensor]
LossFn = Callable[[Outputs, Rollout], tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]]
"""(outputs, rows) -> (loss, sums, maxima): loss and sums add over micro-batches, maxima are maximised."""


class Gae(Protocol):
    """The signature of `minivapo.vapo.gae`."""

    def __call__(
        self,
        rewards: Tensor,
        values: Tensor,
        mask: Tensor,
        gamma: float = 1.0,
        lam: float | Tensor = 1.0,
    ) -> Tensor:
        """Advantages [batch, time]."""
        ...


class Task(Protocol):
    """Where prompts come from and who judges the responses.

    For people it may also have `about`, a sentence or two on what is asked, and `example()`, a problem and a right
    response; for the explorer `first_error(problem, words)`, the place of a response's first error.
    """

    name: str
    stop: tuple[str, ...]
    """Strings that end a response besides EOS."""

    def train_problems(self, start: int, count: int, seed: int) -> list[Problem]:
        """Problems number start … start + count − 1 of an endless stream fixed by seed, none held out."""
        ...

    def test_problems(self, count: int | None = None) -> list[Problem]:
        """The first `count` held-out problems, in a fixed order."""
        ...

    def judge(self, problems: Sequence[Problem], responses: Sequence[str]) -> Sequence[float | None]:
        """True or False by the final answer alone, or a score in [0, 1]; None where the verifier itself failed.

        A score is the share of the way from the reward of a wrong response to that of a correct one. It counts as
        correct from the task's `correct_from`, or 0.5 where it has none.
        """
        ...


class Learner(Protocol):
    """A network with its optimizer: the actor (outputs logprobs, entropy) or the critic (values, scores)."""

    version: int
    """Optimizer steps taken."""

    def forward(self, rollout: Rollout) -> Outputs:
        """Outputs [batch, time] for this rank's rows, without gradient; `scores` is V *after* each token."""
        ...

    def step(self, rollout: Rollout, loss_fn: LossFn, lr: float) -> tuple[Metrics, Metrics]:
        """One optimizer step on this rank's rows of a mini-batch, if any; the gradient is summed over ranks.

        Returns the sums and maxima of loss_fn over this rank's micro-batches; the maxima also hold the
        global `grad_norm`. Raises NonFiniteError, leaving the weights alone, if the gradient is not finite.
        """
        ...

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Name and whole tensor of every parameter; all ranks exhaust it together."""
        ...

    def save(self, folder: Path) -> None:
        """Writes weights and optimizer."""
        ...

    def load(self, folder: Path) -> None:
        """Takes back what `save` wrote."""
        ...


class Sampler(Protocol):
    """Generates from the actor's weights of the last `sync`."""

    max_new_tokens: int
    """Length limit of a response."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        seed: int,
        version: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> list[Sample]:
        """n responses for each prompt, those of one prompt together; at temperature 0 the likeliest token each time.

        Raises RuntimeError if `version` is not the version of the weights it holds.
        """
        ...

    def sync(self, actor: Learner) -> None:
        """Takes over the actor's weights."""
        ...


class World:
    """One process. `scaled` has one over torch.distributed with the same methods."""

    rank = 0
    size = 1

    def sum(self, x: Tensor) -> Tensor:
        """Sum over ranks."""
        return x

    def max(self, x: Tensor) -> Tensor:
        """Maximum over ranks."""
        return x


@dataclass
class Progress:
    """Where a run stands; saved with the weights, so that a resumed run goes on as if never stopped."""

    lines: int = 0
    """Metrics yielded so far."""
    step: int = 0
    """Rollouts trained on."""
    prompts: int = 0
    """Training prompts drawn so far."""
    samples: int = 0
    """Responses sampled for training so far, value-pretraining included."""
    reward_model: int = 0
    """Rollouts that the reward model was trained on."""
    pretrain: int = 0
    """Rollouts of value-pretraining."""
    pretrain_best: float = -math.inf
    """Best explained variance in value-pretraining."""
    pretrain_stale: int = 0
    """Rollouts since it rose."""
    pretrain_done: bool = False


class Engine(Protocol):
    """What `train` runs on: `LocalEngine` on one device, `ScaledEngine` on a cluster."""

    progress: Progress
    rollout: Rollout | None
    """The last rollout, for those who watch."""
    evaluated: Sequence[Any]
    """This rank's responses (`minivapo.responses.Response`) in the last evaluation, for those who watch."""

    @property
    def config(self) -> object:
        """The `minivapo.vapo.Config` it was built for."""
        ...

    @property
    def world(self) -> World:
        """The ranks."""
        ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The policy's."""
        ...

    @property
    def sampler(self) -> Sampler:
        """Generates from the actor's weights."""
        ...

    @property
    def actor(self) -> Learner:
        """The policy π."""
        ...

    @property
    def critic(self) -> Learner | None:
        """The value model V; None for group advantages."""
        ...

    @property
    def reference(self) -> Learner | None:
        """The policy that training started from; None unless kl_coef > 0."""
        ...

    @property
    def gae(self) -> Gae:
        """How it computes `minivapo.vapo.gae`: by that function, or by one with the same answer."""
        ...

    def balance(self, rollout: Rollout, mini_batch: int) -> Rollout:
        """The rows that this rank holds from now on: each rank has the same work in every mini-batch. Called once."""
        ...

    def metrics(self) -> Metrics:
        """What this engine adds to the metrics of the step just taken; the same numbers on every rank."""
        ...

    def save(self, folder: Path) -> None:
        """Writes weights, optimizers and progress."""
        ...

    def load(self, folder: Path) -> None:
        """Takes them back."""
        ...
