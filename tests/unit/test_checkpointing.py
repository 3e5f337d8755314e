"""Activation checkpointing: the same gradients to the bit from fewer kept bytes, in every model, at every precision."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from benchmarks.memory import Case, cases, hold
from benchmarks.torchs_own import torchs_own_linear_layers
from magvit_scale.checkpointing import Granularity, checkpoint_activations
from magvit_scale.training.flops import count_flops
from magvit_scale.vqgan.losses import compute_r1_penalty
from tests import tiny_models
from tests.tiny_models import Loss, without_onednn

GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)
CASES: dict[str, tuple[Callable[[], nn.Module], Loss]] = {
    "vqgan": (tiny_models.vqgan, tiny_models.reconstruct),
    "vqgan 2D": (lambda: tiny_models.vqgan(2), tiny_models.reconstruct),
    "discriminator": (tiny_models.discriminator, tiny_models.judge),
    "discriminator, r1": (tiny_models.discriminator, tiny_models.penalise),
    "discriminator 2D, r1": (lambda: tiny_models.discriminator(2), tiny_models.penalise),
    "encoder, r1": (lambda: tiny_models.vqgan().encoder, lambda model: bend(model)),
    "transformer": (tiny_models.transformer, tiny_models.predict),
}


def bend(model: nn.Module) -> Tensor:
    """A penalty of the slope, through norms and swish: twice backward through the same graph."""
    clip = tiny_models.random_clip().requires_grad_()
    return compute_r1_penalty(model(clip), clip)


def differentiate(name: str, granularity: Granularity, dtype: torch.dtype | None) -> dict[str, Tensor | None]:
    build, loss = CASES[name]
    model = build()
    checkpoint_activations(model, granularity)
    with without_onednn():
        with torch.autocast("cpu", dtype) if dtype else nullcontext():
            value = loss(model)
        value.backward()
    return {"loss": value.detach()} | {key: parameter.grad for key, parameter in model.named_parameters()}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_same_to_the_bit(name: str, dtype: torch.dtype | None) -> None:
    expected = differentiate(name, "none", dtype)
    moved = [gradient is not None and bool(gradient.any()) for gradient in expected.values()]
    assert sum(moved) > 0.9 * len(moved)
    for granularity in GRANULARITIES[1:]:
        found = differentiate(name, granularity, dtype)
        assert found.keys() == expected.keys()
        for key, gradient in expected.items():
            assert (gradient is None) == (found[key] is None), key
            assert gradient is None or torch.equal(found[key], gradient), (granularity, key)


@pytest.mark.parametrize("case", [case for case in cases() if "-B" in case.name], ids=lambda case: case.name)
def test_a_network_of_the_paper_holds_less(case: Case) -> None:
    found = {granularity: hold(case, granularity, None) for granularity in GRANULARITIES}
    kept, peaks, flops = (dict(zip(found, column, strict=True))
                          for column in zip(*(row.values() for row in found.values()), strict=True))  # fmt: skip
    assert kept["none"] > kept["blocks"] > kept["stages"]
    assert flops["none"] == flops["pointwise"] < flops["blocks"] <= flops["stages"] < 1.6 * flops["none"]
    if "discriminator" in case.name:
        assert found["pointwise"] == found["none"]  # it has no norms
    else:
        assert kept["blocks"] < kept["pointwise"] < (0.3 if "VQGAN" in case.name else 0.8) * kept["none"]
        assert peaks["none"] > peaks["pointwise"] > peaks["blocks"]
    if case.name.endswith("real and fake"):
        assert len(set(peaks.values())) == 1  # that of its first block alone, at full resolution
    else:
        assert peaks["none"] > peaks["blocks"] > peaks["stages"]


@pytest.mark.parametrize("name", ["vqgan", "vqgan 2D", "transformer"])
def test_no_convolution_and_no_product_is_pointwise(name: str) -> None:
    build, loss = CASES[name]

    def work(granularity: Granularity) -> float:
        model = build()
        checkpoint_activations(model, granularity)
        with torchs_own_linear_layers():  # of oneDNN's linear layers see `linear`
            return count_flops(lambda: loss(model).backward())[1]

    assert work("none") == work("pointwise") < work("blocks")


def test_names_and_copies_of_a_model_do_not_change() -> None:
    plain, model = tiny_models.vqgan(), tiny_models.vqgan()
    checkpoint_activations(model, "stages")
    assert list(model.state_dict()) == list(plain.state_dict())
    average = copy.deepcopy(model)
    checkpoint_activations(average, "none")  # an average is never differentiated; the model itself must not notice
    assert model.encoder.recomputed == ("pointwise", "block", "stage")
    assert average.encoder.recomputed == ()


def test_nothing_is_computed_twice_without_gradients() -> None:
    model = tiny_models.discriminator()
    checkpoint_activations(model, "blocks")
    calls: list[nn.Module] = []
    model.blocks[0].conv1.register_forward_hook(lambda layer, inputs, output: calls.append(layer))
    with torch.no_grad():
        tiny_models.judge(model)
    assert len(calls) == 1
    tiny_models.judge(model).backward()
    assert len(calls) == 3


def test_gradients_of_a_leaf_alone_pass_through() -> None:
    """As the generator's step takes them: of a detached reconstruction, the discriminator frozen."""
    found = []
    for granularity in GRANULARITIES:
        model = tiny_models.discriminator().requires_grad_(False)
        checkpoint_activations(model, granularity)
        leaf = tiny_models.random_clip().requires_grad_()
        found.append(torch.autograd.grad(model(leaf).sum(), leaf)[0])
    assert found[0].any()
    assert all(torch.equal(found[0], other) for other in found[1:])
