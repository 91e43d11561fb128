"""Prompt templates of the mathematics tasks, and what makes two questions one."""

from __future__ import annotations

import hashlib
from typing import Any

from minivapo.errors import UserError
from minivapo.responses import chat_prompt

BASE_TEMPLATE = """\
Work through the problem below one step at a time. End with a line of the form "Answer: X", where X is \
nothing but the final result.

Problem: {question}

Solution:
"""
"""For base models: the DAPO/VAPO setting's rule (a last line that starts with Answer) in our words."""

CHAT_INSTRUCTION = (
    '{question}\n\nWork step by step, and end with a line of the form "Answer: X", where X is the final result alone.'
)
"""What the user says under the tokenizer's chat template."""


def bare_question(question: str) -> str:
    """Take off the instructions that DAPO-Math-17k wraps around each question."""
    paragraphs = question.strip().split("\n\n")
    if len(paragraphs) > 1 and "Answer: $Answer" in paragraphs[0]:
        paragraphs = paragraphs[1:]
    if len(paragraphs) > 1 and paragraphs[-1].startswith("Remember to put your answer"):
        paragraphs = paragraphs[:-1]
    return "\n\n".join(paragraphs).strip()


def render(question: str, template: str, tokenizer: Any = None) -> str:
    """The prompt text that the policy is given.

    Args:
        question: The bare question.
        template: `base`, `chat` or `none`.
        tokenizer: A transformers tokenizer with a chat template; needed for `chat` alone.

    Raises:
        UserError: the template is unknown, or the tokenizer has no chat template that will do.
    """
    if template == "none":
        return question
    if template == "base":
        return BASE_TEMPLATE.replace("{question}", question)
    if template != "chat":
        raise UserError(f"there is no prompt template '{template}'; choose base, chat or none.")
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        who = "no tokenizer was given" if tokenizer is None else "this tokenizer has none"
        raise UserError(f"the prompt template 'chat' needs a tokenizer's chat template and {who}; use 'base'.")
    return chat_prompt(tokenizer, CHAT_INSTRUCTION.replace("{question}", question))


def question_key(question: str) -> str:
    """What makes two questions the same: their words, whatever the white space."""
    return hashlib.sha256(" ".join(question.split()).encode("utf-8", "replace")).hexdigest()
