"""How text becomes tokens, tokens become text, and text gets a verdict."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from minivapo.interfaces import Problem, Sample, UserError


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
