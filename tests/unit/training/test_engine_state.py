"""What this package does with the inside of real DeepSpeed engines, in a world of one, at every ZeRO stage."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from magvit_scale.config import OptimConfig, RunConfig
from magvit_scale.training import distributed, engines
from magvit_scale.training.engine import Engine
from magvit_scale.training.health import NotFiniteError
from magvit_scale.training.ranks import Ranks

STAGES = pytest.mark.parametrize("stage", [0, 1, 2, 3])


class Network(nn.Module):
    """Sizes that divide by nothing, and a codebook."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(3, 7)
        self.codebook = nn.Parameter(torch.randn(5, 7))
        self.out = nn.Linear(5, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((self.hidden(x).tanh() @ self.codebook.T).tanh())


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    yield distributed.start()
    distributed.stop()


def build(
    folder: Path, ranks: Ranks, stage: int, accumulation: int = 1, seed: int = 0, precision: str = "fp32"
) -> Engine:
    zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
    (folder / f"zero{stage}.json").write_text(json.dumps({"zero_optimization": zero}))
    run = RunConfig(folder="", steps=9, global_batch_size=4, gradient_accumulation=accumulation,
                    deepspeed=str(folder / f"zero{stage}.json"), precision=precision)  # type: ignore[arg-type]  # fmt: skip
    optim = OptimConfig(learning_rate=0.05, betas=(0.5, 0.9), weight_decay=0.1, gradient_clipping=0.5)
    torch.manual_seed(seed)
    model = Network()
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    return engines.build_engine("network", model, (decayed, [model.hidden.bias]), run, optim, ranks)


def micro_batches(step: int, count: int) -> tuple[Tensor, ...]:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(step)).chunk(count)


def backward(engine: Engine, clip: Tensor, factor: float = 1.0) -> None:
    engine.backward((engine(clip) - clip.sum(1, keepdim=True)).square().mean() * factor)


def update(engine: Engine, step: int, count: int = 1) -> Tensor:
    for clip in micro_batches(step, count):
        backward(engine, clip)
    return engine.step()


def state_of(engine: Engine) -> dict[str, Tensor]:
    return {key: view.clone() for key, _, view in engine.owned_slices()}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=rtol, atol=1e-7, msg=lambda text, name=name: name + text)


def restore(engine: Engine, facts: dict[str, float], state: dict[str, Tensor]) -> None:
    engine.restore(facts, lambda name, first, length: state[name][first : first + length])


def plain_updates(folder: Path, ranks: Ranks, steps: int) -> dict[str, Tensor]:
    """AdamW with clipping, without DeepSpeed."""
    torch.manual_seed(0)
    model = Network()
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": [model.hidden.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.05, betas=(0.5, 0.9))
    for step in range(steps):
        (clip,) = micro_batches(step, 1)
        optimizer.zero_grad()
        (model(clip) - clip.sum(1, keepdim=True)).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    return {f"master/{name}": parameter.detach().flatten() for name, parameter in model.named_parameters()} | {
        f"{kind}/{name}": optimizer.state[parameter][kind].flatten()
        for name, parameter in model.named_parameters() for kind in ("exp_avg", "exp_avg_sq")
    }  # fmt: skip


@STAGES
@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_stage_and_any_accumulation_is_plain_adamw(tmp_path: Path, ranks: Ranks, stage: int, count: int) -> None:
    engine = build(tmp_path, ranks, stage, count)
    norms = [update(engine, step, count) for step in range(3)]
    assert_close(state_of(engine), plain_updates(tmp_path, ranks, 3), rtol=1e-4)
    assert engine.facts() == {"updates": 3, "loss_scale": 1.0, "good_updates": 0, "skipped_updates": 0}
    assert all(norm.dtype == torch.float32 and norm.ndim == 0 for norm in norms)
    assert norms[0].item() == pytest.approx(first_norm(), rel=1e-5)


def first_norm() -> float:
    torch.manual_seed(0)
    model, (clip,) = Network(), micro_batches(0, 1)
    (model(clip) - clip.sum(1, keepdim=True)).square().mean().backward()
    return nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item()


@STAGES
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path: Path, ranks: Ranks, stage: int, broken: float) -> None:
    engine, clean = build(tmp_path, ranks, stage, 2), build(tmp_path, ranks, stage, 2)
    for one in (engine, clean):
        update(one, 0, 2)
    before = state_of(engine)
    backward(engine, micro_batches(1, 2)[0])
    backward(engine, micro_batches(1, 2)[1], broken)
    with pytest.raises(NotFiniteError, match="the gradient of the network is not finite"):
        engine.step()
    assert_close(state_of(engine), before, rtol=0)
    assert engine.facts()["updates"] == 1
    for one in (engine, clean):
        update(one, 2, 2)
    assert_close(state_of(engine), state_of(clean), rtol=0)


@STAGES
def test_fp16_skips_an_overflow_and_goes_on(tmp_path: Path, ranks: Ranks, stage: int) -> None:
    engine = build(tmp_path, ranks, stage, precision="fp16")
    before, engine.scale.value = state_of(engine), 2.0**8
    backward(engine, micro_batches(0, 1)[0], float("inf"))
    assert not engine.step().isfinite()
    assert state_of(engine)["master/codebook"].tolist() == before["master/codebook"].tolist()
    assert engine.facts() == {"updates": 0, "loss_scale": 2.0**7, "good_updates": 0, "skipped_updates": 1}
    assert update(engine, 0).item() == pytest.approx(first_norm(), rel=2e-2), "of the true gradient"
    assert engine.facts() == {"updates": 1, "loss_scale": 2.0**7, "good_updates": 1, "skipped_updates": 1}


@STAGES
@pytest.mark.parametrize("updates", [0, 2])
def test_a_state_goes_into_a_fresh_engine(tmp_path: Path, ranks: Ranks, stage: int, updates: int) -> None:
    old, new = build(tmp_path, ranks, stage), build(tmp_path, ranks, stage, seed=1)
    for step in range(updates):
        update(old, step)
    restore(new, old.facts(), state_of(old))
    assert_close(state_of(new), state_of(old), rtol=0)
    assert new.facts() == old.facts()
    for engine in (old, new):
        update(engine, 7)
    assert_close(state_of(new), state_of(old), rtol=0)


@STAGES
@pytest.mark.parametrize("done", [1, 2, 3])
def test_an_interrupted_accumulation_leaves_nothing_behind(tmp_path: Path, ranks: Ranks, stage: int, done: int) -> None:
    """Trouble in the middle of a step, then the way back: the next step is the one without the interruption."""
    engine, clean = build(tmp_path, ranks, stage, 4), build(tmp_path, ranks, stage, 4)
    for one in (engine, clean):
        update(one, 0, 4)
    facts, state = engine.facts(), state_of(engine)
    update(engine, 1, 4)
    for clip in micro_batches(2, 4)[:done]:
        backward(engine, clip)
    restore(engine, facts, state)
    for step in (3, 4):
        norms = [update(one, step, 4).item() for one in (engine, clean)]
        assert norms[0] == norms[1]
        assert_close(state_of(engine), state_of(clean), rtol=0)
    assert engine.facts() == clean.facts() == {"updates": 3, "loss_scale": 1.0, "good_updates": 0, "skipped_updates": 0}


@STAGES
@pytest.mark.parametrize("updates", [0, 2])
def test_rows_get_new_values_and_no_history(tmp_path: Path, ranks: Ranks, stage: int, updates: int) -> None:
    engine = build(tmp_path, ranks, stage)
    for step in range(updates):
        update(engine, step)
    before, rows = state_of(engine), torch.tensor([3, 0])
    values = torch.arange(14.0).reshape(2, 7)
    engine.overwrite_rows("codebook", rows, values)
    expected = {key: tensor.clone() for key, tensor in before.items()}
    for kind in ("master", "exp_avg", "exp_avg_sq"):
        if f"{kind}/codebook" in expected:
            expected[f"{kind}/codebook"].view(5, 7)[rows] = values if kind == "master" else 0.0
    assert_close(state_of(engine), expected, rtol=0)
    assert ("exp_avg/codebook" in expected) == (updates > 0)
    assert forward(engine) == pytest.approx(forward_of(state_of(engine)), rel=1e-5), "the model has them too"
    update(engine, 8)
    assert state_of(engine)["exp_avg/codebook"].view(5, 7)[rows].abs().sum() > 0


@STAGES
def test_no_rows_change_nothing(tmp_path: Path, ranks: Ranks, stage: int) -> None:
    engine = build(tmp_path, ranks, stage)
    update(engine, 0)
    before = state_of(engine)
    engine.overwrite_rows("codebook", torch.empty(0, dtype=torch.int64), torch.empty(0, 7))
    assert_close(state_of(engine), before, rtol=0)


@torch.no_grad()
def forward(engine: Engine) -> list[float]:
    engine.module.eval()
    return list(engine(micro_batches(9, 1)[0]).flatten().tolist())


@torch.no_grad()
def forward_of(state: dict[str, Tensor]) -> list[float]:
    model = Network()
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    model.load_state_dict({name: state[f"master/{name}"].reshape(shape) for name, shape in shapes.items()})
    return list(model(micro_batches(9, 1)[0]).flatten().tolist())
