"""What is planned: a job, its networks counted, a GPU, and assumptions about what only the run can tell."""

from __future__ import annotations

from dataclasses import dataclass

from minivapo.interfaces import UserError
from minivapo.loading import critic_source, locate
from scaled.config import Job
from scaled.planning.hardware import GPUS, Gpu
from scaled.planning.shapes import Shape, shape_of


@dataclass(frozen=True)
class Assumptions:
    """What cannot be known before the run. Each is a choice; measure and override: `--response-share 0.4`."""

    learner_efficiency: float = 0.40
    """Share of peak FLOP/s in forward and backward passes, recomputation counted as work (Llama 3's
    pre-training, arXiv 2407.21783 table 4, reports 38-43 % on H100)."""
    sampler_efficiency: float = 0.50
    """Share of peak FLOP/s of prefill and of large decode batches."""
    sampler_bandwidth: float = 0.60
    """Share of peak memory bandwidth while decoding."""
    network_efficiency: float = 0.75
    """Share of link speed that NCCL's collectives reach (large messages: ~85-95 %; ZeRO's are smaller)."""
    overlap: float = 0.50
    """Share of ZeRO's communication that hides behind computing."""
    decode_overhead: float = 4e-3
    """Seconds of scheduling and kernel launches for one decoded token of a batch."""
    allreduce_latency: float = 15e-6
    """Seconds of one all-reduce of a tensor-parallel group; two for each layer and token."""
    prompt_tokens: int = 200
    """Mean prompt, in tokens."""
    response_share: float = 0.25
    """Mean response as a share of max_new_tokens; lengths follow an exponential cut at the limit."""
    dynamic_rounds: float = 0.5
    """Share of the extra sampling rounds that dynamic sampling really needs."""
    switch_seconds: float = 5.0
    """Seconds to put vLLM to sleep and wake it again."""
    fixed_gib: float = 2.0
    """GiB of CUDA context, NCCL channels, cuBLAS workspaces and kernels of the learner."""
    fragmentation: float = 0.05
    """What the allocator loses, as a share of the learner's tensors."""
    sampler_fixed_gib: float = 2.5
    """GiB of vLLM beside weights and KV cache: CUDA graphs, activations, sampling buffers."""
    sampler_asleep_gib: float = 1.0
    """GiB that vLLM keeps while it sleeps (graphs, communicators)."""
    bucket_elements: float = 5e8
    """DeepSpeed's reduce_bucket_size, in elements."""
    live_elements: float = 1.05e9
    """Gathered by ZeRO-3 at once: DeepSpeed's stage3_max_live_parameters + stage3_prefetch_bucket_size."""
    sub_group_elements: float = 1e9
    """DeepSpeed's sub_group_size: elements updated at once."""
    pinned_rounding: float = 2.0
    """Pinned CPU memory over what it holds: torch rounds each buffer up to a power of two, at most to its double."""
    storage: float = 5e9
    """Bytes/s that the shared file system takes from all machines together."""
    push_elements: float = 2**28
    """Elements gathered at once on their way to vLLM: `scaled.checkpoint.GATHER`."""

    def __post_init__(self) -> None:
        """Refuses what is no efficiency or no share."""
        shares = ("learner_efficiency", "sampler_efficiency", "sampler_bandwidth", "network_efficiency")
        for name in (*shares, "response_share"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must lie in (0, 1].")
        if not 0 <= self.overlap <= 1 or self.prompt_tokens < 1:
            raise UserError("overlap must lie in [0, 1], prompt_tokens be at least 1.")


@dataclass(frozen=True)
class Setup:
    """Everything that the formulas read."""

    job: Job
    actor: Shape
    critic: Shape | None
    gpu: Gpu
    assume: Assumptions

    @property
    def width(self) -> int:
        """Bytes of a weight, gradient or activation."""
        return 2 if self.job.settings.dtype == "bfloat16" else 4

    @property
    def attention(self) -> str:
        """The attention kernel, see `scaled.learner.attention_name`; ulysses where ranks share rows."""
        if self.job.settings.sequence_parallel > 1:
            return "ulysses"
        name = self.job.settings.attention
        return "varlen" if name == "auto" else name

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that may occur."""
        return self.job.config.max_prompt_tokens + self.job.config.max_new_tokens

    @property
    def longest_share(self) -> int:
        """Tokens of it on one rank."""
        return -(-self.longest // self.job.settings.sequence_parallel)

    @property
    def micro_tokens(self) -> int:
        """Tokens of the largest micro-batch on a rank: a longer sequence than the budget has one of its own."""
        return max(self.job.settings.token_budget, self.longest_share)

    @property
    def learners(self) -> list[tuple[str, Shape]]:
        """The networks that are trained, in the order of their updates."""
        return [("critic", self.critic), ("actor", self.actor)] if self.critic else [("actor", self.actor)]


def make_setup(job: Job, gpu: str | Gpu = "h100-80", assume: Assumptions | None = None) -> Setup:
    """Resolves names into numbers; counts both networks on the meta device.

    Raises:
        UserError: unknown GPU or model.
    """
    assume = assume or Assumptions()
    if isinstance(gpu, str):
        if gpu not in GPUS:
            raise UserError(f"unknown GPU '{gpu}'; known are {', '.join(GPUS)}.")
        gpu = GPUS[gpu]
    model = model_folder(job.model, job.task)
    critic = None
    if job.config.advantage == "gae":
        critic = shape_of(str(locate(critic_source(job.config.critic_init, model, job.critic), "critic")), "critic")
    return Setup(job, shape_of(model, "actor"), critic, gpu, assume)


def model_folder(model: str, task: str) -> str:
    """The model's name or folder, that of a run folder's actor; without one, the task's embedded base."""
    from minivapo.tasks import default_model

    return str(locate(model, "actor")) if model else default_model(task)
