"""Every partition of the table against the same twenty steps in one process with nothing but PyTorch: ZeRO stages 0 to
3, 1, 2 and 4 processes, 1 and 4 micro-batches, offload. DeepSpeed and PyTorch add in another order, and Adam makes a
whole step of the rounding of a gradient that is nearly 0: hence the tolerances.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from magvit_scale.commit.step import commit_step
from magvit_scale.commit.transformer import CommitTransformer, decayed_parameters
from tests.distributed.plain_vqgan import PlainVQGAN, named
from tests.distributed.table import (
    ADAPTIVE,
    CANVASES,
    COMMIT,
    ENTROPY,
    PARTITIONS,
    PERCEPTUAL,
    VQGAN,
    Partition,
    tokens_of,
)

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
RELATIVE, ABSOLUTE = 1e-4, 1e-6
WEIGHTS = 2e-5
"""Absolute, after 20 steps of 1e-4: a fifth of one step. A first step of Adam is little but the sign of a gradient."""


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], *, rtol: float, atol: float) -> None:
    """Every expected tensor is there and within the tolerances; names all that are not."""
    wrong = {}
    for name, value in expected.items():
        difference = (found[name].double() - value.double()).abs()
        excess = (difference - rtol * value.double().abs()).max().item()
        if not excess <= atol:
            wrong[name] = difference.max().item()
    assert wrong == {}


CONFIGS = {"vqgan": VQGAN, "perceptual": PERCEPTUAL, "adaptive": ADAPTIVE, "entropy": ENTROPY}


@cache
def plain_vqgan(name: str, num_parts: int = 1) -> PlainVQGAN:
    return PlainVQGAN(CONFIGS[name], num_parts)


def judge_vqgan(table: Path, name: str, partition: Partition, num_parts: int = 1) -> None:
    plain, config, folder = plain_vqgan(name, num_parts), CONFIGS[name], table / f"{name}-{partition}"
    found, state = load_file(folder / "metrics.safetensors"), load_file(folder / "state.safetensors")
    exact = {name: value for name, value in plain.metrics.items() if "entropy" not in name}
    assert_close(found, exact, rtol=RELATIVE, atol=ABSOLUTE)
    if config.loss.entropy_weight > 0:  # the small difference of two entropies
        entropies = {name: value for name, value in plain.metrics.items() if name not in exact}
        assert_close(found, entropies, rtol=0, atol=100 * ABSOLUTE)
    assert found["optim/gradient_norm_generator@3"] > config.optim.gradient_clipping, "nothing is clipped"
    assert state.keys() == plain.state().keys()
    assert_close(state, plain.state(), rtol=0, atol=WEIGHTS)
    moved = max((state[name] - start).abs().max().item() for name, start in plain.initial.items())
    assert moved > 10 * WEIGHTS


@pytest.mark.parametrize("partition", PARTITIONS, ids=str)
def test_vqgan_with_gan_r1_lecam_and_codebook_use(table: Path, partition: Partition) -> None:
    judge_vqgan(table, "vqgan", partition)
    assert json.loads((table / f"vqgan-{partition}" / "stages.json").read_text()) == [
        partition.stage,
        min(partition.stage, 2),
    ]


@pytest.mark.parametrize("partition", [p for p in PARTITIONS if p.world == 2 and not p.offload], ids=str)
def test_vqgan_with_a_perceptual_loss(table: Path, partition: Partition) -> None:
    judge_vqgan(table, "perceptual", partition)


@pytest.mark.parametrize("partition", [p for p in PARTITIONS if p.accumulation == 1 and not p.offload], ids=str)
def test_vqgan_with_an_adaptive_weight(table: Path, partition: Partition) -> None:
    judge_vqgan(table, "adaptive", partition)


@pytest.mark.parametrize("partition", [p for p in PARTITIONS if p.stage == 2 and not p.offload], ids=str)
def test_vqgan_with_an_entropy_loss_of_every_micro_batch(table: Path, partition: Partition) -> None:
    judge_vqgan(table, "entropy", partition, partition.world * partition.accumulation)


class PlainEngine:
    """One process, no DeepSpeed: what commit_step needs of an engine."""

    def __init__(self, module: CommitTransformer) -> None:
        self.module, optim = module, COMMIT.optim
        decayed, others = decayed_parameters(module)
        groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": optim.weight_decay},
                                        {"params": others, "weight_decay": 0.0}]  # fmt: skip
        self.optimizer = torch.optim.AdamW(groups, lr=optim.learning_rate, betas=optim.betas)

    def __call__(self, sequence: Tensor) -> Tensor:
        return self.module(sequence)

    def backward(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()

    def step(self) -> Tensor:
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), COMMIT.optim.gradient_clipping)
        assert norm > COMMIT.optim.gradient_clipping, "nothing is clipped, so clipping is not tested"
        self.optimizer.step()
        return norm


@cache
def plain_commit() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(1)
    model = CommitTransformer(COMMIT.model)
    engine = PlainEngine(model)
    metrics: dict[str, Tensor] = {}
    for step in range(COMMIT.run.steps):
        found = commit_step(engine, [tokens_of(step)], step, COMMIT, CANVASES, lambda _: None)
        metrics |= {f"{name}@{step}": value for name, value in found.items()}
    return named(model=model), metrics


@pytest.mark.parametrize("partition", PARTITIONS, ids=str)
def test_commit_with_clipping_and_two_groups(table: Path, partition: Partition) -> None:
    state, metrics = plain_commit()
    folder = table / f"commit-{partition}"
    found = load_file(folder / "metrics.safetensors")
    assert found.keys() == metrics.keys()
    # The three parts are means over the tokens of a micro-batch, of which they have different numbers.
    exact = {name: value for name, value in metrics.items() if name.startswith(("loss/total", "optim"))}
    assert_close(found, exact, rtol=RELATIVE, atol=ABSOLUTE)
    whole = {f"model/{name}": value for name, value in load_file(folder / "state.safetensors").items()}
    assert whole.keys() == state.keys()
    assert_close(whole, state, rtol=0, atol=10 * WEIGHTS)  # its steps are ten times as long
    assert json.loads((folder / "stages.json").read_text()) == [partition.stage]
