"""The plan: exact counts, the formulas of ZeRO, monotony, advice that is true, and every shipped config."""

import importlib.util
import json
import re
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minivapo.interfaces import UserError
from scaled.config import make_job, read_job
from scaled.planning.advice import ERRORS, changes, plan
from scaled.planning.command import main
from scaled.planning.hardware import GIB, GPUS
from scaled.planning.memory import OFFLOADED, host_memory, kv_token_bytes, phases, resident, sampler_weights
from scaled.planning.setup import Assumptions, make_setup
from scaled.planning.shapes import count, forward_flops, layer_activation_bytes, model_config, shape_of
from scaled.planning.time import load, response_lengths, sampling

CONFIGS = sorted((Path(__file__).parents[3] / "scaled" / "configs").glob("*.yaml"))
SIZES = {  # billions, from the model cards' "number of parameters", and the exact sums of their tensors
    "Qwen/Qwen2.5-0.5B": (0.494, 494_032_768),
    "Qwen/Qwen2.5-1.5B": (1.54, 1_543_714_304),
    "Qwen/Qwen2.5-3B": (3.09, 3_085_938_688),
    "Qwen/Qwen2.5-7B": (7.62, 7_615_616_512),
    "Qwen/Qwen2.5-32B": (32.8, 32_763_876_352),
}
JOB = {
    "model": "Qwen/Qwen2.5-1.5B", "task": "gsm8k", "ranks": 8, "batch_size": 2048, "group_size": 16, "mini_batch": 128,
    "max_prompt_tokens": 512, "max_new_tokens": 2048, "token_budget": 4096,
}  # fmt: skip


def job(**fields):
    return make_job(JOB | fields)


def peak(**fields):
    return plan(job(**fields)).peak.total


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_the_published_ones(name):
    billions, exact = SIZES[name]
    shape = shape_of(name)
    assert shape.parameters == exact
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.005)


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-7B"])
def test_parts_of_a_shape_add_up(name):
    actor, critic = shape_of(name), shape_of(name, "critic")
    norm = actor.hidden
    tied = actor.head_parameters if name.endswith("0.5B") else 0
    whole = actor.layers * actor.layer_parameters + actor.embedding_parameters + norm + actor.head_parameters - tied
    assert actor.parameters == whole
    trunk = actor.layers * actor.layer_parameters + actor.embedding_parameters + norm
    assert critic.parameters == trunk + critic.hidden + 1  # one output and its bias instead of a vocabulary


def test_variants_share_a_shape_and_folders_are_read(tmp_path):
    assert shape_of("Qwen/Qwen2.5-Math-7B-Instruct").parameters == shape_of("Qwen2.5-7B").parameters
    tiny = {"hidden_size": 64, "vocab_size": 100, "num_hidden_layers": 2, "num_attention_heads": 4}
    tiny |= {"model_type": "qwen2", "num_key_value_heads": 2, "intermediate_size": 96}
    (tmp_path / "config.json").write_text(json.dumps(tiny))
    assert shape_of(str(tmp_path)).layers == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 2, "n_embd": 96}))
    with pytest.raises(UserError, match="no plan for models of type 'gpt2'"):
        shape_of(str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"Qwen2\.5-0\.5B"):
        shape_of("no/such-model")


def test_a_run_folder_stands_for_its_models(tmp_path):
    for part, layers in (("actor", 2), ("critic", 1)):
        folder = tmp_path / "checkpoint" / part
        folder.mkdir(parents=True)
        tiny = {"hidden_size": 64, "vocab_size": 100, "num_hidden_layers": layers, "num_attention_heads": 4}
        (folder / "config.json").write_text(
            json.dumps(tiny | {"model_type": "qwen2", "num_key_value_heads": 2, "intermediate_size": 96})
        )
    setup = make_setup(job(model=str(tmp_path), critic_init=str(tmp_path)))
    assert setup.actor.layers == 2 and setup.critic.layers == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_activations_are_exact(dtype):
    config = model_config("Qwen2.5-0.5B")
    config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.vocab_size = 2, 112, 96, 64
    config.layer_types = config.layer_types[:2]
    from transformers import AutoModelForCausalLM

    model, shape = AutoModelForCausalLM.from_config(config, dtype=dtype), count(config)
    known, kept, total = {p.untyped_storage().data_ptr() for p in model.parameters()}, [], []
    layer = model.model.layers[1]

    def note(t):
        key = t.untyped_storage().data_ptr()
        if key not in known:
            known.add(key)
            kept.append(t)
            total.append(t.untyped_storage().nbytes() if inside else 0)
        return t

    inside = []
    layer.register_forward_pre_hook(lambda *_: inside.append(1))
    layer.register_forward_hook(lambda *_: inside.clear())
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        model(input_ids=torch.zeros(1, 32, dtype=torch.long), use_cache=False)
    assert layer_activation_bytes(shape, 32, dtype.itemsize) == sum(total)


def test_flops_of_the_weights_are_six_n_tokens():
    shape = shape_of("Qwen/Qwen2.5-7B")
    assert 3 * forward_flops(shape, 1000, 0) == 6 * shape.matmul_parameters * 1000
    # Everything but the input embedding, norms and biases is multiplied with.
    assert shape.matmul_parameters == pytest.approx(shape.parameters - shape.embedding_parameters, rel=1e-3)
    # Causal attention of the published numbers: 2 · layers · width · s² forward.
    assert forward_flops(shape, 0, 4096**2) == 2 * 28 * 3584 * 4096**2


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_formulas(stage, dtype, offload):
    setup = make_setup(job(zero_stage=stage, dtype=dtype, offload_optimizer=offload))
    n, width = setup.actor.parameters, 2 if dtype == "bfloat16" else 4
    memory = resident(setup, "actor", setup.actor)
    assert memory["actor", "weights"] == width * n / (8 if stage == 3 else 1)
    assert memory.get(("actor", "optimizer"), 0) == (0 if offload else 12 * n / 8)
    assert memory.get(("actor", "gradients"), 0) == (4 * n / 8 if stage == 3 and not offload else 0)
    asleep = 8 * sampler_weights(setup)
    pinned = host_memory(setup) / setup.assume.pinned_rounding
    assert pinned - asleep == pytest.approx(OFFLOADED * (n + setup.critic.parameters) if offload else 0, abs=1e3)


def test_offload_is_suggested_only_where_the_machine_holds_it():
    """32B on one machine: 1,300 GiB of state, which pinned buffers may double, in 1,863 GiB."""
    result = plan(read_job("scaled/configs/qwen2.5-32b-64gpu.yaml", ["ranks=8"]))
    assert not result.fits and result.suggestions
    machine = GPUS["h100-80"].host_memory / GIB
    for text in result.suggestions:
        said = re.search(r"([\d.]+) GiB of CPU memory per machine", text)
        assert said is None or float(said[1]) <= machine
    assert not any(text.startswith("offload_optimizer: true: fits") for text in result.suggestions)


def test_saving_is_counted_and_stays_within_its_share():
    result = plan(read_job("scaled/configs/qwen2.5-32b-64gpu.yaml"))
    told = result.to_dict()
    n = sum(shape.parameters for _, shape in result.setup.learners)
    assert told["checkpoint_bytes"] == 14 * n  # the 0.9 TB of docs/cluster.md
    others = sum(x for name, x in result.run.items() if name != "saving")
    assert 0 < result.run["saving"] <= others / 19 * 1.001


def test_parts_add_up():
    result = plan(job())
    for phase in result.phases:
        assert phase.total == pytest.approx(sum(phase.parts.values()))
        assert all(x >= 0 for x in phase.parts.values())
    told = result.to_dict()
    for name, parts in told["memory_bytes"].items():
        assert sum(parts.values()) == pytest.approx(told["peak_bytes"][name], abs=len(parts))
    assert json.loads(json.dumps(told))["fits"]
    names = ["sample", "forward", "critic backward", "critic step", "actor backward", "actor step", "sync"]
    assert [phase.name for phase in result.phases] == names
    assert set(result.step) == {"sample", "forward", "critic update", "actor update", "sync"}


def test_group_advantages_need_no_critic():
    result = plan(job(preset="grpo"))
    assert result.setup.critic is None
    assert not any(owner == "critic" for phase in result.phases for owner, _ in phase.parts)
    assert "value-pretraining" not in result.run
    assert plan(job(preset="grpo", kl_coef=0.1)).phases[0].parts["reference", "weights"] > 0


def test_a_smaller_critic_needs_less():
    smaller = plan(job(critic="Qwen/Qwen2.5-0.5B"))
    assert smaller.setup.critic.parameters < 5e8
    assert smaller.peak.total < plan(job()).peak.total


FREE = {"sampler_memory": 0.2}  # so that the learner, not vLLM's share, decides


@pytest.mark.once
@settings(max_examples=10)
@given(
    stage=st.sampled_from([2, 3]),
    power=st.integers(0, 3),
    budget=st.integers(2560, 20000),
    checkpoint=st.booleans(),
    offload=st.booleans(),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_memory_is_monotone(stage, power, budget, checkpoint, offload, dtype):
    fields = FREE | {
        "zero_stage": stage, "ranks": 2**power, "token_budget": budget, "activation_checkpointing": checkpoint,
        "offload_optimizer": offload, "dtype": dtype,
    }  # fmt: skip
    here = {phase.name: phase.total for phase in phases(make_setup(job(**fields)))}

    def worse(**changed):
        there = {phase.name: phase.total for phase in phases(make_setup(job(**fields | changed)))}
        return all(there[name] >= here[name] - 1 for name in here)

    assert worse(token_budget=budget + 1000)
    assert worse(activation_checkpointing=False)
    assert worse(offload_optimizer=False)
    assert worse(dtype="float32")
    assert worse(model="Qwen/Qwen2.5-3B")
    assert worse(max_new_tokens=4096)
    assert worse(logits_chunk=2048)
    assert worse(attention="sdpa")
    if power > 1:  # from one rank to two, ZeRO-2's all-gather appears
        assert worse(ranks=2 ** (power - 1))


@pytest.mark.parametrize("count", [1, 2, 7, 64, 8192])
@pytest.mark.parametrize("share", [0.05, 0.25, 0.6, 1.0])
def test_assumed_lengths_have_the_mean_and_the_limit(share, count):
    lengths = response_lengths(20480, share, count)
    assert len(lengths) == count and max(lengths) <= 20480 and min(lengths) >= 1
    if count >= 64:
        assert sum(lengths) / count == pytest.approx(share * 20480, rel=0.03)


def test_decoding_is_bounded_by_its_parts():
    """The simulation lies between the slowest response alone and everything one after the other."""
    setup = make_setup(job())
    work = load(setup, 2048, 16)
    found = sampling(setup, work)
    gpu, a = setup.gpu, setup.assume
    step = sampler_weights(setup) / (gpu.bandwidth * a.sampler_bandwidth) + a.decode_overhead
    longest = max(response_lengths(2048, 0.25, 256))
    assert found.seconds >= longest * step
    assert found.seconds <= work.response_tokens / 8 * step * 2
    assert 0 <= found.idle < 1 and 1 <= found.slots <= 256


def test_time_falls_with_ranks_and_rises_with_length():
    def step(**fields):
        return sum(plan(job(**fields)).step.values())

    assert step(ranks=16) < step(ranks=8) < step(ranks=4)
    assert step(max_new_tokens=4096, token_budget=4608) > step()
    assert plan(job(), "a100-80").step["actor update"] > plan(job(), "h100-80").step["actor update"]
    slow = plan(job(), assume=Assumptions(learner_efficiency=0.2)).step
    assert slow["actor update"] == pytest.approx(2 * plan(job()).step["actor update"], rel=0.2)


def test_what_does_not_fit_says_why_and_what_to_change():
    """Actor and critic of 0.5B on a 16 GB card: not with the optimizers in GPU memory, but with them offloaded."""
    fields = {"model": "Qwen/Qwen2.5-0.5B", "ranks": 1, "mini_batch": 64, "batch_size": 512, "zero_stage": 2,
              "max_new_tokens": 1024, "sampler_memory": 0.35}  # fmt: skip
    refused = plan(job(**fields), "rtx4080-16")
    assert not refused.fits
    assert "optimizer" in " ".join(refused.reasons)
    assert any(line.startswith("offload_optimizer: true: fits") for line in refused.suggestions)
    mended = plan(job(**fields, offload_optimizer=True), "rtx4080-16")
    assert mended.fits and not mended.reasons and not mended.suggestions
    assert mended.peak.total < GPUS["rtx4080-16"].memory


def test_advice_combines_where_nothing_alone_is_enough():
    refused = plan(
        job(model="Qwen/Qwen2.5-7B", zero_stage=2, sampler_memory=0.3, activation_checkpointing=False), "a100-80"
    )
    assert not refused.fits
    assert refused.suggestions
    assert any("fits" in line for line in refused.suggestions)
    hopeless = plan(job(model="Qwen/Qwen2.5-32B", ranks=1, batch_size=16, mini_batch=1), "rtx4080-16")
    assert not hopeless.fits and hopeless.suggestions


def test_cache_too_small_for_one_response_is_a_reason():
    refused = plan(job(model="Qwen/Qwen2.5-32B", ranks=64, mini_batch=128, sampler_memory=0.5))
    assert any("KV cache" in reason for reason in refused.reasons)
    assert any("tensor_parallel" in line for line in refused.suggestions)


def test_kv_heads_limit_tensor_parallelism():
    """Two key-value heads on four GPUs: each keeps one whole head."""
    two, four = (make_setup(job(tensor_parallel=tp)) for tp in (2, 4))
    assert kv_token_bytes(four) == kv_token_bytes(two) == 2 * 2 * 28 * 128


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_has_a_plan_and_fits(path):
    start = time.process_time()  # this process's own seconds, however busy the machine is
    result = plan(read_job(path))
    assert time.process_time() - start < 10
    assert result.fits, result.reasons
    assert sum(result.step.values()) > 0


def test_the_32b_plan_takes_seconds():
    job_32b = read_job(next(path for path in CONFIGS if "32b" in path.stem))
    shape_of.cache_clear()
    start = time.process_time()
    result = plan(job_32b)
    assert time.process_time() - start < 10
    assert result.setup.actor.parameters == 32_763_876_352
    assert result.to_dict()["step_seconds"]["sample"] > 0


def test_command(capsys, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("\n".join(f"{k}: {v}" for k, v in JOB.items()))
    assert main([str(path)]) == 0
    out = capsys.readouterr().out
    assert "fits" in out and "KV cache" in out and "whole run" in out and "error against" in out
    assert main([str(path), "--gpu", "rtx4080-16", "--token-budget", "8192"]) == 1
    assert "does not fit" in capsys.readouterr().out
    assert main([str(path), "--format", "json", "--response-share", "0.5"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["assumptions"]["response_share"] == 0.5
    assert main([str(path), "--format", "markdown"]) == 0
    assert "| one step |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tokn-budget", "1"], "--tokn-budget, 1; perhaps you meant --token-budget"),
        (["--gpu", "h900"], "unknown GPU"),
        (["--ranks", "7"], "multiple of the 7 ranks"),
        (["--model", "no/such"], "no shape known"),
    ],
)
def test_wrong_questions_are_refused_in_one_line(words, message, capsys, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("\n".join(f"{k}: {v}" for k, v in JOB.items()))
    assert main([str(path), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_assumptions_are_checked():
    for wrong in ({"overlap": 2}, {"learner_efficiency": 0}, {"response_share": 1.5}, {"prompt_tokens": 0}):
        with pytest.raises(UserError, match="must lie in"):
            Assumptions(**wrong)


def test_no_file_is_a_message(capsys):
    assert main([]) == 2
    assert main(["nowhere.yaml"]) == 2
    assert "no such config file" in capsys.readouterr().err


@pytest.mark.cluster
def test_assumptions_about_the_learner_are_its_own():
    """Buffer sizes are DeepSpeed's defaults as long as the learner sets none, and GATHER is the checkpoint's."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    from minivapo.vapo import Config
    from scaled import checkpoint, learner

    settings_ = job().settings
    zero = learner.deepspeed_config(Config(), settings_)["zero_optimization"]
    full = DeepSpeedZeroConfig(**zero)
    a = Assumptions()
    assert a.bucket_elements == full.reduce_bucket_size
    assert a.live_elements == full.max_live_parameters + full.prefetch_bucket_size
    assert a.sub_group_elements == full.sub_group_size
    assert a.push_elements == checkpoint.GATHER


def test_the_error_that_the_plan_states_is_the_measured_one():
    import csv
    from collections import defaultdict

    with (Path(__file__).parents[3] / "benchmarks" / "plan_check.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["check"] for row in rows} == {"parameters", "saved", "flops", "peak", "learner", "deepspeed", "vllm"}
    phases: dict[str, list[tuple[float, float]]] = defaultdict(list)
    errors: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        name, _, case = row["case"].partition(": ")
        if row["check"] == "parameters":  # against rounded numbers of the model cards
            continue
        if row["unit"] == "FLOPs":
            group = "FLOPs"
        elif name in ("forward", "backward", "step"):
            group = "memory of any phase"
            phases[row["check"] + case].append((float(row["planned"]), float(row["measured"])))
        else:
            group = "memory at rest"
        errors[group].append(100 * float(row["error"]))
    for planned, measured in (map(max, zip(*pairs, strict=True)) for pairs in phases.values()):
        errors["memory at peak"].append(100 * (planned - measured) / measured)
    assert errors.keys() == ERRORS.keys()
    for name, (low, high) in ERRORS.items():
        assert low <= min(errors[name]) < low + 1.5 and high - 1.5 < max(errors[name]) <= high, name


def test_ranks_that_share_rows_need_less_each():
    def parts(ranks=1):  # as large a budget as the longest row needs
        found = plan(job(token_budget=20512 // ranks, max_new_tokens=20000, sequence_parallel=ranks))
        return next(p for p in found.phases if p.name == "actor backward").parts["actor", "activations"], found

    alone, one = parts()
    shared, four = parts(4)
    assert alone / 4 < shared < alone / 3  # the last tensors of a layer stand twice: before and after a trade
    assert four.step["actor update"] < 1.2 * one.step["actor update"]
    with pytest.raises(UserError, match="12 attention heads"):
        parts(8)
    advice = [text for text, _ in changes(one.setup)]
    assert "sequence_parallel: 2 and token_budget: 10256" in advice


@pytest.mark.parametrize("name", GPUS)
def test_a_gpu_has_the_memory_of_its_name(name):
    gpu = GPUS[name]
    assert gpu.memory / GIB == pytest.approx(float(name.rpartition("-")[2]), rel=0.03)
    assert gpu.flops > gpu.bandwidth > gpu.link > gpu.network
    assert gpu.bandwidth > gpu.host_bandwidth


@pytest.mark.once
def test_the_page_says_what_the_plan_says_now():
    """docs/plan-32b.md; `python benchmarks/plan_check.py --docs` writes it anew."""
    path = Path(__file__).parents[3] / "benchmarks" / "plan_check.py"
    spec = importlib.util.spec_from_file_location("plan_check", path)
    assert spec and spec.loader
    plan_check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plan_check)
    page = plan_check.PAGE.read_text()
    assert plan_check.fill_page(page) == page
