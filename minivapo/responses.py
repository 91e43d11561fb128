"""The one path from a problem to a verdict: prompt → tokens → sampled response → text → verdict.

Training, evaluation and every study take it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minivapo.interfaces import Problem, Rollout, Sample, Sampler, Task, UserError, make_rollout


@dataclass(frozen=True)
class Draw:
    """How responses are drawn and judged."""

    n: int
    """Responses to each problem."""
    seed: int
    """Of the sampling."""
    version: int
    """Of the weights that the sampler must hold."""
    max_prompt_tokens: int
    """A longer prompt is an error."""
    timeout: float
    """Seconds that the verifier may take for all of them."""
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True)
class Response:
    """One response to a problem."""

    problem: Problem
    prompt: list[int]
    """Token ids."""
    sample: Sample
    text: str
    """What the verifier judged."""
    verdict: bool | None
    """Right or wrong; None where the verifier failed."""


def respond(
    task: Task,
    problems: Sequence[Problem],
    tokenizer: Any,
    sampler: Sampler,
    draw: Draw,
    prefixes: Sequence[Sequence[int]] | None = None,
    limit: int = 0,
) -> list[Response]:
    """Samples and judges `draw.n` responses to each problem, those of one problem together.

    Args:
        task: judges.
        problems: what is asked.
        tokenizer: the policy's.
        sampler: holds the policy's weights.
        draw: how many, and how.
        prefixes: token ids with which the responses to each problem begin, where they do.
        limit: with prefixes, length limit in tokens of prefix and continuation together.

    Raises:
        UserError: a prompt is too long, or the verifier failed as a whole.
    """
    prompts = [encode_prompt(tokenizer, p.prompt, draw.max_prompt_tokens) for p in problems]
    starts = prompts if prefixes is None else [[*p, *prefix] for p, prefix in zip(prompts, prefixes, strict=True)]
    samples = sampler.generate(starts, draw.n, draw.seed, draw.version, draw.temperature, draw.top_p)
    rows = [i for i in range(len(problems)) for _ in range(draw.n)]
    if prefixes is not None:
        samples = [prepend(prefixes[i], sample, limit) for i, sample in zip(rows, samples, strict=True)]
    texts = [response_text(tokenizer, sample) for sample in samples]
    verdicts = judge(task, [problems[i] for i in rows], texts, draw.timeout)
    answers = zip(rows, samples, texts, verdicts, strict=True)
    return [Response(problems[i], prompts[i], sample, text, verdict) for i, sample, text, verdict in answers]


def prepend(prefix: Sequence[int], rest: Sample, limit: int) -> Sample:
    """A whole response from its beginning and what was sampled after it, cut at the limit; its log-probs are 0."""
    room = limit - len(prefix)  # the sampler counts its limit from the end of the prefix
    tokens = [*prefix, *rest.tokens[:room]]
    return Sample(tokens, [0.0] * len(tokens), rest.terminated and len(rest.tokens) <= room)


def as_rollout(responses: Sequence[Response], group: Sequence[int], pad: int) -> Rollout:
    """Judged responses as a rollout without rewards.

    Args:
        responses: one for each row.
        group: number of each row's prompt in the stream.
        pad: the padding id.
    """
    verdicts = [r.verdict for r in responses]
    rollout = make_rollout([r.prompt for r in responses], [r.sample for r in responses], group, pad, verdicts)
    rollout.problems = [r.problem for r in responses]
    return rollout


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


def judge(task: Task, problems: Sequence[Problem], responses: Sequence[str], timeout: float) -> list[bool | None]:
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
