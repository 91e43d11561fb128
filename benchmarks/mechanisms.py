"""Measure what each technique of VAPO acts on, against the truth; writes docs/results/mechanisms/*.csv.

    OMP_NUM_THREADS=1 python benchmarks/mechanisms.py                 # everything: about 20 CPU-minutes
    OMP_NUM_THREADS=1 python benchmarks/mechanisms.py value reach     # only these

Everything runs on the embedded chain task and its shipped base policy. Critics and the half-trained policy that
several parts need are kept in a work folder, so a stopped run goes on where it was. The first line of every CSV
says with which command and at which commit it was made. `minivapo.study.mechanisms` explains what is measured.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from minivapo.interfaces import Rollout, derive_seed
from minivapo.loading import load_critic
from minivapo.local import LocalEngine, LocalLearner
from minivapo.runs.folder import git_commit
from minivapo.study import mechanisms as m
from minivapo.tasks import BASES, make_task
from minivapo.tasks.chain import FILLERS, HARD, Chain, ChainSpec
from minivapo.vapo import GRPO, VAPO, Config, collect, estimate_advantages, length_adaptive_lambda, train_step

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "results" / "mechanisms"
WORK = ROOT / "runs" / "mechanisms"
TASK = make_task("chain")
BASE = str(BASES / "chain")
SIZE = {"batch_size": 192, "mini_batch": 32, "micro_batch": 32, "actor_lr": 3e-4, "critic_lr": 6e-4}
CONFIG = dataclasses.replace(VAPO, **SIZE, alpha=1.0)
REWARD_MODEL_ROLLOUTS, PRETRAINING_ROLLOUTS = 6, 12
SEEDS = list(range(5))


def main() -> None:
    """Runs the named parts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="critics or runs of each kind")
    arguments = parser.parse_args()
    SEEDS[:] = range(arguments.seeds)
    for name in arguments.parts or PARTS:
        begun, wall = time.process_time(), time.monotonic()
        PARTS[name]()
        print(f"{name}: {time.process_time() - begun:.0f} CPU-s, {time.monotonic() - wall:.0f} s", flush=True)


def write(name: str, part: str, rows: Sequence[dict[str, Any]]) -> None:
    """One CSV, its floats at five significant digits."""
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / f"{name}.csv").open("w", newline="") as file:
        file.write(f"# python benchmarks/mechanisms.py {part} --seeds {len(SEEDS)}; commit {git_commit()}\n")
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})


def engine_for(config: Config, model: str = BASE) -> LocalEngine:
    """An engine whose sampler is ready."""
    logging.getLogger("minivapo.local").setLevel(logging.ERROR)
    engine = LocalEngine(model, config, stop=TASK.stop)
    engine.sampler.sync(engine.actor)
    return engine


def mean_error(xs: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    x = torch.tensor(xs, dtype=torch.float64)
    return float(x.mean()), float(x.std() / math.sqrt(len(x))) if len(x) > 1 else math.nan


# ---------------------------------------------------------------------------------------------------------
# What several parts need
# ---------------------------------------------------------------------------------------------------------


def half_trained_policy() -> str:
    """The base after 8 steps of GRPO: it solves some long problems, so that their tokens have values to tell apart."""
    folder = WORK / "policy"
    if not folder.exists():
        config = dataclasses.replace(GRPO, **SIZE, seed=100)
        engine = engine_for(config)
        for _ in range(8):
            metrics = train_step(config, TASK, engine)
            engine.progress.step += 1
            print("policy", engine.progress.step, f"{metrics['reward/accuracy']:.3f}", flush=True)
        engine.actor.save(folder)
        engine.tokenizer.save_pretrained(folder)
    return str(folder)


def critics(model: str, seed: int) -> dict[str, Path]:
    """Critics for one policy: from a reward model, then value-pretrained; their folders by kind."""
    name = Path(model).name
    folders = {kind: WORK / f"{name}-{kind}-{seed}" for kind in ("reward-model", "pretrained")}
    if not folders["pretrained"].exists():
        config = dataclasses.replace(CONFIG, seed=seed)
        engine = engine_for(config, model)
        curve = []
        phases = [("reward-model", "score", REWARD_MODEL_ROLLOUTS), ("pretrained", "returns", PRETRAINING_ROLLOUTS)]
        for kind, target, count in phases if model == BASE else phases[1:]:
            for rollout in m.fit_critic(config, TASK, engine, count, target, kind):
                curve.append({"policy": name, "seed": seed, "phase": kind, "rollout": len(curve), **fit(rollout)})
            engine.critic.save(folders[kind])
            engine.tokenizer.save_pretrained(folders[kind])
        write(f"pretraining_{name}_{seed}", "value" if name == "chain" else "lambda", curve)
    return folders


def fit(rollout: Rollout) -> dict[str, float]:
    """Explained variance and squared error of the critic on a fresh rollout."""
    from minivapo.interfaces import World
    from minivapo.measure import explained_variance

    assert rollout.values is not None
    returns = rollout.rewards.sum(1, keepdim=True)
    error = (rollout.values - returns)[rollout.mask].square().mean()
    found = explained_variance(rollout, World())
    names = {"value/explained_variance": "explained_variance"}
    names |= {f"value/explained_variance_q{i}": f"explained_variance_q{i}" for i in range(1, 5)}
    return {"squared_error": float(error), **{short: found[long] for long, short in names.items()}}


def critic_values(folder: Path, rollout: Rollout) -> torch.Tensor:
    """What a saved critic says of every token of a rollout."""
    return LocalLearner(load_critic(folder), "critic", CONFIG).forward(rollout)["values"]


# ---------------------------------------------------------------------------------------------------------
# The parts
# ---------------------------------------------------------------------------------------------------------


def reach() -> None:
    """3: weight of the reward in value targets, the formula beside what gae() gives."""
    rows = []
    for length in (20, 100, 400):
        for lam in (0.95, 1.0):
            measured = m.measured_reward_weight(length, lam)
            steps = torch.arange(length).flip(0)
            exact = m.reward_weight(steps, lam)
            gap = float((measured - exact).abs().max())
            for share in (0, 0.25, 0.5, 0.75, 1):
                t = round(share * (length - 1))
                rows.append(
                    {
                        "length": length,
                        "lam_critic": lam,
                        "position": t,
                        "tokens_to_end": length - 1 - t,
                        "weight_of_reward": float(exact[t]),
                        "measured_with_gae": float(measured[t]),
                        "largest_gap": gap,
                    }
                )
    write("reach", "reach", rows)


def value() -> None:
    """2: bias of critics along the response, against true values of the base policy."""
    engine = engine_for(dataclasses.replace(CONFIG, group_size=1, batch_size=128, mini_batch=128, seed=1000))
    rollout = collect(engine.actor.config, TASK, engine, "probe")
    keep = (rollout.lengths >= 9).nonzero()[:96, 0]
    problems = [rollout.problems[i] for i in keep]
    rollout = rollout.rows(keep)
    rollout.problems = problems
    shares = [i / 8 for i in range(9)]
    rows, positions, bins = m.positions_at(rollout.lengths, shares)
    path = WORK / "truth.pt"
    if not path.exists():
        responses = [m.response_tokens(rollout, i) for i in rows]
        found = m.true_values(engine, TASK, [rollout.problems[i] for i in rows], responses, positions, 16, seed=1)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(found, path)
        print("truth", flush=True)
    truth, _ = torch.load(path, weights_only=True)
    table: dict[tuple[str, int], list[dict[str, float]]] = {}
    for seed in SEEDS:
        for kind, folder in critics(BASE, seed).items():
            values = m.at_position(critic_values(folder, rollout), rollout, rows, positions)
            for b, found in enumerate(m.value_bias(values, truth, bins)):
                table.setdefault((kind, b), []).append(found)
        write_value(table, shares, seed + 1)


def write_value(table: dict[tuple[str, int], list[dict[str, float]]], shares: list[float], seeds: int) -> None:
    """Means over critics; the error joins the spread over critics and over prefixes."""
    rows = []
    for (kind, b), found in table.items():
        bias, over_critics = mean_error([f["bias"] for f in found])
        over_prefixes = mean_error([f["bias_error"] for f in found])[0]
        rows.append(
            {
                "critic": kind,
                "position": shares[b],
                "critics": seeds,
                "truth": found[0]["truth"],
                "value": mean_error([f["value"] for f in found])[0],
                "bias": bias,
                "bias_error": math.hypot(over_critics if seeds > 1 else 0.0, over_prefixes),
                "correlation": mean_error([f["correlation"] for f in found])[0],
            }
        )
    write("value_bias", "value", rows)


LAMBDAS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
ALPHAS = (0.05, 0.1, 0.3, 1.0)
RESPONSES, TOKENS, FUTURES = 40, 2, 16
"""Responses of each length group, tokens probed in each, continuations before and after each token."""


def probe_of(policy: str) -> dict[str, m.AdvantageProbe]:
    """Tokens of short and of long responses with their continuations."""
    engine = engine_for(dataclasses.replace(CONFIG, group_size=1, seed=2000, batch_size=768), policy)
    rollout = collect(engine.actor.config, TASK, engine, "probe")
    found = {}
    neutral = engine.tokenizer.convert_tokens_to_ids(list(FILLERS))
    options = m.choices(rollout, rollout.sampled_logprobs, neutral)
    generator = torch.Generator().manual_seed(7)
    for name, low, high in (("short", 8, 26), ("long", 60, 321)):
        fits = (rollout.lengths >= low) & (rollout.lengths < high)
        keep = [i for i in fits.nonzero()[:, 0].tolist() if len(options[i]) >= TOKENS][:RESPONSES]
        rows = [i for i in keep for _ in range(TOKENS)]
        shuffled = [torch.randperm(len(options[i]), generator=generator)[:TOKENS].tolist() for i in keep]
        positions = [options[i][j] for i, picks in zip(keep, shuffled, strict=True) for j in picks]
        found[name] = m.probe_advantages(engine, TASK, rollout, rows, positions, FUTURES, seed=3)
        print("probe", name, len(keep), float(rollout.correct[keep].double().mean()), flush=True)
    return found


def lambdas() -> None:
    """4: bias and variance of advantages over λ, short and long responses, learned critics."""
    policy = half_trained_policy()
    probes = probe_of(policy)
    rows: list[dict[str, Any]] = []
    for seed in SEEDS:
        folder = critics(policy, seed)["pretrained"]
        for name, probe in probes.items():
            values = critic_values(folder, probe.rollout)
            grid: list[tuple[str, float, Any]] = [("lambda", lam, lam) for lam in LAMBDAS]
            grid += [("alpha", a, length_adaptive_lambda(probe.rollout.lengths, a)) for a in ALPHAS]
            for kind, x, lam in grid:
                errors = m.advantage_errors(probe, values, lam)
                row: dict[str, Any] = {"responses": name, "critic_seed": seed, "kind": kind, "setting": x}
                row["mean_lambda"] = float(torch.as_tensor(lam).mean())
                row["mean_length"] = float(probe.lengths.double().mean())
                for key in ("bias_squared", "variance", "baseline_squared", "truth_square"):
                    per_response = errors[key].view(-1, TOKENS).mean(1)  # tokens of a response are not independent
                    row[key] = float(per_response.mean())
                    row[f"{key}_se"] = float(per_response.std() / math.sqrt(len(per_response)))
                row |= {f"error_of_{n}": m.error_of_mean(errors, n) for n in (1, 10, 100)}
                row["cosine"] = m.cosine(errors)
                rows.append(row)
        write("advantage_error", "lambda", rows)


def loss() -> None:
    """5: share of the gradient by response length under both losses."""
    edges, rows = (20, 60), []
    policies = {"base": BASE, "half-trained": half_trained_policy()}
    for name, policy in policies.items():
        engine = engine_for(dataclasses.replace(CONFIG, seed=3000), policy)
        for seed in SEEDS:
            config = dataclasses.replace(CONFIG, seed=3000 + seed)
            rollout = collect(config, TASK, engine, "loss")
            for estimate in ("gae", "group"):
                if estimate == "gae":
                    rollout.values = critic_values(critics(policy, seed)["pretrained"], rollout)
                rollout.advantages, rollout.returns, rollout.lam = estimate_advantages(
                    dataclasses.replace(config, advantage=estimate), rollout
                )
                for level in ("sample", "token"):
                    shares = m.gradient_share(rollout, edges, level == "token")
                    for label, share in zip(("<20", "20-59", ">=60"), shares, strict=True):
                        head = {"policy": name, "seed": seed, "advantage": estimate, "loss": level, "length": label}
                        rows.append(head | share)
    write("gradient_share", "loss", rows)


def clip() -> None:
    """6: entropy and clipped share over short paired runs with ε_high 0.2 and 0.28."""
    rows = []
    for seed in SEEDS:
        critic = critics(BASE, seed)["pretrained"]
        for clip_high in (0.2, 0.28):
            config = dataclasses.replace(
                CONFIG, mini_batch=16, micro_batch=16, actor_lr=3e-4, clip_high=clip_high, seed=seed,
                critic_init=str(critic), value_pretrain_steps=0,
            )  # fmt: skip
            engine = engine_for(config)
            for step in range(1, 7):
                metrics = train_step(config, TASK, engine)
                engine.progress.step += 1
                rows.append({"seed": seed, "clip_high": clip_high, "step": step} | {
                    name: metrics[key]
                    for name, key in (
                        ("accuracy", "reward/accuracy"), ("entropy", "policy/entropy"),
                        ("clipped_high", "actor/clip_high"), ("clipped_low", "actor/clip_low"),
                        ("approx_kl", "actor/approx_kl"),
                    )
                })  # fmt: skip
            write("clip", "clip", rows)


def sparse_task() -> m.ProblemSet:
    """Problems of four hard operations, every step of which must be right: the base solves about 1 in 50."""
    path = OUT / "sparse_problems.csv"
    drawn = TASK.train_problems(0, 1280, 4000)
    problems = [p for p in drawn if sum(p.prompt.split().count(o) for o in HARD) == 4 and len(p.prompt.split()) <= 22]
    task = m.ProblemSet(Chain(ChainSpec(every_line=True)), problems[:48])
    if not path.exists() or [p.prompt for p in m.read_problems(path)] != [p.prompt for p in task.problems]:
        engine = engine_for(dataclasses.replace(CONFIG, seed=4000))
        tries = m.continue_prefixes(engine, task, task.problems, [[] for _ in task.problems], 32, seed=6)
        right = tries.correct.view(-1, 32)
        counted = zip(task.problems, right.sum(1).tolist(), strict=True)
        write(
            "sparse_problems",
            "sparse",
            [{"prompt": p.prompt, "answer": p.answer, "right_of_32": int(r)} for p, r in counted],
        )
        print("sparse problems", len(right), float(right.double().mean()), flush=True)
    return task


def sparse() -> None:
    """7: waiting for right answers, mixed groups, and what the positive-example loss does where rewards are sparse."""
    task = sparse_task()
    problems = task.problems
    engine = engine_for(dataclasses.replace(CONFIG, seed=5000))

    drawn = TASK.train_problems(0, 96, 5000)
    many = m.continue_prefixes(engine, TASK, drawn, [[] for _ in drawn], 32, seed=8).correct.view(-1, 32)
    hard = m.continue_prefixes(engine, task, problems, [[] for _ in problems], 32, seed=9).correct.view(-1, 32)
    rows = []
    for name, verdicts in (("all", many), ("sparse", hard)):
        one, other = verdicts[:, :16], verdicts[:, 16:]  # pass rates from one half, groups from the other
        for n in (2, 4, 8, 16):
            groups = other.reshape(len(other), -1, n)
            mixed = (groups.any(2) & ~groups.all(2)).double().mean(1)
            formula = m.estimated_mixed_share(one.sum(1), 16, n)
            rows.append(
                {
                    "problems": name,
                    "group_size": n,
                    "pass_rate": float(verdicts.double().mean()),
                    "measured": float(mixed.mean()),
                    "measured_se": float(mixed.std() / math.sqrt(len(mixed))),
                    "from_pass_rates": float(formula.mean()),
                    "from_pass_rates_se": float(formula.std() / math.sqrt(len(formula))),
                    "from_mean_pass_rate": float(m.mixed_share(float(verdicts.double().mean()), n)),
                }
            )
    write("mixed_groups", "sparse", rows)

    stream = hard[:, torch.randperm(32, generator=torch.Generator().manual_seed(0))].T.flatten().tolist()
    rate, waits = sum(stream) / len(stream), []
    for k in (1, 2, 4, 8):
        found = m.samples_to_successes(stream, k)
        mean, error = mean_error([float(x) for x in found]) if len(found) > 1 else (math.nan, math.nan)
        waits.append({"k": k, "pass_rate": rate, "expected": k / rate, "measured": mean, "measured_se": error})
    write("samples_to_successes", "sparse", waits)

    rows = []
    for seed in SEEDS:
        for mu in (0.0, 0.1):
            config = dataclasses.replace(
                CONFIG, positive_coef=mu, group_size=16, seed=derive_seed("sparse", seed),
                critic_init=str(critics(BASE, seed)["pretrained"]), value_pretrain_steps=0,
            )  # fmt: skip
            engine = engine_for(config)
            for step in range(1, 7):
                metrics = train_step(config, task, engine)
                engine.progress.step += 1
                rows.append(
                    {
                        "seed": seed,
                        "positive_coef": mu,
                        "step": step,
                        "accuracy": metrics["reward/accuracy"],
                        "mixed_groups": metrics["reward/mixed_groups"],
                        "entropy": metrics["policy/entropy"],
                        "length": metrics["response/length"],
                    }
                )
            write("positive_loss", "sparse", rows)


PARTS: dict[str, Callable[[], None]] = {
    "reach": reach,
    "value": value,
    "lambda": lambdas,
    "loss": loss,
    "clip": clip,
    "sparse": sparse,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
