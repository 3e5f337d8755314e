"""Every configuration dataclass, and how one is read, written and explained. Imports no torch."""

from magvit_scale.config.commit import (
    TASKS,
    CommitLossConfig,
    DecodingConfig,
    Task,
    TrainCommitConfig,
    TransformerConfig,
    read_schedule,
)
from magvit_scale.config.data import (
    CheckShardsConfig,
    ClipsConfig,
    ListVideosConfig,
    MovingShapesConfig,
    PrecomputeTokensConfig,
    SourceConfig,
    WriteShardsConfig,
)
from magvit_scale.config.health import (
    CodebookUseConfig,
    HealthAction,
    HealthConfig,
    HealthRule,
    commit_health,
    vqgan_health,
)
from magvit_scale.config.launch import LaunchConfig, ResourcesConfig, StageConfig
from magvit_scale.config.reading import Refusal, describe, dump, load, load_part, parse, refusals_end_the_program
from magvit_scale.config.results import EvaluateConfig, GenerateConfig, ReportConfig
from magvit_scale.config.training import OptimConfig, RunConfig
from magvit_scale.config.vqgan import (
    DiscriminatorConfig,
    InflateConfig,
    Inflation,
    Padding,
    Perceptual,
    TrainVQGANConfig,
    VQGANConfig,
    VQGANLossConfig,
)

__all__ = [
    "TASKS",
    "CheckShardsConfig",
    "ClipsConfig",
    "CodebookUseConfig",
    "CommitLossConfig",
    "DecodingConfig",
    "DiscriminatorConfig",
    "EvaluateConfig",
    "GenerateConfig",
    "HealthAction",
    "HealthConfig",
    "HealthRule",
    "InflateConfig",
    "Inflation",
    "LaunchConfig",
    "ListVideosConfig",
    "MovingShapesConfig",
    "OptimConfig",
    "Padding",
    "Perceptual",
    "PrecomputeTokensConfig",
    "Refusal",
    "ReportConfig",
    "ResourcesConfig",
    "RunConfig",
    "SourceConfig",
    "StageConfig",
    "Task",
    "TrainCommitConfig",
    "TrainVQGANConfig",
    "TransformerConfig",
    "VQGANConfig",
    "VQGANLossConfig",
    "WriteShardsConfig",
    "commit_health",
    "describe",
    "dump",
    "load",
    "load_part",
    "parse",
    "read_schedule",
    "refusals_end_the_program",
    "vqgan_health",
]
