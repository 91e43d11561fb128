"""Stand-ins for tests: ranks that are threads, a sampler whose every response tells where it came from."""

import hashlib
import threading
from types import SimpleNamespace

import torch

from minivapo.interfaces import Problem, Progress, Sample, World
from minivapo.tasks.base import make_tokenizer
from minivapo.vapo import gae

DIGITS = tuple("0123456789")
TOKENIZER = make_tokenizer((*DIGITS, "?", "a", "b", "c"))


class ThreadWorld(World):
    """One of several ranks that are threads of this process; sums and maxima wait for all of them."""

    def __init__(self, rank, size, shared):
        self.rank, self.size, self.shared = rank, size, shared

    def _swap(self, x):
        self.shared.slots[self.rank] = x
        self.shared.barrier.wait(timeout=60)
        everything = list(self.shared.slots)
        self.shared.barrier.wait(timeout=60)
        return everything

    def _gather(self, x):
        return torch.stack(self._swap(x))

    def sum(self, x):
        return self._gather(x).sum(0)

    def max(self, x):
        return self._gather(x).amax(0)

    def gather(self, x):
        return self._swap(x)

    def exchange(self, parts):
        return [sent[self.rank] for sent in self._swap(parts)]


def on_ranks(size, function):
    """[function(world) for each rank], run at the same time; the first error is raised."""
    shared = SimpleNamespace(slots=[None] * size, barrier=threading.Barrier(size))
    results, errors = [None] * size, []

    def work(rank):
        try:
            results[rank] = function(ThreadWorld(rank, size, shared))
        except BaseException as error:
            errors.append(error)
            shared.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    real = [e for e in errors if not isinstance(e, threading.BrokenBarrierError)]
    if errors:
        raise (real or errors)[0]
    return results


def digest(*key):
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8])


class NumberTask:
    """Problem i reads `? d d d` with the digits of i; the verdict is a function of the number and the response."""

    name = "numbers"
    stop = ()

    def __init__(self, verdict=lambda number, words: digest(number, words) % 3 == 0):
        self.verdict, self.judged = verdict, []

    def train_problems(self, start, count, seed):
        return [Problem("? " + " ".join(str(i)), str(i), f"train-{i}") for i in range(start, start + count)]

    def test_problems(self, count=None):
        return [Problem("? " + " ".join(f"9{i}"), f"9{i}", f"test-{i}") for i in range(20 if count is None else count)]

    def judge(self, problems, responses):
        for problem, response in zip(problems, responses, strict=True):
            digits = response.split("a")[0].replace(" ", "")
            assert digits == problem.answer, f"response {response!r} was paired with problem {problem.answer}"
            self.judged.append((int(problem.answer), response))
        return [self.verdict(int(p.answer), r) for p, r in zip(problems, responses, strict=True)]


class EchoSampler:
    """Answers `d d d a b…b [EOS]`: the prompt's digits, then a number of b's drawn from prompt, sample and seed."""

    def __init__(self):
        self.calls = []

    def generate(self, prompts, n, seed, version, temperature=1.0, top_p=1.0):
        self.calls.append(len(prompts))
        samples = []
        for prompt in prompts:
            digits = list(prompt[2:])  # after BOS and "?"
            for j in range(n):
                spread = digest(tuple(prompt), j, seed)
                words = ["a"] + ["b"] * (spread % 7)
                terminated = spread % 5 > 0
                tokens = digits + TOKENIZER.convert_tokens_to_ids(words) + [TOKENIZER.eos_token_id] * terminated
                samples.append(Sample(tokens, [-0.5 - 0.001 * t for t in tokens], terminated))
        return samples

    def sync(self, actor):
        pass


def fake_engine(world=None):
    """An engine without networks, for `collect` and `evaluate`."""
    return SimpleNamespace(
        world=world or World(), sampler=EchoSampler(), tokenizer=TOKENIZER, progress=Progress(), rollout=None,
        actor=SimpleNamespace(version=0), critic=None, reference=None, gae=gae, balance=lambda rollout, _: rollout,
    )  # fmt: skip
