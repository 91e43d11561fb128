"""The one path from a problem to a verdict: prompt → tokens → sampled response → text → verdict.

Training, evaluation and every study take it. A task is user code: what it gives is understood or refused here.
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from minivapo.interfaces import Problem, Rollout, Sample, Sampler, Task, UserError, make_rollout

CORRECT_FROM = 0.5
"""Least score of a response that counts as correct, where the task has no `correct_from` of its own."""


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
    """0 is greedy: the likeliest token each time."""
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
    score: float | None
    """In [0, 1]: 1 is right, 0 is wrong; None where the verifier failed."""
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
    different = draw.n if draw.temperature else 1  # greedy responses to one prompt are all the same
    samples = sampler.generate(starts, different, draw.seed, draw.version, draw.temperature, draw.top_p)
    samples = samples if draw.temperature else [sample for sample in samples for _ in range(draw.n)]
    rows = [i for i in range(len(problems)) for _ in range(draw.n)]
    if prefixes is not None:
        samples = [prepend(prefixes[i], sample, limit) for i, sample in zip(rows, samples, strict=True)]
    texts = [response_text(tokenizer, sample) for sample in samples]
    scores = judge(task, [problems[i] for i in rows], texts, draw.timeout)
    correct_from = getattr(task, "correct_from", CORRECT_FROM)
    verdicts = [None if score is None else score >= correct_from for score in scores]
    asked = [(problems[i], prompts[i]) for i in rows]
    return [
        Response(problem, prompt, sample, text, score, verdict)
        for (problem, prompt), sample, text, score, verdict in zip(asked, samples, texts, scores, verdicts, strict=True)
    ]


def prepend(prefix: Sequence[int], rest: Sample, limit: int) -> Sample:
    """A whole response from its beginning and what was sampled after it, cut at the limit; its log-probs are 0."""
    room = limit - len(prefix)  # the sampler counts its limit from the end of the prefix
    tokens = [*prefix, *rest.tokens[:room]]
    return Sample(tokens, [0.0] * len(tokens), rest.terminated and len(rest.tokens) <= room)


def as_rollout(responses: Sequence[Response], group: Sequence[int], pad: int) -> Rollout:
    """Judged responses as a rollout whose reward, on the last token, is the response's score; 0 where there is none.

    Args:
        responses: one for each row.
        group: number of each row's prompt in the stream.
        pad: the padding id.
    """
    verdicts = [r.verdict for r in responses]
    rollout = make_rollout([r.prompt for r in responses], [r.sample for r in responses], group, pad, verdicts)
    rollout.problems = [r.problem for r in responses]
    rollout.rewards[torch.arange(len(rollout)), rollout.last] = torch.tensor([r.score or 0.0 for r in responses])
    return rollout


def training_problem(task: Task, number: int, seed: int) -> Problem:
    """Problem `number` of the stream of training problems.

    Raises:
        UserError: the stream ends before it.
    """
    try:
        return task.train_problems(number, 1, seed)[0]
    except IndexError as error:
        raise UserError(
            f"task '{task.name}' gave no training problem number {number}: the stream of its train_problems() must not "
            "end; let it begin again, with problem `number % count`. Nothing saved was lost."
        ) from error


def held_out_problems(task: Task, count: int | None) -> list[Problem]:
    """The first `count` held-out problems, or all.

    Raises:
        UserError: there are none.
    """
    problems = task.test_problems(count)
    if not problems:
        raise UserError(f"task '{task.name}' has no held-out problems: its test_problems() must give some.")
    return problems


class ChatPrompt(str):
    """A prompt that a chat template wrote, with every special token that belongs in it."""


def chat_prompt(tokenizer: Any, words: str) -> ChatPrompt:
    """The prompt in which a user says these words, under the tokenizer's chat template.

    Raises:
        UserError: the template raises, or changes the words.
    """
    message = {"role": "user", "content": words}
    try:
        text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    except Exception as error:  # jinja2's own, and whatever a template's raise_exception says
        reason = " ".join(str(error).split())[:150]
        raise UserError(
            f"the tokenizer's chat template does not take a user's message ({type(error).__name__}: {reason}): mend "
            "chat_template in its folder, or take --template base."
        ) from error
    if words.strip() not in text:
        raise UserError(
            "the tokenizer's chat template changes the words of the question: mend chat_template in its folder, or "
            "take --template base."
        )
    return ChatPrompt(text)


def encode_prompt(tokenizer: Any, prompt: str, max_tokens: int) -> list[int]:
    """Token ids of a prompt; what the tokenizer opens a text with, such as a BOS, is there once.

    A `ChatPrompt` has the tokens of `apply_chat_template(tokenize=True)`, to which the tokenizer adds nothing.
    """
    # Choice: the tokenizer alone decides whether there is a BOS; many chat templates have written it already.
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if not isinstance(prompt, ChatPrompt):
        whole = tokenizer(prompt)["input_ids"]
        opening = whole[: next((i for i in range(len(whole)) if whole[i : i + len(ids)] == ids), 0)] if ids else whole
        # GLM opens with two tokens; a text may hold them after white space.
        if opening and opening[0] in ids[:4]:
            opening = []
        ids = [*opening, *ids]
    if ids and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(tokenizer.eos_token):
        ids = ids[:-1]  # some tokenizers close every text with EOS; a prompt must stay open
    if not 0 < len(ids) <= max_tokens:
        raise UserError(
            f"a prompt has {len(ids)} tokens; 1 to max_prompt_tokens={max_tokens} are allowed: {prompt[:60]!r}…"
        )
    return ids


def response_text(tokenizer: Any, sample: Sample) -> str:
    """The text that the verifier judges: the response without special tokens."""
    tokens = sample.tokens
    if sample.terminated and tokens[-1] in tokenizer.added_tokens_decoder:
        tokens = tokens[:-1]  # the end of a turn, which not every tokenizer calls special
    # Some tokenizers tidy up spaces by default: "( 1 , 2 )" would be judged as another text than was written.
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def pad_id(tokenizer: Any) -> int:
    """The padding id, or any other where there is none: padding is never read."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0


def _ask(task: Task, problems: Sequence[Problem], responses: Sequence[str], timeout: float) -> Any:
    """What the task's judge() says; one that takes `seconds` is told how long it has, a little less than all of it."""
    ask: Any = task.judge
    if "seconds" in inspect.signature(ask).parameters:
        return ask(problems, responses, seconds=0.9 * timeout)
    return ask(problems, responses)


def judge(task: Task, problems: Sequence[Problem], responses: Sequence[str], timeout: float) -> list[float | None]:
    """The task's scores in [0, 1], None where its verifier failed, in bounded time whatever it does.

    Args:
        task: whose `judge` is called, in a thread of its own.
        problems, responses: one problem for each response.
        timeout: seconds that the whole batch may take.

    Raises:
        UserError: the verifier raised, took too long, or gave something else, or another number of them.
    """
    outcome: list[Any] = []

    def call() -> None:
        try:
            outcome.append(_ask(task, problems, responses, timeout))
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
    verdicts = outcome[0].tolist() if hasattr(outcome[0], "tolist") else outcome[0]  # an array or a tensor
    if not isinstance(verdicts, list | tuple):
        kind = type(outcome[0]).__name__
        raise UserError(f"the verifier of task '{task.name}' gave a {kind}; its judge() must return a list.")
    if len(verdicts) != len(responses):
        raise UserError(
            f"the verifier of task '{task.name}' gave {len(verdicts)} verdicts on {len(responses)} responses; "
            "its judge() must return one for each."
        )
    return [as_score(task, verdict) for verdict in verdicts]


def as_score(task: Task, verdict: Any) -> float | None:
    """What a verifier said of one response, as a number in [0, 1]; None where it failed.

    Raises:
        UserError: it is neither a truth value, nor such a number, nor None.
    """
    try:
        value = verdict.item() if hasattr(verdict, "item") else verdict  # a scalar of numpy or torch
    except (ValueError, RuntimeError):  # of several numbers
        value = verdict
    if value is None:
        return None
    if not isinstance(value, int | float) or math.isnan(value) or not 0 <= value <= 1:
        shown = " ".join(repr(verdict).split())[:60]
        raise UserError(
            f"the verifier of task '{task.name}' gave {shown} for a response; its judge() must return True, False, a "
            "score from 0 to 1, or None (failed) for each."
        )
    return float(value)
