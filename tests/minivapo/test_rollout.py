"""From prompts to a judged rollout: pairing, masks, where the reward lands, ranks, dynamic sampling."""

import dataclasses

import pytest
import torch
from fakes import TOKENIZER, NumberTask, digest, fake_engine, on_ranks
from hypothesis import given, settings
from hypothesis import strategies as st

from minivapo.interfaces import Problem, Sample, UserError, World, join, make_rollout
from minivapo.measure import describe
from minivapo.responses import encode_prompt, response_text
from minivapo.vapo import Config, collect, estimate_advantages, evaluate

CONFIG = Config(batch_size=24, mini_batch=12, group_size=2, max_new_tokens=12, eval_problems=20)
GRPO = dataclasses.replace(CONFIG, advantage="group", positive_coef=0.0)
PAD = TOKENIZER.pad_token_id

samples_of = st.builds(
    lambda n, terminated, base: Sample(list(range(base, base + n)), [-0.1 * (i + 1) for i in range(n)], terminated),
    st.integers(1, 6), st.booleans(), st.integers(4, 14),
)  # fmt: skip
pairs_of = st.lists(st.tuples(st.lists(st.integers(4, 17), min_size=1, max_size=5), samples_of), min_size=1, max_size=6)


def read_back(rollout, i):
    """(prompt, response, log-probs) of a row, read off its tensors."""
    total, length = int(rollout.totals[i]), int(rollout.lengths[i])
    tokens = rollout.tokens[i].tolist()
    return tokens[: total - length], tokens[total - length : total], rollout.sampled_logprobs[i, total - length : total]


def check_row(rollout, i, prompt, sample):
    found_prompt, response, logprobs = read_back(rollout, i)
    assert (found_prompt, response) == (prompt, sample.tokens)
    assert logprobs.tolist() == pytest.approx(sample.logprobs)
    columns = torch.arange(rollout.tokens.shape[1])
    total = len(prompt) + len(sample.tokens)
    assert torch.equal(rollout.mask[i], (columns >= len(prompt)) & (columns < total))
    assert (rollout.tokens[i, total:] == PAD).all()
    assert int(rollout.last[i]) == total - 1
    assert bool(rollout.terminated[i]) == sample.terminated


@given(pairs_of)
def test_make_rollout_puts_every_token_in_its_column(pairs):
    prompts, samples = zip(*pairs, strict=True)
    rollout = make_rollout(prompts, samples, range(len(pairs)), PAD)
    for i, (prompt, sample) in enumerate(pairs):
        check_row(rollout, i, prompt, sample)


@given(pairs_of, st.data())
def test_pairing_survives_every_reordering_cutting_and_joining(pairs, data):
    """Rows are picked in any order, cut into parts of their own width and joined again: all columns move together."""
    prompts, samples = zip(*pairs, strict=True)
    rollout = make_rollout(prompts, samples, range(len(pairs)), PAD)
    rollout.rewards[torch.arange(len(pairs)), rollout.last] = torch.arange(len(pairs)).float() + 1
    rollout.values = torch.where(rollout.mask, rollout.tokens * 0.5, 0)
    order = data.draw(st.permutations(range(len(pairs))))
    cut = data.draw(st.integers(0, len(pairs)))
    parts = [rollout.rows(part) for part in (order[:cut], order[cut:]) if len(part)]
    for part in parts:
        assert part.tokens.shape[1] == int(part.totals.max())
        part.problems = [Problem("", "", str(int(g))) for g in part.group]
    again = join(parts, PAD)
    for row, i in enumerate(order):
        check_row(again, row, *pairs[i])
        assert int(again.group[row]) == i
        assert again.problems[row].id == str(i)
        assert again.rewards[row, again.last[row]] == i + 1
        assert again.rewards[row].sum() == i + 1
        assert torch.equal(again.values[row][again.mask[row]], again.tokens[row][again.mask[row]] * 0.5)


def test_collect_pairs_responses_with_prompts_and_verdicts():
    """The sampler echoes the prompt, the task checks the echo, and each row carries its own verdict."""
    task, engine = NumberTask(), fake_engine()
    rollout = collect(CONFIG, task, engine, "train")
    assert len(rollout) == 24
    assert rollout.group.tolist() == [i for i in range(12) for _ in range(2)]
    for i in range(24):
        prompt, response, _ = read_back(rollout, i)
        number = int(rollout.group[i])
        assert TOKENIZER.decode(prompt, skip_special_tokens=True) == rollout.problems[i].prompt
        assert rollout.problems[i].answer == str(number)
        text = TOKENIZER.decode(response, skip_special_tokens=True)
        assert bool(rollout.correct[i]) == task.verdict(number, text)
    assert rollout.correct.any()
    assert not rollout.correct.all()
    assert engine.progress.prompts == 12
    assert engine.progress.samples == 24


def test_reward_lands_on_the_last_token_however_it_ended():
    config = dataclasses.replace(CONFIG, reward_wrong=-1.0)
    rollout = collect(config, NumberTask(), fake_engine(), "train")
    assert rollout.terminated.any()
    assert not rollout.terminated.all()
    for i in range(24):
        place = rollout.rewards[i].nonzero()[:, 0].tolist()
        assert place == [int(rollout.totals[i]) - 1]
        assert rollout.mask[i, place[0]]
        assert rollout.rewards[i, place[0]] == (1.0 if rollout.correct[i] else -1.0)
        last = int(rollout.tokens[i, place[0]])
        assert (last == TOKENIZER.eos_token_id) == bool(rollout.terminated[i])


def test_overlong_penalty_is_added_to_the_reward():
    config = dataclasses.replace(CONFIG, max_new_tokens=10, overlong_share=0.6)
    rollout = collect(config, NumberTask(), fake_engine(), "train")
    expected = rollout.correct.float() - ((rollout.lengths - 4) / 6).clamp(0, 1)
    torch.testing.assert_close(rollout.rewards.sum(1), expected)
    assert (expected != rollout.correct.float()).any()


def test_no_verdict_masks_the_row_and_counts_as_error():
    def verdict(number, words):
        return None if number % 4 == 1 else number % 2 == 0

    rollout = collect(CONFIG, NumberTask(verdict), fake_engine(), "train")
    failed = rollout.group % 4 == 1
    assert torch.equal(rollout.judged, ~failed)
    assert not rollout.mask[failed].any()
    assert not rollout.rewards[failed].any()
    assert not rollout.correct[failed].any()
    rollout.values = torch.ones(rollout.tokens.shape)
    rollout.advantages, rollout.returns, rollout.lam = estimate_advantages(CONFIG, rollout)
    assert not rollout.advantages[failed].any()
    assert not rollout.returns[failed].any()
    rollout.old_logprobs, rollout.entropy = rollout.sampled_logprobs, torch.zeros(rollout.tokens.shape)
    assert describe(rollout, World())["reward/verifier_errors"] == pytest.approx(float(failed.float().mean())) != 0
    found = evaluate(CONFIG, NumberTask(lambda n, _: None), fake_engine())
    assert found["eval/verifier_errors"] == 1
    assert found["eval/accuracy"] == 0


# Ranks


@pytest.mark.parametrize("tries", [0, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 12])
def test_no_prompt_is_lost_or_doubled_over_ranks(size, tries):
    config = dataclasses.replace(GRPO, dynamic_sampling=tries)

    def work(world):
        engine = fake_engine(world)
        first = collect(config, NumberTask(), engine, "train")
        after_first = engine.progress.prompts
        second = collect(config, NumberTask(), engine, "train")
        return first.group[::2].tolist(), second.group[::2].tolist(), after_first, engine.progress.prompts

    results = on_ranks(size, work)
    first = sorted(g for r in results for g in r[0])
    second = sorted(g for r in results for g in r[1])
    assert all(len(r[0]) == len(r[1]) == 12 // size for r in results)
    assert len(set(first + second)) == 24
    assert len({r[2:] for r in results}) == 1, "ranks disagree about how many prompts were drawn"
    drawn, total = results[0][2:]
    assert max(first) < drawn <= min(second)
    assert max(second) < total
    if tries == 0:
        assert first == list(range(12))
        assert second == list(range(12, 24))


def test_a_mini_batch_of_a_groups_size_is_not_one_group():
    """Cut in the order of the prompts it would be, and the token-level loss would divide by that group's tokens."""
    config = dataclasses.replace(CONFIG, mini_batch=CONFIG.group_size)
    rollout = collect(config, NumberTask(), fake_engine(), "train")
    assert sorted(rollout.number.tolist()) == list(range(config.batch_size))
    batches = [rollout.group[rollout.number // config.mini_batch == k] for k in range(config.prompts_per_step)]
    assert sum(len(set(groups.tolist())) > 1 for groups in batches) > len(batches) / 2


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_mini_batch_has_the_same_prompts_on_any_ranks(size):
    """And rows of all prompts are mixed, so that no mini-batch is the group of one."""

    def batches(rollouts):
        rows = sorted((n, g) for r in rollouts for n, g in zip(r.number.tolist(), r.group.tolist(), strict=True))
        assert [n for n, _ in rows] == list(range(CONFIG.batch_size))
        return [[g for _, g in rows[i : i + CONFIG.mini_batch]] for i in range(0, len(rows), CONFIG.mini_batch)]

    def work(world):
        engine = fake_engine(world)
        return [collect(CONFIG, NumberTask(), engine, "train") for _ in range(2)]

    first, second = zip(*on_ranks(size, work), strict=True)
    [alone] = on_ranks(1, work)
    assert batches(first) == batches(alone[:1]) and batches(second) == batches(alone[1:])
    assert batches(first)[0] != [g % 12 for g in batches(second)[0]], "every rollout has a shuffle of its own"
    assert all(len(set(batch)) > 6 for batch in batches(first)), "12 rows in order would be 6 prompts of 2 responses"


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_evaluation_is_the_mean_over_all_held_out_problems(size):
    def verdict(number, words):
        return number % 3 == 0

    config = dataclasses.replace(CONFIG, eval_samples=3)
    results = on_ranks(size, lambda world: evaluate(config, NumberTask(verdict), fake_engine(world)))
    numbers = [int(f"9{i}") for i in range(20)]
    assert all(r["eval/accuracy"] == pytest.approx(sum(n % 3 == 0 for n in numbers) / 20) for r in results)
    assert len({str(r) for r in results}) == 1


def test_ranks_draw_different_responses():
    results = on_ranks(2, lambda world: collect(CONFIG, NumberTask(), fake_engine(world), "train").lengths.tolist())
    assert results[0] != results[1]


# Dynamic sampling (DAPO)


@settings(max_examples=30)
@given(st.integers(0, 4), st.integers(1, 3), st.integers(0, 1000))
def test_dynamic_sampling_keeps_the_size_and_ends(tries, size, salt):
    """Groups are all right, all wrong or mixed by their number; what cannot be replaced in time stays."""
    config = dataclasses.replace(GRPO, dynamic_sampling=tries)

    def kind(number):
        return digest(number, salt) % 3

    def work(world):
        engine, flip = fake_engine(world), {}

        def verdict(number, words):
            flip[number] = not flip.get(number, False)
            return {0: True, 1: False, 2: flip[number]}[kind(number)]

        rollout = collect(config, NumberTask(verdict), engine, "train")
        return rollout, engine

    for rollout, engine in on_ranks(size, work):
        assert len(rollout) == 24 // size
        assert len(engine.sampler.calls) <= tries + 1
        assert engine.progress.prompts <= 12 * (tries + 1)
        assert engine.progress.samples == engine.progress.prompts * 2
        kinds = [kind(g) == 2 for g in rollout.group[::2].tolist()]
        if tries > 0:
            assert kinds == sorted(kinds, reverse=True), "mixed groups come first, others only fill what is missing"
            drawn = range(engine.progress.prompts)
            if not all(kinds) and size == 1:
                assert sum(kinds) == sum(kind(g) == 2 for g in drawn), "a mixed group was thrown away"
        correct = rollout.correct.view(-1, 2)
        assert [bool(c.any() and not c.all()) for c in correct] == kinds


def test_dynamic_sampling_ends_when_no_group_is_ever_mixed():
    engine = fake_engine()
    rollout = collect(dataclasses.replace(GRPO, dynamic_sampling=3), NumberTask(lambda n, w: False), engine, "train")
    assert len(rollout) == 24
    assert engine.sampler.calls == [12, 12, 12, 12]


def test_dynamic_sampling_counts_only_judged_rows():
    """One right and one without a verdict is not a mixed group."""
    flip = {}

    def verdict(number, words):
        flip[number] = not flip.get(number, False)
        return True if flip[number] else None

    engine = fake_engine()
    collect(dataclasses.replace(GRPO, dynamic_sampling=1), NumberTask(verdict), engine, "train")
    assert len(engine.sampler.calls) == 2


def test_collect_is_a_function_of_seed_stream_and_progress():
    def texts(config, stream):
        return collect(config, NumberTask(), fake_engine(), stream).tokens

    assert torch.equal(texts(CONFIG, "train"), texts(CONFIG, "train"))
    assert not torch.equal(texts(CONFIG, "train"), texts(CONFIG, "value-pretraining"))
    assert not torch.equal(texts(CONFIG, "train"), texts(dataclasses.replace(CONFIG, seed=1), "train"))


# Text and tokens


def test_prompt_begins_with_one_bos_and_stays_open():
    bos = TOKENIZER.bos_token_id
    ids = encode_prompt(TOKENIZER, "? 1 2", 10)
    assert ids[0] == bos
    assert TOKENIZER.eos_token_id not in ids
    assert encode_prompt(TOKENIZER, "<bos> ? 1 2", 10) == ids


@pytest.mark.parametrize("prompt", ["? " + "1 " * 30, ""])
def test_a_prompt_of_no_or_too_many_tokens_is_refused(prompt):
    if prompt:
        with pytest.raises(UserError, match="max_prompt_tokens=10"):
            encode_prompt(TOKENIZER, prompt, 10)
    else:
        assert encode_prompt(TOKENIZER, prompt, 10) == [TOKENIZER.bos_token_id]


def test_the_verifier_sees_no_special_tokens():
    tokens = [*TOKENIZER.convert_tokens_to_ids(["1", "a", "b"]), TOKENIZER.eos_token_id]
    assert response_text(TOKENIZER, Sample(tokens, [0.0] * 4, True)) == "1 a b"
