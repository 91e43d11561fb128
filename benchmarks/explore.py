"""Real data behind docs/explore.html: writes docs/results/explore.json.

    OMP_NUM_THREADS=1 python benchmarks/explore.py      # about ten CPU-minutes, most of them for the true values

Everything is of the task `locks`, its shipped base policy and the critic that comes with it. Responses are chosen by
the rules in `choose`, not by hand.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from minivapo.interfaces import Rollout
from minivapo.local import LocalEngine
from minivapo.measure import explained_variance
from minivapo.options.embedded import fitted
from minivapo.runs.folder import git_commit
from minivapo.study.oracle import OracleCritic
from minivapo.study.values import at_position, response_tokens, true_values
from minivapo.tasks import default_model, make_task
from minivapo.vapo import PRESETS, Config, collect, length_adaptive_lambda, pretrain_critic

OUT = Path(__file__).resolve().parents[1] / "docs/results/explore.json"
SEED = 18
TASK = make_task("locks")
CONFIG = dataclasses.replace(fitted(PRESETS["vapo"], "locks", critic=True), group_size=1, seed=SEED)
CONTINUATIONS = 512
"""Continuations of each prefix: a standard error of at most 0.022."""
FRAMES = (0, 1, 2, 4, 8, 16)
"""Rollouts of value-pretraining after which the film shows V."""
PROMPTS, SAMPLES = 256, 64
"""Group sampling: verdicts of so many samples to each of so many prompts."""


def start(config: Config) -> LocalEngine:
    """The shipped base, ready to sample."""
    engine = LocalEngine(default_model("locks"), config, stop=TASK.stop)
    engine.sampler.sync(engine.actor)
    return engine


def words(engine: LocalEngine, rollout: Rollout, row: int) -> list[str]:
    """A response as its tokens."""
    return engine.tokenizer.convert_ids_to_tokens(response_tokens(rollout, row))


def choose(engine: LocalEngine, rollout: Rollout) -> list[int]:
    """Three rows that teach: a long wrong one that was promising until late, a long right one, a short wrong one.

    Promising is what the oracle says, which has counted on 2,048 responses of their own.
    """
    oracle = OracleCritic(TASK, engine.tokenizer, memory=1.0)
    oracle.forward(collect(dataclasses.replace(CONFIG, batch_size=2048, mini_batch=2048), TASK, engine, "count"))
    values, lengths = oracle.values(rollout), rollout.lengths.tolist()
    errors = [TASK.first_error(rollout.problems[i], words(engine, rollout, i)) for i in range(len(rollout))]

    def promise(i: int) -> float:
        return float(at_position(values, rollout, [i], [errors[i] or 0])[0])

    late = [i for i, e in enumerate(errors) if e is not None and 80 < lengths[i] <= 85 and 0.4 < e / lengths[i] < 0.7]
    right = [i for i in range(len(rollout)) if bool(rollout.correct[i])]
    short = [i for i, e in enumerate(errors) if e is not None and 20 < lengths[i] < 30 and e < lengths[i] - 3]
    return [max(late, key=promise), max(right, key=lambda i: lengths[i]), max(short, key=promise)]


def rounded(x: Any, digits: int = 4) -> list[float]:
    """Numbers short enough to commit."""
    return [round(float(v), digits) for v in x]


def response(engine: LocalEngine, rollout: Rollout, row: int) -> dict[str, Any]:
    """A response with what the critic says of each prefix and what is true of it."""
    ids, problem = response_tokens(rollout, row), rollout.problems[row]
    n, places = len(ids), list(range(len(ids)))
    truth, error = true_values(engine, TASK, [problem] * n, [ids] * n, places, CONTINUATIONS, SEED)
    assert rollout.values is not None
    return {
        "prompt": problem.prompt,
        "answer": problem.answer,
        "tokens": words(engine, rollout, row),
        "correct": bool(rollout.correct[row]),
        "first_error": TASK.first_error(problem, words(engine, rollout, row)),
        "values": rounded(at_position(rollout.values, rollout, [row] * n, places)),
        "truth": rounded(truth),
        "truth_error": round(float(error.max()), 3),
    }


def film(rollout: Rollout, row: int, kind: str) -> dict[str, Any]:
    """V along one response while a critic is pretrained, from `policy` (a blank head) or as a `reward-model`."""
    config = dataclasses.replace(
        CONFIG, critic_init=kind, value_pretrain_steps=max(FRAMES), value_pretrain_patience=max(FRAMES)
    )
    engine, alone, frames = start(config), rollout.rows([row]), {}
    n = int(rollout.lengths[row])

    def shoot() -> None:
        assert engine.critic is not None
        values = engine.critic.forward(alone)["values"]
        fresh = dataclasses.replace(rollout, values=engine.critic.forward(rollout)["values"])
        frames[engine.progress.pretrain] = {
            "values": rounded(at_position(values, alone, [0] * n, list(range(n)))),
            "explained_variance": round(explained_variance(fresh, engine.world)["value/explained_variance"], 4),
        }

    if kind == "policy":
        shoot()
    for line in pretrain_critic(config, TASK, engine):
        last = engine.progress.reward_model == config.reward_model_steps and "pretrain/reward_model_loss" in line
        if last or engine.progress.pretrain in FRAMES[1:]:
            shoot()
    return {str(n): frames[n] for n in FRAMES}


def groups(engine: LocalEngine) -> list[str]:
    """For each prompt its samples' verdicts, sample 0 first, as a number in hexadecimal (bit i = sample i)."""
    config = dataclasses.replace(CONFIG, group_size=SAMPLES, batch_size=PROMPTS * SAMPLES)
    right = collect(config, TASK, engine, "groups").correct.view(PROMPTS, SAMPLES).tolist()
    return [f"{sum(1 << i for i, ok in enumerate(row) if ok):016x}" for row in right]


def main() -> None:
    """Samples, measures, writes."""
    torch.set_num_threads(1)
    engine = start(CONFIG)
    rollout = collect(dataclasses.replace(CONFIG, batch_size=1024, mini_batch=1024), TASK, engine, "responses")
    assert engine.critic is not None
    rollout.values = engine.critic.forward(rollout)["values"]
    rows = choose(engine, rollout)
    batch = range(CONFIG.mini_batch)
    found = {
        "command": "python benchmarks/explore.py",
        "commit": git_commit(),
        "task": TASK.about,
        "pass_rate": round(float(rollout.correct.double().mean()), 4),
        "alpha": CONFIG.alpha,
        "explained_variance": round(explained_variance(rollout, engine.world)["value/explained_variance"], 4),
        "continuations": CONTINUATIONS,
        "fresh": len(rollout),
        "rollout": CONFIG.batch_size,
        "mini_batch": [[int(rollout.lengths[i]), bool(rollout.correct[i])] for i in batch],
        "groups": groups(engine),
        "film": {kind: film(rollout, rows[0], kind) for kind in ("policy", "reward-model")},
        "responses": [response(engine, rollout, row) for row in rows],
    }
    for one in found["responses"]:
        one["lam"] = float(length_adaptive_lambda(torch.tensor([len(one["tokens"])]), CONFIG.alpha)[0])
    text = json.dumps(found, separators=(",", ":"), ensure_ascii=False)
    OUT.write_text(text.replace('},{"prompt"', '},\n{"prompt"').replace(',"', ',\n"') + "\n")
    print(f"{OUT}: {OUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
