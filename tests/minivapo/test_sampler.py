"""The local sampler: its log-probs are the learner's, its draws follow the model, dropping rows changes nothing."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from minivapo import local
from minivapo.caches import BufferedLayer
from minivapo.interfaces import make_rollout
from minivapo.loading import stop_ids
from minivapo.local import LocalEngine, LocalSampler, check_finite, pick
from minivapo.responses import encode_prompt, pad_id, response_text
from minivapo.tasks.chain import Chain, ChainSpec
from minivapo.vapo import Config

GREEDY = {"temperature": 1.0, "top_p": 1e-9}


@pytest.fixture(scope="module")
def engine(tiny_model):
    engine = LocalEngine(tiny_model, Config(advantage="group", max_new_tokens=24))
    engine.sampler.sync(engine.actor)
    return engine


@pytest.fixture(scope="module")
def prompts(engine):
    """Prompts of several lengths, longest first."""
    problems = sorted(Chain(ChainSpec(max_steps=9)).train_problems(0, 12, 0), key=lambda p: -len(p.prompt))
    assert len({len(p.prompt.split()) for p in problems}) >= 3
    return [encode_prompt(engine.tokenizer, p.prompt, 64) for p in problems]


def sampler_of(engine, **changes):
    sampler = LocalSampler(engine.tokenizer, **({"max_new_tokens": 24} | changes))
    sampler.sync(engine.actor)
    return sampler


def test_log_probs_are_the_learners(engine, prompts):
    """Left padding, cache, shared prefill and dropped rows on one side; right padding and whole rows on the other."""
    samples = engine.sampler.generate(prompts, 4, 0, 0)
    rollout = make_rollout([p for p in prompts for _ in range(4)], samples, range(48), pad_id(engine.tokenizer))
    assert len(set(rollout.lengths.tolist())) > 3
    gap = (engine.actor.forward(rollout)["logprobs"] - rollout.sampled_logprobs)[rollout.mask].abs()
    assert gap.max() < 5e-6


def test_learner_outputs_are_log_softmax_and_entropy(engine, prompts):
    """Column t speaks of token t, read off the model's logits at t − 1."""
    samples = engine.sampler.generate(prompts, 1, 0, 0)
    rollout = make_rollout(prompts, samples, range(12), pad_id(engine.tokenizer))
    found = engine.actor.forward(rollout)
    for i in range(12):
        total, length = int(rollout.totals[i]), int(rollout.lengths[i])
        tokens = rollout.tokens[i, :total]
        with torch.no_grad():
            table = torch.log_softmax(engine.actor.model(tokens[None]).logits[0], -1)
        for t in range(total - length, total):
            assert found["logprobs"][i, t].item() == pytest.approx(table[t - 1, tokens[t]].item(), abs=1e-5)
            entropy = -(table[t - 1].exp() * table[t - 1]).sum().item()
            assert found["entropy"][i, t].item() == pytest.approx(entropy, abs=1e-4)


@pytest.mark.parametrize(("batch", "n"), [(256, 1), (5, 1), (8, 2), (1, 3)])
def test_batching_and_padding_change_no_greedy_response(engine, prompts, batch, n):
    """Greedy responses do not depend on the draw, so those of any batch equal those of each prompt alone."""
    alone = [sampler_of(engine).generate([p], 1, 0, 0, **GREEDY)[0] for p in prompts]
    together = sampler_of(engine, batch=batch).generate(prompts, n, 7, 0, **GREEDY)
    assert len({len(s.tokens) for s in alone}) > 1, "rows of one batch must end at different times"
    for i, sample in enumerate(together):
        assert sample.tokens == alone[i // n].tokens
        assert sample.terminated == alone[i // n].terminated
        assert sample.logprobs == pytest.approx(alone[i // n].logprobs, abs=5e-6)


def test_a_response_ends_at_eos_or_is_truncated_at_the_limit(engine, prompts):
    sampler = sampler_of(engine, max_new_tokens=7)
    samples = sampler.generate(prompts, 8, 3, 0)
    eos = engine.tokenizer.eos_token_id
    assert {s.terminated for s in samples} == {True, False}
    for sample in samples:
        assert 1 <= len(sample.tokens) <= 7
        assert len(sample.logprobs) == len(sample.tokens)
        assert eos not in sample.tokens[:-1]
        assert sample.terminated == (sample.tokens[-1] == eos)
        assert sample.terminated or len(sample.tokens) == 7


def test_every_end_of_the_generation_config_ends_a_response(tiny_model, prompts):
    engine = LocalEngine(tiny_model, Config(advantage="group", max_new_tokens=24))
    equals = engine.tokenizer.convert_tokens_to_ids("=")
    engine.actor.model.generation_config.eos_token_id = [engine.tokenizer.eos_token_id, equals]
    assert stop_ids(engine.actor.model, engine.tokenizer) == sorted({engine.tokenizer.eos_token_id, equals})
    engine.sampler.sync(engine.actor)
    samples = engine.sampler.generate(prompts, 2, 0, 0)
    assert any(s.tokens[-1] == equals for s in samples)
    assert all(equals not in s.tokens[:-1] for s in samples)


def test_stop_strings_end_a_response_and_stay_in_it(engine, prompts):
    samples = sampler_of(engine, stop=("=", "? never")).generate(prompts, 4, 0, 0)
    texts = [response_text(engine.tokenizer, s) for s in samples]
    stopped = [(s, t) for s, t in zip(samples, texts, strict=True) if "=" in t]
    assert stopped
    for sample, text in stopped:
        assert text.endswith("=")
        assert text.count("=") == 1
        assert sample.terminated


def test_a_stop_string_of_several_tokens(engine, prompts):
    digits = "0123456789"
    samples = sampler_of(engine, stop=tuple(f"= {d}" for d in digits)).generate(prompts, 4, 0, 0)
    texts = [response_text(engine.tokenizer, s) for s in samples]
    assert any(t[-3:-1] == "= " for t in texts)
    for text in texts:
        hits = [i for i in range(len(text)) if text[i : i + 2] == "= " and text[i + 2] in digits]
        assert hits in ([], [len(text) - 3])


def test_same_seed_same_responses_another_seed_others(engine, prompts):
    first, again, other = (engine.sampler.generate(prompts, 3, seed, 0) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_samples_of_one_prompt_differ(engine, prompts):
    samples = engine.sampler.generate(prompts[:1], 16, 0, 0)
    assert len({tuple(s.tokens) for s in samples}) > 4


def test_in_bfloat16_each_weight_is_cast_once_for_all_tokens(tiny_model, prompts):
    class Casts(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._to_copy.default and args[0] is head:
                self.count += 1
            return func(*args, **(kwargs or {}))

    engine = LocalEngine(tiny_model, Config(advantage="group", max_new_tokens=24), autocast=True)
    engine.sampler.sync(engine.actor)
    head = engine.actor.model.get_output_embeddings().weight
    with Casts() as casts:
        samples = engine.sampler.generate(prompts, 1, 0, 0)
    assert max(len(s.tokens) for s in samples) > 1
    assert casts.count == 1


def test_global_random_state_is_neither_read_nor_moved(engine, prompts):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = engine.sampler.generate(prompts, 1, 5, 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert engine.sampler.generate(prompts, 1, 5, 0) == first


def test_stale_weights_are_refused(engine, prompts):
    with pytest.raises(RuntimeError, match="version 0, not 3: call sync"):
        engine.sampler.generate(prompts, 1, 0, 3)


def test_no_prompts_no_responses(engine):
    assert engine.sampler.generate([], 4, 0, 0) == []


# The distribution of the draws


def chi_square_is_plausible(counts, probs):
    """Pearson's statistic within four deviations of its mean, cells of fewer than five expected draws joined."""
    expected = probs * counts.sum()
    small = expected < 5
    counts = torch.cat([counts[~small], counts[small].sum()[None]])
    expected = torch.cat([expected[~small], expected[small].sum()[None]])
    keep = expected > 1e-9
    assert counts[~keep].sum() == 0
    counts, expected = counts[keep], expected[keep]
    statistic = ((counts - expected).square() / expected).sum().item()
    freedom = max(len(counts) - 1, 1)
    return statistic < freedom + 4 * math.sqrt(2 * freedom) + 4


def test_responses_follow_the_model_also_after_rows_were_dropped(engine, prompts):
    """First tokens, and second tokens after the commonest first one, against the model's own distribution."""
    prompt, n = prompts[0], 3000
    samples = sampler_of(engine, batch=n, max_new_tokens=3).generate([prompt], n, 11, 0)

    def distribution(prefix):
        with torch.no_grad():
            return torch.softmax(engine.actor.model(torch.tensor([prefix])).logits[0, -1].double(), -1)

    def counts(tokens, size):
        return torch.bincount(torch.tensor(tokens), minlength=size).double()

    probs = distribution(prompt)
    first = counts([s.tokens[0] for s in samples], len(probs))
    assert chi_square_is_plausible(first, probs)
    assert not chi_square_is_plausible(first, probs.roll(1)), "the check must see a wrong distribution"
    probs[engine.tokenizer.eos_token_id] = 0
    common = int(probs.argmax())
    followers = [s.tokens[1] for s in samples if s.tokens[0] == common]
    assert len(followers) > 100
    assert chi_square_is_plausible(counts(followers, len(probs)), distribution([*prompt, common]))


LOGITS = st.lists(st.floats(-6, 6), min_size=2, max_size=12)


def nucleus(probs, top_p):
    """The tokens that top-p keeps, by its definition: the most probable ones until their sum reaches top_p."""
    kept, total = [], 0.0
    for i in sorted(range(len(probs)), key=lambda i: -probs[i]):
        kept.append(i)
        total += probs[i]
        if total >= top_p:
            return kept
    return kept


@settings(max_examples=60)
@given(LOGITS, st.floats(0.01, 0.99), st.floats(0.5, 2), st.integers(0, 100))
def test_top_p_keeps_the_nucleus_and_log_probs_stay_the_models(logits, top_p, temperature, seed):
    row = torch.tensor(logits)
    probs = torch.softmax(row.double() / temperature, -1).tolist()
    order = sorted(probs, reverse=True)
    sums = torch.tensor(order).cumsum(0)
    if (sums - top_p).abs().min() < 1e-5 or (torch.tensor(order).diff().abs() < 1e-7).any():
        return  # rounding decides, or a tie does
    generator = torch.Generator().manual_seed(seed)
    picked, logprobs = pick(row.expand(400, -1), generator, temperature, top_p)
    kept = nucleus(probs, top_p)
    assert set(picked.tolist()) <= set(kept)
    assert probs.index(order[0]) in set(picked.tolist()), "the most probable token is always kept"
    raw = torch.log_softmax(row, -1)
    torch.testing.assert_close(logprobs, raw[picked])


@settings(max_examples=80)
@given(st.integers(0, 2**31), st.floats(0, 9), st.floats(0.001, 0.999), st.integers(1, 40))
def test_the_nucleus_is_found_without_sorting_everything(seed, sharpness, top_p, few):
    """Bit for bit what sorting the whole vocabulary gives, up to which of two equals is kept."""
    g = torch.Generator().manual_seed(seed)
    probs = torch.softmax(sharpness * torch.rand(5, 1, generator=g) * torch.randn(5, 700, generator=g), -1)
    ordered = probs.sort(-1, descending=True).values
    ordered[ordered.cumsum(-1) - ordered >= top_p] = 0
    found = local.nucleus(probs, top_p, few)
    assert torch.equal(found.sort(-1, descending=True).values, ordered)
    assert torch.equal(found[found > 0], probs[found > 0])


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.7), (0.7, 0.9)])
def test_draws_follow_the_tempered_truncated_distribution(temperature, top_p):
    row = torch.tensor([2.0, 1.5, 1.0, 0.0, -1.0, -3.0])
    probs = torch.softmax(row.double() / temperature, -1)
    kept = nucleus(probs.tolist(), top_p)
    expected = torch.zeros_like(probs)
    expected[kept] = probs[kept] / probs[kept].sum()
    picked, _ = pick(row.expand(4000, -1), torch.Generator().manual_seed(3), temperature, top_p)
    assert chi_square_is_plausible(torch.bincount(picked, minlength=6).double(), expected)


# The cache


@settings(max_examples=25)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=5), st.integers(0, 100), st.data())
def test_buffered_cache_holds_what_concatenation_would(steps, seed, data):
    """Growing, repeating and dropping rows, against tensors that are simply concatenated."""
    g = torch.Generator().manual_seed(seed)
    layer, keys, values = BufferedLayer(), None, None
    rows = 2
    for i, length in enumerate(steps):
        k, v = torch.randn(2, rows, 1, length, 3, generator=g)
        keys, values = (k, v) if keys is None else (torch.cat([keys, k], 2), torch.cat([values, v], 2))
        found = layer.update(k, v)
        assert torch.equal(found[0], keys)
        assert torch.equal(found[1], values)
        assert layer.get_seq_length() == keys.shape[2]
        if i == 0:
            layer.reorder_cache(torch.arange(rows).repeat_interleave(3))
            keys, values, rows = keys.repeat_interleave(3, 0), values.repeat_interleave(3, 0), 6
        elif rows > 1:
            index = torch.tensor(sorted(data.draw(st.sets(st.integers(0, rows - 1), min_size=1))))
            layer.reorder_cache(index)
            keys, values, rows = keys[index], values[index], len(index)
    assert torch.equal(layer.keys, keys)
    assert torch.equal(layer.values, values)


def test_long_responses_outgrow_the_cache_and_still_agree(engine):
    """200 tokens without an end: the buffer grows several times; log-probs stay the learner's."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
                    max_position_embeddings=512, eos_token_id=None, bos_token_id=None)
    ).eval()  # fmt: skip
    tokenizer = SimpleNamespace(eos_token_id=99, pad_token_id=0)  # 99: never said
    actor = dataclasses.replace(Config(advantage="group"))
    learner = type(engine.actor)(model, "actor", actor)
    sampler = LocalSampler(tokenizer, 200)
    sampler.sync(learner)
    prompts = [[5, 6, 7], [8]]
    samples = sampler.generate(prompts, 3, 0, 0)
    assert all(len(s.tokens) == 200 for s in samples)
    rollout = make_rollout([p for p in prompts for _ in range(3)], samples, range(6), 0)
    gap = (learner.forward(rollout)["logprobs"] - rollout.sampled_logprobs)[rollout.mask].abs()
    assert gap.max() < 5e-6


def test_finite_numbers_pass():
    check_finite("actor", 1.0, 2.0)
