"""Two ranks under DeepSpeed against the same steps in one process with nothing but PyTorch."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from magvit_scale.commit.step import commit_step
from magvit_scale.commit.transformer import CommitTransformer, decayed_parameters
from tests.distributed.cases import CANVASES, COMMIT, NUM_STEPS, STAGES, STRONG_LECAM, VQGAN, tokens_of
from tests.distributed.plain_vqgan import PlainVQGAN, assert_close, named

pytestmark = pytest.mark.distributed


def test_ranks_agree_on_means_and_flags(worlds: Path) -> None:
    zero, one = (json.loads((worlds / f"reduced.{rank}.json").read_text()) for rank in range(2))
    assert zero == {"mean": [1.5, 10.0], "mine": [1.0, 10.0], "any": [False, True, True, True]}
    assert one == {**zero, "mine": [2.0, 10.0]}


@pytest.fixture(scope="module")
def plain() -> PlainVQGAN:
    return PlainVQGAN(VQGAN)


@pytest.mark.parametrize("stage", STAGES)
def test_vqgan_steps_with_gan_r1_and_lecam_equal_plain_pytorch(worlds: Path, plain: PlainVQGAN, stage: int) -> None:
    folder = worlds / f"vqgan_stage{stage}"
    found = load_file(folder / "metrics.0.safetensors")
    assert "loss/r1@0" not in found
    assert {name.split("@")[0] for name in found if name.endswith("@3")} >= {"loss/r1", "loss/lecam", "codebook/used"}
    metrics = {name: value for name, value in plain.metrics.items() if not name.startswith("loss/lecam")}
    assert_close({name: found[name] for name in metrics}, metrics, rtol=1e-5, atol=1e-7)
    states = [load_file(folder / f"state.{rank}.safetensors") for rank in range(2)]
    assert_close(states[1], states[0], rtol=0, atol=0)
    assert_close(states[0], plain.state(), rtol=0, atol=1e-5)
    moved = max((states[0][name] - start).abs().max().item() for name, start in plain.initial.items())
    assert moved > 1e-3


def test_lecam_is_of_the_whole_batch_whatever_the_number_of_ranks(worlds: Path) -> None:
    plain, folder = PlainVQGAN(STRONG_LECAM), worlds / "strong_lecam"
    found, state = (load_file(folder / f"{kind}.0.safetensors") for kind in ("metrics", "state"))
    assert_close({name: found[name] for name in plain.metrics}, plain.metrics, rtol=1e-5, atol=1e-7)
    assert_close(state, plain.state(), rtol=0, atol=1e-4)  # Adam makes 2e-5 out of the rounding of tiny gradients


def test_start_flushes_denormal_numbers(worlds: Path) -> None:
    assert [json.loads((worlds / f"denormal.{rank}.json").read_text()) for rank in range(2)] == [0.0, 0.0]


def test_a_nan_on_one_rank_stops_both_before_the_update(worlds: Path) -> None:
    zero, one = (json.loads((worlds / f"broken.{rank}.json").read_text()) for rank in range(2))
    assert zero["said"].startswith("a value of another rank is not finite")
    assert "loss/reconstruction" in one["said"]
    assert one["said"].endswith("lower optim.learning_rate or look at the data")
    assert zero["unchanged"]
    assert one["unchanged"]


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

    def step(self) -> None:
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), COMMIT.optim.gradient_clipping)
        assert norm > COMMIT.optim.gradient_clipping, "nothing is clipped, so clipping is not tested"
        self.optimizer.step()


@pytest.fixture(scope="module")
def commit() -> tuple[CommitTransformer, dict[str, Tensor]]:
    torch.manual_seed(1)
    model = CommitTransformer(COMMIT.model)
    engine = PlainEngine(model)
    metrics: dict[str, Tensor] = {}
    for step in range(NUM_STEPS):
        found = commit_step(engine, tokens_of(step), step, COMMIT, CANVASES, lambda _: None)
        metrics |= {f"{name}@{step}": value for name, value in found.items()}
    return model, metrics


@pytest.mark.parametrize("stage", STAGES)
def test_commit_steps_with_clipping_and_two_groups_equal_plain_pytorch(
    worlds: Path, commit: tuple[CommitTransformer, dict[str, Tensor]], stage: int
) -> None:
    model, metrics = commit
    folder = worlds / f"commit_stage{stage}"
    found = load_file(folder / "metrics.0.safetensors")
    assert found.keys() == metrics.keys()
    # The three parts are means over the tokens of a rank, of which ranks have different numbers; the total is exact.
    totals = {name: value for name, value in metrics.items() if name.startswith("loss/total")}
    assert_close({name: found[name] for name in totals}, totals, rtol=1e-5, atol=0)
    states = [load_file(folder / f"state.{rank}.safetensors") for rank in range(2)]
    assert_close(states[1], states[0], rtol=0, atol=0)
    assert_close(states[0], named(model=model), rtol=0, atol=1e-5)
