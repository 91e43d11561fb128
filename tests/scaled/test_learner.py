"""Whole updates: DeepSpeed on 1, 2 and 3 ranks against the local engine, from the same weights and rollouts."""

import pytest
import torch
from launch import require, results

from minivapo.vapo import PRESETS

pytestmark = pytest.mark.cluster

RANKS = (1, 2, 3)
ACTOR = [f"{preset}-actor" for preset in PRESETS]
CRITIC = [f"{p}-{loss}" for p in PRESETS if PRESETS[p].advantage == "gae" for loss in ("reward-model", "critic")]
CASES = [(case, ranks) for case in ACTOR + CRITIC for ranks in RANKS if "-wo-" not in case]
# VAPO without each of its parts on two ranks only: on others nothing differs but how rows are split. Its critic's loss
# is the same, on other returns.
CASES += [(case, 2) for case in ACTOR if "-wo-" in case]


@pytest.fixture(scope="session")
def critic(models):
    """A critic whose head is not zero, so that its body has gradients from the start."""
    from minivapo.loading import load_critic

    model = load_critic(models / "llama-untied")
    torch.manual_seed(1)
    torch.nn.init.normal_(model.score.weight, std=0.3)
    model.save_pretrained(models / "critic")
    return models / "critic"


@pytest.fixture(scope="session")
def found(models, critic, tmp_path_factory):
    """Findings of one job for each number of ranks; each loads what the one before saved."""
    require("deepspeed")
    folder = tmp_path_factory.mktemp("updates")
    cache: dict[int, dict | None] = {}

    def get(ranks: int) -> dict:
        if ranks not in cache:
            cache[ranks] = None  # a job that fails is not started again for each of its tests
            out = folder / f"{ranks}.json"
            cache[ranks] = results(ranks, "update_worker.py", out, models, folder / f"checkpoint-{ranks}")
        found = cache[ranks]
        assert found is not None, f"the job on {ranks} ranks failed: see the first of its tests"
        return found

    get.folder = folder
    return get


def pick(findings: dict, prefix: str, stage: int) -> dict:
    [key] = [k for k in findings if k.startswith(f"{prefix}-zero{stage}")]
    return findings[key]


@pytest.mark.parametrize(("case", "ranks"), CASES)
@pytest.mark.parametrize("stage", [2, 3])
def test_updates_equal_the_local_engines(found, case, ranks, stage):
    case = pick(found(ranks), case, stage)
    assert case["weights"] < 5e-6  # four steps of up to 2e-5, whose signs rounding decides where gradients are near 0
    assert case["update"] < 1e-3  # of its length; Adam magnifies the rounding of gradients near 0
    assert case["metrics"] < 1e-5
    assert case["version"][0] == case["version"][1]
    assert 1 <= case["imbalance"] < 1.5


@pytest.mark.parametrize("ranks", RANKS)
def test_rows_travel_when_they_are_balanced_and_never_again(found, ranks):
    """Not for a forward pass, nor for a step: only `balance` and nothing else exchanges rows."""
    travels = found(ranks)["travels"]
    assert travels["balances"] > 0
    assert travels["exchanges"] == (travels["balances"] if ranks > 1 else 0)


@pytest.mark.parametrize("ranks", RANKS)
def test_a_rank_without_rows_of_a_mini_batch_takes_part(found, ranks):
    """All rows on the last rank: the update is that of the local engine."""
    for kind in ("actor", "critic"):
        case = found(ranks)[f"one-rank-{kind}"]
        assert case["weights"] < 2e-6
        assert case["metrics"] < 1e-5
        assert case["imbalance"] == pytest.approx(ranks)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("kind", ["actor", "critic"])
def test_packed_outputs_equal_padded_ones(found, ranks, stage, kind):
    assert found(ranks)[f"forward-{stage}-{kind}"]["outputs"] < 1e-5


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("kind", ["actor", "critic"])
def test_a_step_that_is_not_finite_is_refused_on_all_ranks(found, ranks, stage, kind):
    case = found(ranks)[f"refusal-{kind}-zero{stage}"]
    assert case["loss"] == case["gradient"] == case["unchanged"] == 1
    assert case["version"][0] == case["version"][1]
    assert case["weights_after"] < 2e-6


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("kind", ["actor", "critic"])
def test_checkpoints_resume_identically_and_open_locally(found, ranks, stage, kind):
    case = found(ranks)[f"checkpoint-{kind}-zero{stage}"]
    assert case["at_load"] == 0
    assert case["identical"] == 1
    assert case["after"] < 2e-6


@pytest.mark.parametrize("ranks", RANKS)
def test_bf16_and_offload_resume_identically(found, ranks):
    findings = found(ranks)
    assert findings["bf16"]["metrics"] < 0.1
    assert findings["offload"]["metrics"] < 1e-5
    assert findings["bf16"]["identical"] == findings["offload"]["identical"] == 1


def test_checkpoint_of_two_ranks_resumes_on_three(found, models):
    found(2)
    out = found.folder / "two-to-three.json"
    findings = results(3, "update_worker.py", out, models, found.folder / "checkpoint-2", "load")
    for case in findings.values():
        assert case["at_load"] == 0
        assert case["after"] < 2e-6
