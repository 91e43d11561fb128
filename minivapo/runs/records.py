"""What a run keeps for people to look at: its task with an example, held-out answers, responses with all numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from minivapo.files import write_atomically
from minivapo.interfaces import Engine, Rollout, Task, UserError
from minivapo.responses import training_problem
from minivapo.tasks.truth import TrueValues
from minivapo.vapo import Config

HELD_OUT = 16
"""Held-out problems whose responses are kept at each evaluation."""


def write_task(run: Path, task: Task, seed: int) -> None:
    """Writes task.json, if it is not there: what the task is, and a problem of it with its answer.

    Raises:
        UserError: the task's own `example()` does not give one.
    """
    if (run / "task.json").exists():
        return
    example = getattr(task, "example", None)
    try:
        problem, response = (training_problem(task, 0, seed), None) if example is None else example()
        found = {"prompt": problem.prompt, "answer": problem.answer, "response": response}
    except (AttributeError, TypeError, ValueError) as error:  # a task is user code
        raise UserError(f"example() of the task '{task.name}' must give a Problem and a response: {error}") from error
    about = {"name": task.name, "about": str(getattr(task, "about", ""))}
    write_atomically(run / "task.json", json.dumps(about | found, indent=2))


def held_out_records(engine: Engine, step: int, samples: int) -> list[dict[str, Any]]:
    """The first response to each of this rank's first held-out problems in the last evaluation.

    The problems and the random numbers are the same in all of them, so that only the policy differs.

    Args:
        engine: what it evaluated.
        step: after which it did.
        samples: responses to each problem.
    """
    return [
        {
            "step": step,
            "prompt": response.problem.prompt,
            "answer": response.problem.answer,
            "id": response.problem.id,
            "correct": response.verdict,
            "terminated": response.sample.terminated,
            "length": len(response.sample.tokens),
            "response": response.text,
        }
        for response in engine.evaluated[:: max(samples, 1)][:HELD_OUT]
    ]


def sample_records(engine: Engine, task: Task, step: int, config: Config, count: int = 4) -> list[dict[str, Any]]:
    """Some responses of the last rollout, right and wrong, of different lengths, with what is known of each token."""
    rollout = engine.rollout
    assert rollout is not None
    order = sorted(range(len(rollout)), key=lambda i: (bool(rollout.correct[i]), int(rollout.lengths[i])))
    picked = sorted({order[round(k * (len(order) - 1) / max(count - 1, 1))] for k in range(count) if order})
    rows = rollout.rows(picked)
    # Rows may have come here from another rank; the number of a prompt in the stream is enough to have it again.
    rows.problems = [training_problem(task, number, config.seed) for number in rows.group.tolist()]
    # Only rank 0 writes samples, and a forward pass over several ranks needs them all.
    after = engine.actor.forward(rows)["logprobs"] if engine.world.size == 1 else None
    truth = what_is_true(engine, task, config)
    values = truth.values(rows) if truth else None
    return [response_record(rows, i, after, values, engine.tokenizer, task, step, config) for i in range(len(rows))]


def what_is_true(engine: Engine, task: Task, config: Config) -> TrueValues | None:
    """What counts in the last rollout what the policy can do; None where the task cannot tell a prefix's value."""
    rollout = engine.rollout
    if rollout is None or not getattr(task, "exact_values", False):
        return None
    known = {number: training_problem(task, number, config.seed) for number in set(rollout.group.tolist())}
    rollout = dataclasses.replace(rollout, problems=[known[number] for number in rollout.group.tolist()])
    truth = TrueValues(task, engine.tokenizer)  # type: ignore[arg-type]  # a task with `exact_values`
    truth.watch(rollout)
    return truth


def response_record(
    rollout: Rollout,
    row: int,
    after: torch.Tensor | None,
    truth: torch.Tensor | None,
    tokenizer: Any,
    task: Task,
    step: int,
    config: Config,
) -> dict[str, Any]:
    """One response as a line of samples.jsonl; every list has one entry for each response token.

    `after` holds the actor's log-probs [batch, time] after the step, and `truth` the chance that a response that
    begins so will be right, where they are known.
    """
    problem = rollout.problems[row]
    columns = slice(int(rollout.totals[row] - rollout.lengths[row]), int(rollout.totals[row]))
    ids = rollout.tokens[row, columns].tolist()
    words = [tokenizer.decode([i]) for i in ids]

    def part(x: torch.Tensor | None) -> list[float] | None:
        return None if x is None else [round(v, 6) for v in x[row, columns].tolist()]

    expected = None if truth is None else truth * config.reward_correct + (1 - truth) * config.reward_wrong
    first_error = getattr(task, "first_error", None)
    lam = getattr(rollout, "lam", None)
    return {
        "step": step,
        "prompt": problem.prompt,
        "answer": problem.answer,
        "id": problem.id,
        "correct": bool(rollout.correct[row]),
        "terminated": bool(rollout.terminated[row]),
        "tokens": words,
        "token_ids": ids,
        "logprobs": part(rollout.sampled_logprobs),
        "old_logprobs": part(rollout.old_logprobs),
        "new_logprobs": part(after),
        "entropy": part(rollout.entropy),
        "values": part(rollout.values),
        "true_values": part(expected),
        "advantages": part(rollout.advantages),
        "returns": part(rollout.returns),
        "rewards": part(rollout.rewards),
        "lam": None if lam is None else float(lam[row]),
        "gamma": config.gamma,
        "first_error": first_error(problem, words) if first_error and rollout.terminated[row] else None,
    }
