"""A training state on one CPU: real engines, with a plain torch optimiser where DeepSpeed would be, at ZeRO stage 0."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from magvit_scale.config import Precision
from magvit_scale.training.checkpoint import TrainingState, Writer
from magvit_scale.training.ema import ExponentialMovingAverage
from magvit_scale.training.engine import Engine
from magvit_scale.training.ranks import Ranks
from magvit_scale.training.retention import Retention

ALONE = Ranks(0, 1, torch.device("cpu"))
CONFIG = "run: {}\n"


class PlainDeepSpeed:
    """The part of a DeepSpeed engine at stage 0 that `Engine` touches."""

    def __init__(self, module: nn.Module, accumulation: int = 1) -> None:
        self.module, self.accumulation = module, accumulation
        first, *others = module.parameters()
        groups: list[dict[str, Any]] = [{"params": [first], "weight_decay": 0.1}, {"params": others}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.0)
        self.global_steps = self.skipped_steps = self.micro_steps = 0
        self.calls: list[str] = []

    def zero_optimization_stage(self) -> int:
        return 0

    def gradient_accumulation_steps(self) -> int:
        return self.accumulation

    def __call__(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    def backward(self, loss: Tensor) -> None:
        self.calls.append("backward")
        (loss / self.accumulation).backward()

    def step(self) -> None:
        self.calls.append("step")
        self.micro_steps += 1
        if self.micro_steps % self.accumulation == 0:
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.global_steps += 1


def build_engine(
    module: nn.Module, ranks: Ranks = ALONE, precision: Precision = "fp32", accumulation: int = 1
) -> Engine:
    return Engine("network", PlainDeepSpeed(module, accumulation), precision, ranks)


def train(engine: Engine, steps: int) -> None:
    """Some updates that depend on how many were made before."""
    for _ in range(steps):
        size = next(engine.module.parameters()).shape[-1]
        engine.backward(engine(torch.full((1, size), 1.0 + engine.deepspeed.global_steps)).square().sum())
        engine.step()


class Count(nn.Module):
    """A state that every rank has whole."""

    value: Tensor

    def __init__(self, value: int) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(value))


def build_state(seed: int, ranks: Ranks = ALONE, width: int = 7) -> TrainingState:
    """Two engines of odd sizes, an average and a buffer, drawn by `seed`; nothing has been trained."""
    torch.manual_seed(seed)
    generator = build_engine(nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1)), ranks)
    discriminator = build_engine(nn.Linear(3, 1), ranks)
    average = ExponentialMovingAverage(generator, 0.75)
    with torch.no_grad():
        for _, _, view in average.owned_slices():
            view.mul_(seed)
    partitioned = {"generator": generator, "discriminator": discriminator, "average": average}
    return TrainingState(partitioned, {"count": Count(seed)})


def engine_of(state: TrainingState, name: str) -> Engine:
    engine = state.partitioned[name]
    assert isinstance(engine, Engine)
    return engine


def content(state: TrainingState) -> dict[str, Tensor]:
    """Everything that a checkpoint must bring back, by name."""
    found = {f"{name}/{key}": tensor for name, part in state.replicated.items()
             for key, tensor in part.state_dict().items()}  # fmt: skip
    for name, part in state.partitioned.items():
        found |= {f"{name}/{key}@{first}": view for key, first, view in part.owned_slices()}
        found |= {f"{name}/facts/{key}": torch.tensor(value) for key, value in part.facts().items()}
        if isinstance(part, Engine):
            found |= {f"{name}/{key}/weight": parameter for key, parameter in part.module.named_parameters()}
            found |= {f"{name}/{index}/step": state["step"]
                      for index, state in enumerate(part.deepspeed.optimizer.state.values())}  # fmt: skip
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Same names, and the same bits."""
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def no_barrier() -> None:
    pass


def build_writer(
    folder: Path, state: TrainingState, keep: int = 9, ranks: Ranks = ALONE, barrier: Callable[[], None] = no_barrier
) -> Writer:
    return Writer(folder, state, ranks, barrier, Retention(keep))


def save(folder: Path, step: int, state: TrainingState, keep: int = 9) -> None:
    """A checkpoint of a world of one, awaited."""
    writer = build_writer(folder, state, keep)
    try:
        writer.save({"step": step}, CONFIG)
        writer.wait()
    finally:
        writer.close()
