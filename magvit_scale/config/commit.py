"""Stage 2: tasks, transformer, COMMIT, decoding."""

from dataclasses import dataclass
from typing import Literal, get_args

from magvit_scale.config.training import OptimConfig, RunConfig

Task = Literal["FP", "FI", "OPC", "OPV", "OPH", "OPD", "IPC", "IPD", "CG", "CFP"]
TASKS: tuple[Task, ...] = get_args(Task)


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
    dropout: float = 0.1


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
    model: TransformerConfig = TransformerConfig()
    loss: CommitLossConfig = CommitLossConfig()
    optim: OptimConfig = OptimConfig(betas=(0.9, 0.96), weight_decay=0.045, gradient_clipping=1.0, warmup_steps=5000)
    tasks: tuple[Task, ...] = TASKS
    """A task named twice is drawn twice as often."""
    one_task_per_step: bool = True
    """True: the paper's order, one task for a whole batch; false: a task per sample."""
    mask_count: Literal["floor", "ceil"] = "floor"
    """Rounding of the number of masked tokens: `floor` the released code, `ceil` the paper."""
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
    schedule: Literal["cosine", "uniform", "exp", "log"] = "cosine"
    guidance_scale: float = 0.0
