"""Which answer does a response state?"""

from __future__ import annotations

import re

from . import MAX_ANSWER, MAX_RESPONSE

# Quantifiers are bounded wherever two of them meet: on megabytes of blanks `\s*\s*` is quadratic.
_STATED = re.compile(r"(?i)(?<![a-z])answer[\s*_]{0,4}(?:is)?[\s*_]{0,4}[:：]")
_TAGGED = re.compile(r"(?i)<answer>")
_HASHES = re.compile(
    r"(?m)^[ \t]{0,8}####[ \t]{0,8}"
    r"(?P<value>[-+$€£]{0,2}[0-9][0-9,]{0,40}(?:\.[0-9]{1,40})?(?:/[0-9]{1,40})?[ \t]?\\?%?"
    r"(?:[ \t][A-Za-z]{1,20})?)\.?[ \t\r]{0,8}$"
)
_SPOKEN = re.compile(r"(?i)(?<![a-z])answer[\s*_]{1,4}is(?![a-z])[\s*_]{0,4}")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n|,?\s(?:because|since|which|so that)\s")
# `$3$, as was to be shown`: prose after a formula is not part of the answer; a second formula or number is.
_FORMULA_FIRST = re.compile(r"\$([^$\n]{1,1000})\$(?:[.,;:]|\s\()[^$0-9\\]{0,1000}$")
# `Answer: 18 because 9 * 2 = 18`, `Answer: 18. She sells 9 eggs`; but C. Monday is a choice with its words.
_EXPLANATION = re.compile(
    r",? (?:because|since|which|so that) |, as |(?<=[0-9})$%])\. (?=[A-Z][a-z]* )"
    r"|(?<=[0-9})$%a-z]) \((?=(?:since|because|as|see|from|by|rounded|after|for)\b)"
)
_EMPHASIS_ENDS = re.compile(r"(?<=[^\s*_])(?:\*\*?|__?|`)(?=[\s.,;:)]|$)")
_BEGINS = re.compile(r"(?i)[\s*_#>-]{0,8}(?:the |my |final |correct ){0,3}[\s*_]{0,4}")
_SPECIAL_TOKENS = re.compile(r"<\|[^<>|]{1,40}\|>|</?s>|<eos>|<end_of_turn>|</?think>")


def extract_answer(response: str) -> str | None:
    r"""Return the final answer that a response states, or None when it states none.

    Args:
        response: The model's text; only the last `MAX_RESPONSE` characters after its thinking are read.

    Returns:
        The answer as written, without its marker. Among boxes, `Answer:` lines, `<answer>` tags and
        GSM8K's `#### 18` the one that comes last in the text counts, so an answer planted earlier never does.
    """
    thought = response.rfind("</think>")
    # Choice: thinking that never ended states no answer, whatever stands in it.
    if response.rfind("<think>") > thought:
        return None
    text = response[thought + len("</think>") if thought >= 0 else 0 :][-MAX_RESPONSE:]
    box = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    boxed, box_end = _boxed(text, box) if box >= 0 else (None, -1)
    stated = _last_start(_STATED, text)
    if boxed and stated > box and (stated < box_end or _is_prose(text, stated)):
        stated = -1  # "Answer:" within the box, or words about it afterwards
    tagged = _last_start(_TAGGED, text)
    hashes = _last_start(_HASHES, text)
    last = max(box, stated, tagged, hashes)
    if last < 0:
        spoken = _last_start(_SPOKEN, text)
        if spoken >= 0:
            return _spoken_answer(text, spoken)
        line = _SPECIAL_TOKENS.sub("", text[-MAX_ANSWER:]).strip() if len(text) <= MAX_ANSWER else ""
        return line if line and len(line) <= 200 and "\n" not in line else None
    if last == box:
        return boxed
    if last == tagged:
        value = text[tagged + len("<answer>") :][: MAX_ANSWER + 20]
        return value.partition("</answer>")[0].strip() or None
    if last == hashes:
        match = _HASHES.search(text, hashes)
        return match["value"] if match else None
    match = _STATED.search(text, stated)
    return _value_after(text, match.end()) if match else None


def gold_answer(answer: str) -> str:
    r"""Return the answer in a gold field: the field itself, or what its last `\boxed{…}` or `####` states."""
    if "####" in answer:
        answer = answer.rpartition("####")[2].strip()
    if "\\boxed" in answer or "\\fbox" in answer:
        return extract_answer(answer) or ""
    return answer.strip()


def _last_start(pattern: re.Pattern[str], text: str) -> int:
    start = -1
    for match in pattern.finditer(text):
        start = match.start()
    return start


def _boxed(text: str, start: int) -> tuple[str | None, int]:
    r"""Content of the `\boxed` at `start`, None when its braces never close, and where it ends."""
    body = text[start : start + MAX_ANSWER * 4 + 20].lstrip("\\").removeprefix("boxed").removeprefix("fbox").lstrip()
    if not body.startswith("{"):
        word = re.match(r"\S{1,100}", body)
        return word[0].strip("$.") or None if word else None, start
    depth = 0
    for position, char in enumerate(body[: MAX_ANSWER * 4]):
        escaped = position > 0 and body[position - 1] == "\\"
        if char == "{" and not escaped:
            depth += 1
        elif char == "}" and not escaped:
            depth -= 1
            if depth == 0:
                return body[1:position].strip() or None, start + position + len("\\fbox")
    return None, start


def _is_prose(text: str, stated: int) -> bool:
    """Whether a marker is part of a sentence: "…, so the answer: five", small and in the middle of its line."""
    begin = text.rfind("\n", max(0, stated - MAX_ANSWER), stated) + 1
    return text[stated].islower() and not _BEGINS.fullmatch(text, begin, stated)


def _value_after(text: str, start: int) -> str | None:
    """What follows an `Answer:` marker: the rest of its line, or the next line that has something."""
    rest = text[start : start + 4 * MAX_ANSWER].lstrip(" \t*_").lstrip()
    for opening, closing in (("$$", "$$"), ("\\[", "\\]")):
        if rest.startswith(opening) and closing in rest[2:]:
            return rest[2:].partition(closing)[0].strip() or None
    line = _SPECIAL_TOKENS.sub("", rest.partition("\n")[0]).strip().strip("*_`").strip()
    line = _EMPHASIS_ENDS.sub("", line)
    spoken = _SPOKEN.search(line)
    if spoken:  # "Final Answer: The final answer is $5$. I hope it is correct."
        line = line[spoken.end() :]
        end = _SENTENCE_END.search(line)
        line = (line[: end.start()] if end else line).strip()
    explained = _EXPLANATION.search(line)
    if explained and explained.start() > 0:
        line = line[: explained.start()].strip()
    formula = _FORMULA_FIRST.match(line)
    return (formula[1] if formula else line) or None


def _spoken_answer(text: str, start: int) -> str | None:
    match = _SPOKEN.search(text, start)
    line = _value_after(text, match.end()) if match else None
    if line is None:
        return None
    end = _SENTENCE_END.search(line)
    return (line[: end.start()] if end else line).strip() or None
