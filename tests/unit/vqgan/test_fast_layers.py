"""The layers that are written anew for a GPU's sake, each against torch's own."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from magvit_scale.vqgan.discriminator import Discriminator
from magvit_scale.vqgan.group_norm import normalise_by_channels
from magvit_scale.vqgan.layout import laid_out
from magvit_scale.vqgan.reflection import reflect
from magvit_scale.vqgan.twice_differentiable import convolve, gradient_of_input, leaky_relu, mean
from magvit_scale.vqgan.windows import space_to_depth
from tests import tiny_models
from tests.fake_gpu import fake_gpu
from tests.gradients import gradients, randn

CLIP = (2, 3, 4, 6, 8)


def test_group_norm_by_channels_is_as_exact_as_torchs_own() -> None:
    # Far from zero, where a mean of squares less a squared mean has lost its digits.
    x, weight, bias = (each.detach().float() for each in (3 * randn(2, 8, *CLIP[2:]) + 100, randn(8), randn(8) + 1))
    inputs = [each.requires_grad_() for each in (x, weight, bias)]
    exact = gradients(lambda *own: F.group_norm(own[0], 4, *own[1:], 1e-6), *(each.double() for each in inputs))
    torchs = gradients(lambda *own: F.group_norm(own[0], 4, *own[1:], 1e-6), *inputs)
    found = gradients(lambda *own: normalise_by_channels(*own, num_groups=4, eps=1e-6), *inputs)
    for own, other, right in zip(found, torchs, exact, strict=True):
        assert (own - right).norm() <= 2 * (other - right).norm() + 1e-7 * right.norm()


@pytest.mark.parametrize("sides", [(), (2, 3, 4), (3, 4)])
@pytest.mark.parametrize("shape", [CLIP, (1, 1, 2, 2, 2)])
@pytest.mark.parametrize("is_compiling", [False, True])
def test_reflection_is_torchs_own(
    shape: tuple[int, ...], sides: tuple[int, ...], is_compiling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_dynamo_compiling", lambda: is_compiling)

    def torchs(x: Tensor) -> Tensor:
        return space_to_depth(F.pad(x, [1] * 6, mode="reflect"), sides)

    x = randn(*shape)
    found, expected = gradients(lambda x: reflect(x, sides), x), gradients(torchs, x)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])


def test_reflection_is_differentiated_once() -> None:
    x = randn(*CLIP)
    (gradient,) = torch.autograd.grad(reflect(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize("is_compiled", [False, True])
def test_reflections_gradient_is_summed_in_nobody_elses_memory(is_compiled: bool) -> None:
    """The gradient of a sum is that of each of its parts: one of them folds it in place."""

    def function(x: Tensor, beside: Tensor) -> Tensor:
        return reflect(x) + beside

    x, beside = randn(*CLIP), randn(2, 3, 6, 8, 10)
    run = torch.compile(function, fullgraph=True) if is_compiled else function
    given = randn(*beside.shape).detach()
    found = torch.autograd.grad(run(x, beside), (x, beside), given)
    expected = torch.autograd.grad(F.pad(x, [1] * 6, mode="reflect"), x, randn(*beside.shape).detach())
    torch.testing.assert_close(found[0], expected[0])
    assert torch.equal(found[1], given)
    assert torch.equal(given, randn(*beside.shape))


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_convolution_has_the_gradients_of_its_gradients(ndim: int) -> None:
    x, weight, bias = randn(2, 3, *[4] * ndim), randn(4, 3, *[3] * ndim), randn(4)
    torchs = {2: F.conv2d, 3: F.conv3d}[ndim]
    torch.testing.assert_close(convolve(x, weight, bias, 1), torchs(x, weight, bias, padding=1))
    assert torch.autograd.gradcheck(lambda *own: convolve(*own, 1), (x, weight, bias))
    assert torch.autograd.gradgradcheck(lambda *own: convolve(*own, 1), (x, weight, bias))


def penalty_gradients(model: Discriminator) -> list[Tensor]:
    tiny_models.penalise(model).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("ndim", [2, 3])
def test_r1_is_what_torchs_own_convolutions_make_of_it(ndim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = penalty_gradients(tiny_models.discriminator(ndim))
    model, torchs = tiny_models.discriminator(ndim), {2: nn.Conv2d, 3: nn.Conv3d}[ndim]
    own = type(model.conv_in)
    assert own is not torchs
    monkeypatch.setattr(own, "forward", torchs.forward)
    expected = penalty_gradients(model)
    assert len(found) == len(expected) == len(list(model.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_an_inputs_gradient_costs_no_weights() -> None:
    x, weight = randn(2, 3, 4, 4, 4), randn(5, 3, 3, 3, 3)

    def count(gradient: Callable[[Tensor], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            gradient(convolve(x, weight, None, 1).sum())
        return counter.get_total_flops()

    both = count(lambda output: torch.autograd.grad(output, x))
    alone = count(lambda output: gradient_of_input(output, x))
    assert 3 * alone == 2 * both
    (gradient,) = torch.autograd.grad(convolve(x, weight, None, 1).sum(), weight)  # asked for, it comes
    assert gradient.abs().sum() > 0


def test_on_a_gpu_channels_lie_side_by_side_and_in_eights() -> None:
    assert laid_out(torch.empty(2, 3, 4, 6, 8)).shape == (2, 3, 4, 6, 8)
    with fake_gpu():
        clip, weight = (laid_out(torch.empty(shape, device="cuda")) for shape in ((2, 3, 4, 6, 8), (64, 3, 3, 3, 3)))
        frames = laid_out(torch.empty(2, 16, 6, 8, device="cuda"))
    assert (clip.shape, weight.shape) == ((2, 8, 4, 6, 8), (64, 8, 3, 3, 3))
    assert all(each.is_contiguous(memory_format=torch.channels_last_3d) for each in (clip, weight))
    assert frames.shape == (2, 16, 6, 8)
    assert frames.is_contiguous(memory_format=torch.channels_last)


def test_a_mean_has_the_gradient_of_a_mean_and_writes_it_once() -> None:
    x = randn(2, 3, 4, 5)
    torch.testing.assert_close(gradients(lambda x: mean(x, 1, 3), x), gradients(lambda x: x.mean((1, 3)), x))
    assert torch.autograd.gradgradcheck(lambda x: mean(x, 1, 3), x)
    (gradient,) = torch.autograd.grad(mean(x, 1, 3).sum(), x)
    assert gradient.untyped_storage().nbytes() <= gradient.nbytes / (3 * 5)


def test_a_leaky_relu_is_torchs_own_and_adds_no_zeros() -> None:
    x = randn(*CLIP)
    torch.testing.assert_close(
        gradients(lambda x: leaky_relu(x.clone(), 0.2), x), gradients(lambda x: F.leaky_relu(x, 0.2), x)
    )
    assert torch.autograd.gradgradcheck(lambda x: leaky_relu(x * 2, 0.2), x)
    operators: list[str] = []
    for own in (leaky_relu, F.leaky_relu):
        (gradient,) = torch.autograd.grad(own(x.square(), 0.2).sum(), x, create_graph=True)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            gradient.sum().backward()
        operators.append(" ".join(event.name for event in profiler.events()))
    assert ["aten::zeros_like" in each for each in operators] == [False, True]
