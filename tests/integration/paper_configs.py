"""What configs/ holds: its files by stage, and how a test loads them."""

from pathlib import Path
from typing import Any

from magvit_scale.config import (
    EvaluateConfig,
    GenerateConfig,
    InflateConfig,
    JudgeConfig,
    LaunchConfig,
    PrecomputeTokensConfig,
    TrainCommitConfig,
    TrainVQGANConfig,
    load,
)
from magvit_scale.metrics.protocol import Protocol

ROOT = Path(__file__).parents[2] / "configs"
FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.yaml"))

SCHEMAS: dict[str, type] = {
    "pipeline": LaunchConfig,
    "vqgan": TrainVQGANConfig,
    "inflate": InflateConfig,
    "precompute": PrecomputeTokensConfig,
    "commit": TrainCommitConfig,
    "generate": GenerateConfig,
    "evaluate": EvaluateConfig,
    "judge": JudgeConfig,
    "protocol": Protocol,
}
VERBS = {
    "train-vqgan": "vqgan",
    "inflate": "inflate",
    "precompute-tokens": "precompute",
    "train-commit": "commit",
    "generate": "generate",
    "evaluate": "evaluate",
}
CLIPS = {"clips": {"shards": "x"}}
RUN = {"run": {"folder": "x", "steps": 1, "global_batch_size": 1}}
GIVEN: dict[str, dict[str, Any]] = {
    "pipeline": {
        "root": "x",
        "stages": {name: {"program": "x"} for name in ("vqgan_2d", "vqgan_3d", "commit", "tokens")},
    },
    "vqgan": RUN | CLIPS,
    "inflate": {"source": "x", "output": "x"},
    "precompute": {"tokenizer": "x", "output": "x"} | CLIPS,
    "commit": RUN | {"tokens": "x", "tokenizer": "x"},
    "generate": {"tokenizer": "x", "transformer": "x", "output": "x"} | CLIPS,
    "evaluate": {"protocol": "x", "shards": "x"},
    "protocol": {},
    "judge": dict.fromkeys(("tokenizer", "transformer", "train_tokens", "test_tokens", "output"), "x") | CLIPS,
}
"""What a file may leave to the command line."""


def is_of_the_paper(name: str) -> bool:
    return not name.startswith("pipeline/") and Path(name).stem.split("_")[0] != "demo"


def runs(stage: str) -> list[str]:
    """The files that are runs by themselves; the others are overlays."""
    overlays = {"debug", "official"}
    return [Path(name).stem for name in FILES if is_of_the_paper(name)
            and Path(name).parent.as_posix() == stage and Path(name).stem not in overlays]  # fmt: skip


def vqgan_config(name: str) -> TrainVQGANConfig:
    return load(TrainVQGANConfig, [ROOT / f"vqgan/{name}.yaml"])


def commit_config(name: str) -> TrainCommitConfig:
    return load(TrainCommitConfig, [ROOT / f"commit/{name}.yaml"])


# ----------------------------------------------------------------------------------------------------------------------
# Every file
