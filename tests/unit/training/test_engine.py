"""What an engine does around DeepSpeed: accumulation, the scale of fp16, and updates that are not made."""

import pytest
import torch
from torch import Tensor, nn

from magvit_scale.config import Precision
from magvit_scale.precision import compute_in
from magvit_scale.training.engine import Engine, LossScale
from magvit_scale.training.health import NotFiniteError
from tests.unit.training.conftest import ALONE, PlainDeepSpeed, build_engine


def weights(engine: Engine) -> list[float]:
    return [value for parameter in engine.module.parameters() for value in parameter.detach().flatten().tolist()]


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(2, 1)


def data(count: int) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(1))


# ----------------------------------------------------------------------------------------------------------------------
# The loss scale


def test_a_scale_is_halved_by_an_overflow_and_never_below_one() -> None:
    scale = LossScale("fp16")
    found = []
    for _ in range(18):
        found.append(scale.value)
        scale.update(is_finite=False)
    assert found == [2.0**power for power in range(16, 0, -1)] + [1.0, 1.0]


def test_a_scale_is_doubled_after_so_many_good_updates_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossScale, "GROWTH_INTERVAL", 3)
    scale, found = LossScale("fp16"), []
    scale.value = 8.0
    for is_finite in (True, True, False, True, True, True, True, True, True):
        scale.update(is_finite)
        found.append(scale.value)
    assert found == [8, 8, 4, 4, 4, 8, 8, 8, 16]
    assert LossScale("fp16").value == 2.0**16


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_precisions_scale_nothing(precision: Precision) -> None:
    scale = LossScale(precision)
    for is_finite in (True, False):
        scale.update(is_finite)
    assert (scale.value, scale.is_dynamic) == (1.0, False)


# ----------------------------------------------------------------------------------------------------------------------
# Accumulation


@pytest.mark.parametrize("count", [1, 2, 4])
def test_deepspeed_steps_once_per_micro_batch_and_the_result_is_that_of_the_whole_batch(count: int) -> None:
    engine, whole, clips = build_engine(linear(), accumulation=count), build_engine(linear()), data(8)
    for _ in range(2):
        for part in clips.chunk(count):
            engine.backward(engine(part).square().mean())
        norm = engine.step()
        whole.backward(whole(clips).square().mean())
        expected = nn.utils.get_total_norm([p.grad for p in whole.module.parameters()])
        whole.step()
        assert norm.item() == pytest.approx(expected.item(), rel=1e-5)
        assert norm.dtype == torch.float32
    assert engine.deepspeed.calls == ["backward", "step"] * count * 2
    assert engine.deepspeed.global_steps == 2
    assert weights(engine) == pytest.approx(weights(whole), rel=1e-5)


# ----------------------------------------------------------------------------------------------------------------------
# Gradients that are not finite


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_not_finite_is_named_and_nothing_is_updated(precision: Precision, broken: float) -> None:
    engine = Engine("generator", PlainDeepSpeed(linear()), precision, ALONE)
    engine.backward(engine(data(2)).mean())
    engine.step()
    before, moments = weights(engine), engine.deepspeed.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    engine.backward(engine(data(2)).mean() * broken)
    with pytest.raises(NotFiniteError, match=r"^the gradient of the generator is not finite; the update was not made"):
        engine.step()
    assert weights(engine) == before
    assert torch.equal(engine.deepspeed.optimizer.state_dict()["state"][0]["exp_avg"], moments)
    assert engine.facts()["updates"] == 1
    engine.backward(engine(data(2)).mean())
    assert engine.step().isfinite()
    assert weights(engine) != before
    assert engine.facts()["updates"] == 2


def test_fp16_passes_over_an_overflow_and_halves_its_scale() -> None:
    engine = build_engine(linear(), precision="fp16")
    before = weights(engine)
    engine.backward(engine(data(2)).mean() * float("inf"))
    assert not engine.step().isfinite()
    assert weights(engine) == before
    assert engine.facts() == {"updates": 0, "loss_scale": 2.0**15, "good_updates": 0, "skipped_updates": 1}
    engine.backward(engine(data(2)).mean())
    assert engine.step().isfinite()
    assert weights(engine) != before
    assert engine.facts() == {"updates": 1, "loss_scale": 2.0**15, "good_updates": 1, "skipped_updates": 1}


def test_the_scale_is_in_the_loss_and_not_in_the_gradients() -> None:
    scaled, plain = build_engine(linear(), precision="fp16"), build_engine(linear())
    seen: list[float] = []
    scaled.module.register_full_backward_hook(lambda module, into, outof: seen.append(outof[0].sum().item()))
    norms = []
    for engine in (scaled, plain):
        engine.backward(engine(data(2).requires_grad_()).mean())
        norms.append(engine.step().item())
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    assert seen == [2.0**16]
    assert weights(scaled) == pytest.approx(weights(plain), rel=1e-6)


def test_a_checkpoint_carries_the_scale_of_fp16_alone() -> None:
    engine = build_engine(linear(), precision="fp16")
    engine.scale.value, engine.scale.good_updates, engine.scale.skipped_updates = 512.0, 7, 3
    kept = {key: view.clone() for key, _, view in engine.owned_slices()}
    logged = {"optim/loss_scale_network": 512.0, "optim/skipped_updates_network": 3.0}
    for precision, expected, curves in (("fp16", (512.0, 7), logged), ("fp32", (1.0, 0), {})):
        other = build_engine(nn.Linear(2, 1), precision=precision)  # type: ignore[arg-type]
        other.restore(engine.facts(), lambda name, first, length: kept[name][first : first + length])
        assert (other.scale.value, other.scale.good_updates) == expected
        assert {name: value.item() for name, value in other.metrics().items()} == curves
        assert weights(other) == weights(engine)


# ----------------------------------------------------------------------------------------------------------------------
# The rest


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_a_model_computes_in_its_precision_and_keeps_float32_weights(precision: Precision, dtype: torch.dtype) -> None:
    model = compute_in(linear(), precision, torch.device("cpu"))
    assert model(data(2)).dtype == dtype
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model(data(2)).float().sum().backward()
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {torch.float32}


def test_the_learning_rate_is_set_in_every_group() -> None:
    engine = build_engine(linear())
    engine.set_learning_rate(0.25)
    assert [group["lr"] for group in engine.deepspeed.optimizer.param_groups] == [0.25, 0.25]


def test_masters_are_the_weights_among_what_is_written() -> None:
    engine = build_engine(linear())
    engine.backward(engine(data(2)).mean())
    engine.step()
    assert [key for key, _, _ in engine.owned_slices()] == [
        f"{kind}/{name}" for name in ("weight", "bias") for kind in ("master", "exp_avg", "exp_avg_sq")
    ]
    assert {name: view.tolist() for name, _, view in engine.masters()} == {
        name: parameter.flatten().tolist() for name, parameter in engine.module.named_parameters()
    }
