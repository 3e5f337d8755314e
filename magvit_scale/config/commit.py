"""Stage 2: tasks, transformer, COMMIT, decoding."""

import re
from dataclasses import dataclass, field
from typing import Literal

from magvit_scale.config.health import HealthConfig, commit_health
from magvit_scale.config.reading import Refusal, refuse_below_one
from magvit_scale.config.training import OptimConfig, RunConfig

Task = Literal["FP", "FI", "OPC", "OPV", "OPH", "OPD", "IPC", "IPD", "CG", "CFP", "FP5"]
TASKS: tuple[Task, ...] = ("FP", "FI", "OPC", "OPV", "OPH", "OPD", "IPC", "IPD", "CG", "CFP")
"""The paper's ten. FP5 is Kinetics-600's frame prediction, from five frames."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """BERT-style transformer (MAGVIT section 3.2, appendix B)."""

    num_layers: int = 12
    hidden_size: int = 768
    mlp_dim: int = 3072
    num_heads: int = 12
    latent_shape: tuple[int, int, int] | None = None
    """(t, h, w); null takes it from the token shards."""
    codebook_size: int | None = None
    """null takes it from the token shards."""
    num_classes: int | None = None
    """null takes it from the token shards."""
    multi_task: bool = True
    """A task token before the class token, and 16 special rows instead of 1."""
    inpainting_token: Literal["inpainting", "outpainting"] = "inpainting"
    """`outpainting`: inpainting shares its task token, as the released code does."""
    conditioning: Literal["commit", "canvas", "latent", "prefix"] = "commit"
    """How a condition is told: `commit` (MAGVIT), its canvas's tokens are shown where masked, and predicted too;
    `canvas`, they stand there for good; `latent` (as MaskGIT), the true clip's tokens do; `prefix`, the canvas's tokens
    are put before the latents."""
    num_condition_tokens: int = 0
    """Most condition tokens before the latents, for `conditioning: prefix` only; 0 takes it from the tasks."""
    dynamic_condition: Literal["code", "paper"] = "code"
    """Which latents OPD and IPD give: `code`, the pixels' rule at the latents' shape; `paper`, a latent whose 4x8x8
    pixels hold any given one."""
    dropout: float = 0.1
    tasks: tuple[Task, ...] | None = None
    """Tasks it was trained for; null takes them from the run's."""
    tokenizer_hash: str | None = None
    """sha256 of the weights of the tokenizer whose tokens it learnt, the only one that it goes with; null takes it from
    the token shards."""

    def __post_init__(self) -> None:
        """Refuses sizes that no network can have."""
        names = ("num_layers", "hidden_size", "mlp_dim", "num_heads")
        known = {"codebook_size": self.codebook_size or 1, "latent_shape": min(self.latent_shape or (1,))}
        refuse_below_one("model", {name: getattr(self, name) for name in names} | known)
        if self.hidden_size % self.num_heads:
            raise Refusal(f"model.num_heads={self.num_heads} does not divide model.hidden_size={self.hidden_size}")
        if self.num_classes is not None and self.num_classes < 0:
            raise Refusal(f"model.num_classes={self.num_classes}: expected at least 0")


@dataclass(frozen=True, kw_only=True)
class CommitLossConfig:
    """Weights of COMMIT's three parts (MAGVIT eq. 4-5) and label smoothing."""

    refine_weight: float = 1.0
    mask_weight: float = 1.0
    reconstruct_weight: float = 1.0
    label_smoothing: float = 1e-4


@dataclass(frozen=True, kw_only=True)
class TrainCommitConfig:
    """magvit train-commit: token shards -> transformer."""

    run: RunConfig
    tokens: str
    """Folder of token shards, split train."""
    tokenizer: str
    """Export folder of the tokenizer that wrote them; other tokens are refused."""
    verify_tokens: bool = False
    """Also compares every token shard with its checksum before training; each rank reads them once."""
    model: TransformerConfig = TransformerConfig()
    loss: CommitLossConfig = CommitLossConfig()
    optim: OptimConfig = OptimConfig(betas=(0.9, 0.96), weight_decay=0.045, gradient_clipping=1.0, warmup_steps=5000)
    tasks: tuple[Task, ...] = TASKS
    """A task named twice is drawn twice as often."""
    one_task_per_step: bool = True
    """True: the paper's order, one task for a whole batch; false: a task per sample."""
    mask_count: Literal["floor", "ceil"] = "floor"
    """Rounding of the number of masked tokens: `floor` the released code, `ceil` the paper."""
    health: HealthConfig = field(default_factory=commit_health)
    validation_tokens: str | None = None
    """Token shards whose cross-entropy per task is logged at run.sample_every; null switches it off."""


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """COMMIT decoding (MAGVIT algorithm 1)."""

    num_steps: int = 12
    choice_temperature: float = 4.5
    """Scale of the Gumbel noise on the confidences; falls linearly to 0."""
    sampling_temperature: float = 1.0
    """Divides the logits before sampling."""
    top_k: int = 0
    """Samples among so many likeliest codes; 0 takes all, 1 the likeliest without noise."""
    top_p: float = 0.0
    """Samples among the likeliest codes whose probabilities first add up to this; 0 takes all."""
    mask_count: Literal["floor", "ceil"] = "floor"
    """Rounding of the number of tokens that stay masked: `floor` the released code, `ceil` the paper."""
    schedule: str = "cosine"
    """cosine, uniform, exp, log, pow<X> as pow2.5 (1 - r^X), or poly:<coefficients> as poly:-1.0,1.0 (of r, the highest
    power first)."""
    guidance_scale: float = 0.0
    """Classifier-free guidance: how far logits are moved away from those without task and class; 0 is off."""

    def __post_init__(self) -> None:
        """Refuses what cannot be decoded with."""
        if self.num_steps < 1 or self.sampling_temperature <= 0:
            raise Refusal(
                f"decoding.num_steps={self.num_steps}, decoding.sampling_temperature={self.sampling_temperature}: "
                "expected at least 1 step and a temperature above 0"
            )
        if self.top_k < 0 or not 0 <= self.top_p <= 1 or (self.top_k and self.top_p):
            raise Refusal(
                f"decoding.top_k={self.top_k}, decoding.top_p={self.top_p}: expected a count, or a share up to 1, and "
                "not both; 0 switches off"
            )
        read_schedule(self.schedule)


NUMBER = r"-?\d+(?:\.\d*)?"


def read_schedule(schedule: str) -> tuple[str, tuple[float, ...]]:
    """A mask schedule's kind and its numbers: (`pow`, X), (`poly`, coefficients), or a name without any (spec
    section 8).

    Raises:
        Refusal: an unknown schedule.
    """
    found = re.fullmatch(rf"(cosine|uniform|exp|log)|(pow)(\d+(?:\.\d*)?)|(poly):({NUMBER}(?:,{NUMBER})*)", schedule)
    if not found:
        raise Refusal(
            f"decoding.schedule={schedule}: expected cosine, uniform, exp, log, pow<X> as pow2.5, or "
            "poly:<coefficients> as poly:-1.0,1.0"
        )
    name, power, exponent, polynomial, coefficients = found.groups()
    numbers = (exponent or coefficients or "").split(",") if not name else []
    return name or power or polynomial, tuple(map(float, numbers))
