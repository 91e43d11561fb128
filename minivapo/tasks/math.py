r"""Real mathematics: GSM8K, DAPO-Math-17k, AIME 2024 and 2025, your own jsonl file, and the verifier.

    task = make_math_task("gsm8k")                            # from the hub; needs minivapo[math]
    task = make_math_task("dapo-math:dapo-math-17k.parquet")  # the same columns in a local file
    grade(r"… so the answer is \boxed{\frac{1}{2}}", "0.5")   # True

How an answer is found and compared is told, with every choice made, in `minivapo.tasks.verifier`. Here are the
pool of worker processes that makes it safe (`Verifier`), and the data: reading, duplicates, held-out
problems, prompt templates. Importing this module loads neither datasets nor math-verify.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import logging
import os
import random
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from minivapo.interfaces import Problem, UserError
from minivapo.responses import encode_prompt
from minivapo.tasks import verifier as grading

MATH_TASKS = ("gsm8k", "dapo-math", "aime2024", "aime2025", "jsonl")
"""Names that `make_math_task` knows, each alone or followed by `:PATH` (jsonl always)."""

logger = logging.getLogger("minivapo")

# ---------------------------------------------------------------------------------------------------------
# The verifier: workers that can be killed
# ---------------------------------------------------------------------------------------------------------

START_SECONDS = 120.0
"""How long a worker may take to import math-verify (2 s on an idle core)."""
CACHE_SIZE = 100_000
"""Pairs (predicted, gold) whose verdict is remembered: a group of 16 responses often states one answer."""


def require_math(*modules: str) -> None:
    """Raise ImportError, saying what to install, unless the optional packages are there."""
    missing = [name for name in modules or ("math_verify",) if not _installed(name)]
    if missing:
        raise ImportError(f"the mathematics tasks need {', '.join(missing)}: pip install 'minivapo[math]'")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # sys.modules holds None for it: blocked on purpose
        return False


_REASONS = {"MemoryError": "memory", "Unreadable": "gold"}


class _Worker:
    """One `grading.py` process and the job that it works on."""

    def __init__(self, time_limit: float, memory_limit: int) -> None:
        # A script by its path, without its folder on sys.path (-P): no torch, and none of our modules' names.
        self.process = subprocess.Popen(
            [sys.executable, "-P", grading.__file__, str(time_limit), str(memory_limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONHASHSEED": "0"},
            start_new_session=True,  # Ctrl-C reaches the parent alone
        )
        assert self.process.stdin and self.process.stdout
        self.requests, self.replies = self.process.stdin, self.process.stdout
        self.received = b""
        self.ready = False
        self.job: tuple[str, str] | None = None
        self.deadline = time.monotonic() + START_SECONDS

    def send(self, job: tuple[str, str], time_limit: float) -> None:
        self.job, self.deadline = job, time.monotonic() + grading.PATIENCE * time_limit + 1
        with contextlib.suppress(OSError):  # a dead worker shows as end of file on the other pipe
            self.requests.write(json.dumps(job).encode() + b"\n")
            self.requests.flush()

    def receive(self) -> list[dict[str, Any]] | None:
        """Complete replies that have come in; None once the process is gone."""
        data = os.read(self.replies.fileno(), 65536)
        if not data:
            return None
        *lines, self.received = (self.received + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def kill(self) -> int:
        """End the process and return its exit status."""
        self.process.kill()
        status = self.process.wait()
        for pipe in (self.requests, self.replies):
            with contextlib.suppress(OSError):
                pipe.close()
        return status


def _kill_all(workers: list[_Worker], owner: int) -> None:
    if os.getpid() == owner:  # a forked child has the list too, but not the processes
        for worker in workers:
            worker.kill()
    workers.clear()


class Verifier:
    """Grades final answers, with algebra in worker processes that are killed when they take too long.

    Ordinary answers are decided in the calling process. The rest goes to `workers` processes, started when
    first needed, restarted when they die, and gone with the calling process. POSIX only. Thread-safe.

    Attributes:
        graded: Answers graded so far.
        errors: Those of them without a verdict, because the verifier itself failed.
        reasons: How often each kind of failure occurred: time limit, memory, died, gold, error.
        restarts: Workers started in place of one that died.
    """

    def __init__(self, workers: int = 2, time_limit: float = 3.0, memory_limit: int = 2**30) -> None:
        """Prepare a verifier; no process starts yet.

        Args:
            workers: Processes at most.
            time_limit: Seconds of processor time that one answer may take; by the clock at most
                `grading.PATIENCE` times as long, so that verdicts do not depend on how busy the machine is.
            memory_limit: Bytes of address space of one worker.

        Raises:
            ImportError: math-verify is not installed.
        """
        require_math()
        self.workers, self.time_limit, self.memory_limit = workers, time_limit, memory_limit
        self.graded = self.errors = self.restarts = 0
        self.reasons: Counter[str] = Counter()
        self._pool: list[_Worker] = []
        self._owner = os.getpid()
        self._failed_starts = 0
        self._cache: dict[tuple[str, str], bool] = {}
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _kill_all, self._pool, self._owner)

    @property
    def error_rate(self) -> float:
        """Share of the answers graded so far that have no verdict."""
        return self.errors / self.graded if self.graded else 0.0

    def close(self) -> None:
        """End the workers; the next answer that needs one starts it anew."""
        with self._lock:
            _kill_all(self._pool, self._owner)

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def grade_many(self, responses: Sequence[str], answers: Sequence[str]) -> list[bool | None]:
        """Judge each response by its final answer alone.

        Args:
            responses: Texts of the policy; anything is allowed in them.
            answers: The gold answer of each.

        Returns:
            True or False for each; None where the verifier failed (time limit, memory, a worker that died
            twice on one answer, a gold answer that cannot be read). Never raises because of a text.
        """
        verdicts: list[bool | None] = []
        undecided: dict[tuple[str, str], list[int]] = {}
        failures: Counter[str] = Counter()
        for i, (response, answer) in enumerate(zip(responses, answers, strict=True)):
            verdict, pair = self._decide(response, answer, failures)
            verdicts.append(verdict)
            if pair is not None:
                undecided.setdefault(pair, []).append(i)
        with self._lock:
            if self._owner != os.getpid():  # after a fork: the parent's workers are not ours to talk to
                self._pool, self._owner = [], os.getpid()
                self._finalizer = weakref.finalize(self, _kill_all, self._pool, self._owner)
            if undecided:
                for pair, verdict, reason in self._run(list(undecided)):
                    for i in undecided[pair]:
                        verdicts[i] = verdict
                    if verdict is None:
                        failures[reason] += len(undecided[pair])
                    elif len(self._cache) < CACHE_SIZE:
                        self._cache[pair] = verdict
                    else:
                        self._cache = {pair: verdict}
            self.graded += len(verdicts)
            self.errors += sum(verdict is None for verdict in verdicts)
            self.reasons.update(failures)
        return verdicts

    def _decide(self, response: str, answer: str, failures: Counter[str]) -> tuple[bool | None, tuple[str, str] | None]:
        """Decide without algebra: (verdict, None), or (None, what a worker has to compare)."""
        if not isinstance(response, str):
            return False, None
        try:
            gold = grading.gold_answer(answer)
            pred = grading.extract_answer(response)
            if not gold:
                failures["gold"] += 1
                return None, None
            if pred is None:
                return False, None
            pair = (pred, gold)
            if pair in self._cache:
                return self._cache[pair], None
            verdict = grading.equal(pred, gold)
            return verdict, None if verdict is not None else pair
        except grading.Unreadable:
            failures["gold"] += 1
        except Exception:  # a bug here must cost one verdict, not a run of days
            logger.exception("the verifier failed on an answer; it counts as a verifier error")
            failures["gold" if not isinstance(answer, str) else "error"] += 1
        return None, None

    def _run(self, pairs: list[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], bool | None, str]]:
        """Yield (pair, verdict, reason) for each pair, in the order in which the workers finish."""
        waiting = deque(pairs)
        tried: Counter[tuple[str, str]] = Counter()
        self._failed_starts = 0
        try:
            while waiting or any(worker.job for worker in self._pool):
                if self._failed_starts >= 3 and not self._pool:
                    yield from ((waiting.popleft(), None, "no worker") for _ in range(len(waiting)))
                    return
                for worker in self._pool:
                    if worker.ready and worker.job is None and waiting:
                        worker.send(waiting.popleft(), self.time_limit)
                starting = sum(not worker.ready for worker in self._pool)
                while len(self._pool) < self.workers and starting < len(waiting) and self._failed_starts < 3:
                    self._pool.append(_Worker(self.time_limit, self.memory_limit))
                    starting += 1
                for worker in self._wait():
                    yield from self._collect(worker, waiting, tried)
        except BaseException:
            _kill_all(self._pool, self._owner)  # Ctrl-C, or a consumer that stopped: jobs are half done
            raise

    def _wait(self) -> list[_Worker]:
        """Workers with something to read, or past their deadline."""
        active = [worker for worker in self._pool if worker.job or not worker.ready]
        if not active:
            return []
        with selectors.DefaultSelector() as selector:
            for worker in active:
                selector.register(worker.replies, selectors.EVENT_READ, worker)
            patience = min(worker.deadline for worker in active) - time.monotonic()
            readable = [key.data for key, _ in selector.select(max(patience, 0))]
        now = time.monotonic()
        return [worker for worker in active if worker in readable or worker.deadline <= now]

    def _collect(
        self, worker: _Worker, waiting: deque[tuple[str, str]], tried: Counter[tuple[str, str]]
    ) -> Iterator[tuple[tuple[str, str], bool | None, str]]:
        late = worker.deadline <= time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(worker.replies, selectors.EVENT_READ)
            replies = worker.receive() if selector.select(0) else []
        for reply in replies or []:
            if "ready" in reply:
                worker.ready, self._failed_starts = True, 0
                continue
            pair, worker.job = worker.job, None
            assert pair is not None
            error = reply.get("error", "")
            yield pair, reply.get("verdict"), _REASONS.get(error.partition(":")[0], "error")
            late = False
        if replies is not None and not late:
            return
        status = worker.kill()
        self._pool.remove(worker)
        self.restarts += worker.ready
        self._failed_starts += not worker.ready
        if worker.job is None:
            return
        # Killed by its own time limit, the answer is at fault. Killed by something else (another process, the
        # kernel short of memory), it gets a second chance.
        tried[worker.job] += 1
        if late or -status in (signal.SIGPROF, signal.SIGALRM):
            yield worker.job, None, "time limit"
        elif tried[worker.job] > 1:
            yield worker.job, None, "died"
        else:
            waiting.appendleft(worker.job)


@functools.cache
def _shared_verifier() -> Verifier:
    return Verifier(workers=1)


def grade(response: str, answer: str) -> bool:
    r"""Whether the final answer that a response states is the right one.

    Only the final answer counts: the last `\boxed{…}`, `Answer: …` or `#### …`; see `minivapo.tasks.verifier` for
    all forms and for what counts as equal. For many answers use `Verifier.grade_many`, which also tells a
    wrong answer from a verifier that failed.

    Args:
        response: The policy's text; anything at all.
        answer: The gold answer, plain, in LaTeX, boxed, or a GSM8K solution that ends in `#### 18`.

    Returns:
        True if it is right; False if it is wrong, absent, or could not be compared within 3 s of processor time.

    Raises:
        ImportError: math-verify is not installed. No text makes it raise.
    """
    if not isinstance(response, str) or not isinstance(answer, str):
        require_math()
        return False
    return _shared_verifier().grade_many([response], [answer])[0] is True


# ---------------------------------------------------------------------------------------------------------
# Rows: (question, answer) out of each data set's own columns
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A question with its gold answer, before any template; `where` names it in messages."""

    question: str
    answer: str
    where: str


@dataclass(frozen=True)
class Source:
    """A data set on the hub, and what its rows look like."""

    hub: str
    config: str | None
    train: str | None
    test: str | None
    columns: str


SOURCES = {
    "gsm8k": Source("openai/gsm8k", "main", "train", "test", "question, answer"),
    "dapo-math": Source("BytedTsinghua-SIA/DAPO-Math-17k", None, "train", None, "prompt, reward_model"),
    "aime2024": Source("HuggingFaceH4/aime_2024", None, None, "train", "problem, answer"),
    "aime2025": Source("math-ai/aime25", None, None, "test", "problem, answer"),
    "jsonl": Source("", None, "train", None, "prompt, answer"),
}
"""Where each task comes from. AIME is for evaluation alone; its 30 problems are in one split on the hub."""


def read_row(name: str, record: dict[str, Any], where: str) -> Row:
    """Question and answer of one record.

    Args:
        name: One of `MATH_TASKS`.
        record: Column name -> value.
        where: File and row, for messages.

    Returns:
        The row; its answer is what follows `####` for GSM8K, `reward_model.ground_truth` for DAPO-Math.

    Raises:
        UserError: a column is missing or empty.
    """
    columns = {str(key).lower(): value for key, value in record.items()}
    question: Any
    if "reward_model" in columns and "prompt" in columns:
        # verl's layout: a chat message list and a struct; DAPO-Math-17k and some copies of AIME use it.
        question = columns["prompt"]
        if isinstance(question, Sequence) and not isinstance(question, str):
            question = next((m.get("content") for m in reversed(question) if m.get("role", "user") == "user"), None)
        model = columns["reward_model"]
        answer = model.get("ground_truth") if isinstance(model, dict) else None
    else:
        names = ("prompt",) if name == "jsonl" else ("question", "problem")
        found = next((column for column in names if column in columns), None)
        if found is None or "answer" not in columns or name == "dapo-math":
            raise UserError(
                f"{where}: {name} needs the columns {SOURCES[name].columns}; "
                f"there are only {', '.join(map(str, record))}."
            )
        question, answer = columns[found], columns["answer"]
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{where}: the question is empty; fill it in or remove the row.")
    try:
        question.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: the question is not valid Unicode text (half of a surrogate pair).") from None
    text = "" if answer is None or (isinstance(answer, float) and answer != answer) else str(answer)
    if isinstance(answer, float) and answer.is_integer():
        text = str(int(answer))  # a parquet column of whole numbers with a gap in it is read as floats
    if name == "gsm8k" and "####" not in text:
        raise UserError(f"{where}: the answer has no '#### ' line with the final number, as GSM8K's answers do.")
    text = text.rpartition("####")[2].strip() if name == "gsm8k" else text.strip()
    if not text:
        raise UserError(f"{where}: the answer is empty; fill it in or remove the row.")
    return Row(question, text, where)


def read_file(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, record) for each row of a parquet or jsonl file.

    Raises:
        UserError: there is no such file, or it is neither.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'a folder; give a file' if path.is_dir() else 'there is no such file'}.")
    if path.suffix in (".jsonl", ".json"):
        # Not through datasets: its reader fails where answers are numbers in one row and text in another.
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}, line {number}"
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except ValueError:  # includes bytes that are not UTF-8
                    raise UserError(f"{where}: not JSON; a jsonl file has one object a line.") from None
                if not isinstance(record, dict):
                    raise UserError(f"{where}: a {type(record).__name__}, not an object with columns.")
                yield where, record
        return
    if path.suffix != ".parquet":
        raise UserError(f"{path}: unknown kind of file; expected .parquet or .jsonl.")
    with path.open("rb") as file:
        if file.read(4) != b"PAR1":
            raise UserError(f"{path}: not a parquet file.")
    require_math("datasets")
    import datasets

    try:
        # Streaming reads the file as it is, without a copy of it in the cache of datasets.
        rows = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        for number, record in enumerate(rows, 1):
            yield f"{path}, row {number}", dict(record)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: not a readable parquet file ({_one_line(error)}).") from None


def read_hub(source: Source, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, record) for each row of a split on the hub, or of its copy in the cache.

    Raises:
        UserError: it is neither reachable nor in the cache.
    """
    require_math("datasets")
    import datasets
    import huggingface_hub

    offline = bool(huggingface_hub.constants.HF_HUB_OFFLINE)
    if not offline:
        try:
            huggingface_hub.HfApi().dataset_info(source.hub, timeout=10)
        except Exception:  # load_dataset alone would retry for 20 s before it looks into its cache
            offline = True
    try:
        with _offline(datasets, huggingface_hub) if offline else contextlib.nullcontext():
            rows = datasets.load_dataset(source.hub, source.config, split=split)
    except Exception as error:
        raise UserError(
            f"{source.hub} cannot be read from the Hugging Face hub and is not in its cache ({_one_line(error)}): "
            f"give a local parquet or jsonl file as NAME:PATH, or download it on a machine with a network and set "
            f"HF_HUB_OFFLINE=1 here."
        ) from None
    for number, record in enumerate(rows, 1):
        yield f"{source.hub} {split}, row {number}", dict(record)


@contextlib.contextmanager
def _offline(*packages: Any) -> Iterator[None]:
    """Make the hub's packages use their caches at once instead of retrying."""
    places: list[Any] = [getattr(package, name, None) for package in packages for name in ("config", "constants")]
    before = [(place, place.HF_HUB_OFFLINE) for place in places if hasattr(place, "HF_HUB_OFFLINE")]
    for place, _ in before:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in before:
            place.HF_HUB_OFFLINE = value


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


# ---------------------------------------------------------------------------------------------------------
# Rows → problems
# ---------------------------------------------------------------------------------------------------------

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
        UserError: the template is unknown, or the tokenizer has no chat template.
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
    message = {"role": "user", "content": CHAT_INSTRUCTION.replace("{question}", question)}
    return tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)


def question_key(question: str) -> str:
    """What makes two questions the same: their words, whatever the white space."""
    return hashlib.sha256(" ".join(question.split()).encode("utf-8", "replace")).hexdigest()


@dataclass
class LoadReport:
    """Where every row went; `rows` is the sum of all the other counts."""

    rows: int = 0
    train: int = 0
    test: int = 0
    duplicates: int = 0
    """Repetitions of a question with the same answer."""
    contradictory: int = 0
    """Rows of questions that occur with different answers: none of them is used."""
    in_test: int = 0
    """Training rows whose question is in the test split."""
    overlong: int = 0
    """Questions whose prompt has more than `max_prompt_tokens` tokens."""

    def __str__(self) -> str:
        """One line for a log."""
        dropped = [
            f"{self.duplicates:,} duplicates",
            f"{self.contradictory:,} with contradictory answers",
            f"{self.in_test:,} also in the test split",
            f"{self.overlong:,} over-long prompts",
        ]
        dropped = [text for text in dropped if not text.startswith("0 ")]
        tail = f"; dropped: {', '.join(dropped)}" if dropped else ""
        return f"{self.rows:,} rows: {self.train:,} for training, {self.test:,} held out{tail}"


@dataclass
class MathTask:
    """A finite set of problems as a `minivapo.interfaces.Task`.

    Attributes:
        name: As given to `make_math_task`, without the path.
        train: Problems to train on; empty for evaluation-only tasks.
        test: Held-out problems, in file order.
        report: Where every row of the data went.
        stop: Stop strings.
        verifier: Judges responses; its counts cover this task alone unless it was passed in.
    """

    name: str
    train: list[Problem]
    test: list[Problem]
    report: LoadReport
    verifier: Verifier
    stop: tuple[str, ...] = ()
    _orders: dict[tuple[int, int], list[int]] = field(default_factory=dict, repr=False)

    def train_problems(self, start: int, count: int, seed: int) -> list[Problem]:
        """Problems start … start + count − 1 of an endless stream: every epoch a new order, fixed by the seed.

        Raises:
            UserError: the task is for evaluation alone.
        """
        if not self.train:
            raise UserError(f"{self.name} is for evaluation only; train on gsm8k, dapo-math or jsonl:PATH.")
        size = len(self.train)
        return [self.train[self._order(seed, i // size)[i % size]] for i in range(start, start + count)]

    def _order(self, seed: int, epoch: int) -> list[int]:
        if (seed, epoch) not in self._orders:
            while len(self._orders) > 3:
                self._orders.pop(next(iter(self._orders)))
            order = list(range(len(self.train)))
            random.Random(f"{seed}/{epoch}").shuffle(order)
            self._orders[seed, epoch] = order
        return self._orders[seed, epoch]

    def test_problems(self, count: int | None = None) -> list[Problem]:
        """The first `count` held-out problems in the order of the file; all of them without a count."""
        return self.test[:count]

    def judge(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[bool | None]:
        """Right or wrong by the final answer alone; None where the verifier itself failed."""
        return self.verifier.grade_many(responses, [problem.answer for problem in problems])


def make_math_task(
    spec: str,
    *,
    template: Literal["base", "chat", "none"] | None = None,
    tokenizer: Any = None,
    max_prompt_tokens: int | None = None,
    held_out: float = 0.05,
    stop: tuple[str, ...] = (),
    verifier: Verifier | None = None,
) -> MathTask:
    """Load a task, say on the log where every row went, and have its verifier ready.

    Args:
        spec: `gsm8k`, `dapo-math`, `aime2024` or `aime2025`, from the hub; the same with `:PATH`, from a
            parquet or jsonl file with the same columns (for GSM8K also a folder that has both splits, as
            `hf download` leaves it); or `jsonl:PATH` with the columns prompt and answer.
        template: `base` for base models; `chat` for the tokenizer's chat template; `none` for the question
            as it stands in the data. By default `base`, and `none` for jsonl.
        tokenizer: A transformers tokenizer, for the chat template and for counting tokens.
        max_prompt_tokens: Longer prompts are dropped, and counted in the report; None keeps all.
        held_out: Share of the questions held out, by a hash of the question, where the data has no test split.
        stop: Stop strings of the task.
        verifier: Shared with other tasks; by default one of its own with two workers.

    Returns:
        The task.

    Raises:
        UserError: bad input, in one line.
        ImportError: datasets or math-verify is not installed.
    """
    name, _, path = spec.partition(":")
    if name not in SOURCES:
        raise UserError(f"there is no task '{name}'; choose one of {', '.join(MATH_TASKS)}, with or without :PATH.")
    if name == "jsonl" and not path:
        raise UserError("the task jsonl needs a file: jsonl:PATH.")
    if not 0 < held_out < 1:
        raise UserError(f"held_out={held_out} must lie between 0 and 1.")
    if max_prompt_tokens is not None and tokenizer is None:
        raise UserError("max_prompt_tokens needs a tokenizer to count with.")
    # Choice: plain text for base models, as the paper starts from one, even if the tokenizer has a chat template.
    template = template or ("none" if name == "jsonl" else "base")
    render("", template, tokenizer)  # a template that cannot work fails before gigabytes are read
    verifier = verifier or Verifier()
    report = LoadReport()
    splits = {split: _distinct(name, records, report) for split, records in _open(name, path).items()}
    train, test = _divide(splits, held_out, report)
    made: dict[str, list[Problem]] = {}
    for split, rows in (("train", train), ("test", test)):
        made[split] = []
        for row in rows:
            question = row.question if template == "none" else bare_question(row.question)
            prompt = render(question, template, tokenizer)
            if max_prompt_tokens is not None and _tokens(tokenizer, prompt) > max_prompt_tokens:
                report.overlong += 1
                continue
            made[split].append(Problem(prompt, row.answer, f"{name}/{question_key(bare_question(row.question))[:16]}"))
    report.train, report.test = len(made["train"]), len(made["test"])
    if not made["test"] or (SOURCES[name].train and not made["train"]):
        raise UserError(f"{spec}: no problems are left ({report}).")
    logger.info("%s: %s", spec, report)
    return MathTask(name, made["train"], made["test"], report, verifier, stop)


def _tokens(tokenizer: Any, prompt: str) -> int:
    return len(encode_prompt(tokenizer, prompt, sys.maxsize))


def _open(name: str, path: str) -> dict[str, Iterable[tuple[str, dict[str, Any]]]]:
    """The records of each split that there is: train, test, or `all` where one file holds both."""
    source = SOURCES[name]
    if not path:
        pairs = (("train", source.train), ("test", source.test))
        found = {split: read_hub(source, hub_split) for split, hub_split in pairs if hub_split}
        return {"all": found["train"]} if set(found) == {"train"} else dict(found)
    place = Path(path).expanduser()
    if place.is_dir() and source.train and source.test:
        folder = place / source.config if source.config and (place / source.config).is_dir() else place
        files = {
            split: sorted(f for f in folder.rglob(f"*{split}*") if f.suffix in (".parquet", ".jsonl"))
            for split in ("train", "test")
        }
        if not all(files.values()):
            raise UserError(f"{place}: no train and test files (.parquet or .jsonl) in this folder; give one file.")
        return {split: (r for file in paths for r in read_file(file)) for split, paths in files.items()}
    return {"all" if source.train else "test": read_file(place)}


def _distinct(name: str, records: Iterable[tuple[str, dict[str, Any]]], report: LoadReport) -> dict[str, Row]:
    """Each question once: repetitions and contradictions are counted, and the latter left out."""
    rows: dict[str, Row] = {}
    times: Counter[str] = Counter()
    contradicted: set[str] = set()
    keys: dict[str, str] = {}  # DAPO-Math-17k repeats each text a hundred times in 1.8 million rows
    for where, record in records:
        row = read_row(name, record, where)
        key = keys.get(row.question) or question_key(bare_question(row.question))
        keys[row.question] = key
        report.rows += 1
        times[key] += 1
        first = rows.setdefault(key, row)
        if first.answer != row.answer and not _same_gold(first.answer, row.answer):
            contradicted.add(key)
    for key in contradicted:
        del rows[key]
        report.contradictory += times[key]
    report.duplicates += sum(times[key] - 1 for key in rows)
    return rows


def _same_gold(a: str, b: str) -> bool:
    try:
        return grading.equal(a, b) is True
    except grading.Unreadable:
        return False


def _divide(splits: dict[str, dict[str, Row]], held_out: float, report: LoadReport) -> tuple[list[Row], list[Row]]:
    """Training and test rows. Without a test split a question's hash decides, so the split survives new rows."""
    if "all" not in splits:
        train, test = splits.get("train", {}), splits.get("test", {})
        report.in_test = sum(key in test for key in train)
        return [row for key, row in train.items() if key not in test], list(test.values())
    rows = splits["all"]
    chosen = {key for key in rows if int(key[:13], 16) < held_out * 16**13}
    if len(rows) > 1:
        if not chosen:
            chosen = {min(rows)}
        elif len(chosen) == len(rows):
            chosen.remove(max(chosen))
    return [row for key, row in rows.items() if key not in chosen], [rows[key] for key in rows if key in chosen]
