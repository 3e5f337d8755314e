"""A training state without DeepSpeed: what ZeRO stage 0 looks like to the checkpoint, with a plain torch optimiser."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from magvit_scale.training.checkpoint import TrainingState


class PlainEngine:
    """The part of a DeepSpeed engine at stage 0 that the engine room touches."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        first, *others = module.parameters()
        groups: list[dict[str, Any]] = [{"params": [first], "weight_decay": 0.1}, {"params": others}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.0)
        self.global_steps = 0

    def zero_optimization_stage(self) -> int:
        return 0

    def train(self, steps: int) -> None:
        for step in range(steps):
            self.optimizer.zero_grad()
            size = next(self.module.parameters()).shape[-1]
            self.module(torch.full((1, size), 1.0 + step)).square().sum().backward()
            self.optimizer.step()
            self.global_steps += 1


def build_state(
    seed: int, rank: int = 0, world_size: int = 1, barrier: Callable[[], None] = lambda: None, width: int = 7
) -> TrainingState:
    """Two engines of odd sizes and an average, drawn by `seed`; nothing has been trained."""
    torch.manual_seed(seed)
    average = nn.Linear(3, 5)
    average.register_buffer("count", torch.tensor(seed))
    engines = {
        "generator": PlainEngine(nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))),
        "discriminator": PlainEngine(nn.Linear(3, 1)),
    }
    return TrainingState(engines, {"average": average}, rank, world_size, barrier)


def content(state: TrainingState) -> dict[str, Tensor]:
    """Everything that a checkpoint must bring back, by name."""
    found = {f"average/{name}": tensor for name, tensor in state.replicated["average"].state_dict().items()}
    for name, engine in state.engines.items():
        found[f"{name}/global_steps"] = torch.tensor(engine.global_steps)
        for key, parameter in engine.module.named_parameters():
            found[f"{name}/{key}"] = parameter
            found |= {
                f"{name}/{key}/{kind}": value for kind, value in engine.optimizer.state.get(parameter, {}).items()
            }
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Same names, and the same bits."""
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
