"""Problems, responses and rollouts: the data that the loop passes around, and how text becomes tokens."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class UserError(ValueError):
    """Something the user can mend; its text says what was wrong, what was expected and what to do."""


class NonFiniteError(RuntimeError):
    """A loss or gradient was NaN or infinite: the step was refused and the weights are as before it."""


@dataclass(frozen=True)
class Problem:
    """One verifiable question."""

    prompt: str
    """Text given to the policy."""
    answer: str
    """Gold answer, for the verifier."""
    id: str
    """Unique key."""


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
    """Responses of one rank, one row each. Column t of a [batch, time] tensor speaks of tokens[:, t].

    A row is prompt, response, padding. `mask` is 1 on response tokens (EOS included) and 0 elsewhere.
    logprobs[:, t] is log π(tokens[t] | tokens[<t]) and values[:, t] is V(s_t), s_t = tokens[<t].
    Rows of one prompt stand together.
    """

    tokens: Int[Tensor, "batch time"]
    mask: Bool[Tensor, "batch time"]
    sampled_logprobs: Float[Tensor, "batch time"]
    rewards: Float[Tensor, "batch time"]
    lengths: Int[Tensor, " batch"]
    """Response tokens."""
    totals: Int[Tensor, " batch"]
    """Prompt and response tokens."""
    terminated: Bool[Tensor, " batch"]
    correct: Bool[Tensor, " batch"]
    judged: Bool[Tensor, " batch"]
    """False where the verifier itself failed: such a row is masked out of every loss."""
    group: Int[Tensor, " batch"]
    """Number of the prompt in the stream of training prompts."""
    problems: list[Problem] = field(default_factory=list)
    """One for each row; empty in parts of a rollout made by `rows`."""
    old_logprobs: Tensor | None = None
    entropy: Tensor | None = None
    ref_logprobs: Tensor | None = None
    values: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None
    lam: Tensor | None = None
    """λ of the policy's advantages for each row; None for group advantages."""

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, index: Sequence[int] | Tensor) -> Rollout:
        """These rows, in this order, without columns in which all of them are padding."""
        index = torch.as_tensor(index)
        width = int(self.totals[index].max())
        parts = {}
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
    prompts: Sequence[Sequence[int]], samples: Sequence[Sample], group: Sequence[int], pad: int
) -> Rollout:
    """Pads prompts and their responses (one prompt for each sample) into a rollout without rewards."""
    totals = torch.tensor([len(p) + len(s.tokens) for p, s in zip(prompts, samples, strict=True)])
    lengths = torch.tensor([len(s.tokens) for s in samples])
    shape = (len(samples), int(totals.max()))
    tokens = torch.full(shape, pad)
    logprobs = torch.zeros(shape)
    for i, (prompt, sample) in enumerate(zip(prompts, samples, strict=True)):
        tokens[i, : totals[i]] = torch.tensor([*prompt, *sample.tokens])
        logprobs[i, len(prompt) : totals[i]] = torch.tensor(sample.logprobs)
    t = torch.arange(shape[1])
    mask = (t >= (totals - lengths)[:, None]) & (t < totals[:, None])
    return Rollout(
        tokens=tokens,
        mask=mask,
        sampled_logprobs=logprobs,
        rewards=torch.zeros(shape),
        lengths=lengths,
        totals=totals,
        terminated=torch.tensor([s.terminated for s in samples]),
        correct=torch.zeros(shape[0], dtype=torch.bool),
        judged=torch.ones(shape[0], dtype=torch.bool),
        group=torch.tensor(list(group)),
    )


def join(parts: Sequence[Rollout], pad: int) -> Rollout:
    """One rollout of the rows of all parts, in order, padded to the longest."""
    width = max(p.tokens.shape[1] for p in parts)
    columns = {}
    for f in dataclasses.fields(Rollout):
        xs = [getattr(p, f.name) for p in parts]
        if f.name == "problems":
            columns[f.name] = [problem for x in xs for problem in x]
        elif xs[0] is not None:
            fill = pad if f.name == "tokens" else 0
            xs = [nn.functional.pad(x, (0, width - x.shape[1]), value=fill) if x.ndim == 2 else x for x in xs]
            columns[f.name] = torch.cat(xs)
    return Rollout(**columns)


def judge(task: Any, problems: Sequence[Problem], responses: Sequence[str], timeout: float) -> list[bool | None]:
    """The task's verdicts, in bounded time whatever its verifier does.

    Args:
        task: whose `judge` is called, in a thread of its own.
        problems, responses: one problem for each response.
        timeout: seconds that the whole batch may take.

    Raises:
        UserError: the verifier raised, took too long, or gave another number of verdicts.
    """
    outcome: list[Any] = []

    def call() -> None:
        try:
            outcome.append(task.judge(problems, responses))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=call, daemon=True)  # a verifier that hangs does not keep the process alive
    thread.start()
    thread.join(timeout)
    if not outcome:
        raise UserError(
            f"the verifier of task '{task.name}' gave no verdict on {len(responses)} responses within {timeout:g} s: "
            "bound the time of its judge(), or raise verifier_timeout. Nothing saved was lost."
        )
    if isinstance(outcome[0], UserError):
        raise outcome[0]
    if isinstance(outcome[0], BaseException):
        error = outcome[0]
        raise UserError(
            f"the verifier of task '{task.name}' raised {type(error).__name__}: {' '.join(str(error).split())[:200]}. "
            "Its judge() must return True, False or None (failed) for any text. Nothing saved was lost."
        ) from error
    if len(outcome[0]) != len(responses):
        raise UserError(
            f"the verifier of task '{task.name}' gave {len(outcome[0])} verdicts on {len(responses)} responses; "
            "its judge() must return one for each."
        )
    return outcome[0]


def derive_seed(*key: object) -> int:
    """A 63-bit seed that depends on every part of the key, the same on every machine.

    All randomness is drawn from generators seeded so; no random state has to be saved with a checkpoint.
    """
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest()) >> 1


def encode_prompt(tokenizer: Any, prompt: str, max_tokens: int) -> list[int]:
    """Token ids of a prompt, with a BOS if the tokenizer adds one and the text does not begin with it."""
    # Choice: the tokenizer alone decides whether there is a BOS; many chat templates have written it already.
    bos = tokenizer.bos_token
    ids = tokenizer(prompt, add_special_tokens=not (bos and prompt.startswith(bos)))["input_ids"]
    if ids and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(tokenizer.eos_token):
        ids = ids[:-1]  # some tokenizers close every text with EOS; a prompt must stay open
    if not 0 < len(ids) <= max_tokens:
        raise UserError(
            f"a prompt has {len(ids)} tokens; 1 to max_prompt_tokens={max_tokens} are allowed: {prompt[:60]!r}…"
        )
    return ids


def response_text(tokenizer: Any, sample: Sample) -> str:
    """The text that the verifier judges: the response without special tokens."""
    # Some tokenizers tidy up spaces by default: "( 1 , 2 )" would be judged as another text than was written.
    return tokenizer.decode(sample.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def pad_id(tokenizer: Any) -> int:
    """The padding id, or any other where there is none: padding is never read."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
