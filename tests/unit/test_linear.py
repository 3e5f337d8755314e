"""Linear layers by oneDNN on a CPU: the values, gradients and operations of torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magvit_scale.linear import Linear, linear
from magvit_scale.training.flops import count_flops

SHAPES = ((3, 7, 24), (5, 24), (24,), (2, 0, 24))


def draw(shape: tuple[int, ...], num_outputs: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (shape, (num_outputs, shape[-1]), (num_outputs,))
    x, weight, bias = (torch.randn(size, generator=generator, requires_grad=True) for size in sizes)
    return x, weight, bias


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_torch(shape: tuple[int, ...], has_bias: bool) -> None:
    found = []
    for layer in (F.linear, linear):
        x, weight, bias = draw(shape)
        given = (x, weight, bias) if has_bias else (x, weight, None)
        out = layer(*given)
        out.square().sum().backward()
        found.append([out, *(tensor.grad for tensor in given if tensor is not None)])
    for expected, own in zip(*found, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-4)


def test_only_what_is_asked_for_is_differentiated() -> None:
    x, weight, _ = draw((3, 24))
    (gradient,) = torch.autograd.grad(linear(x.detach(), weight, None).sum(), weight)
    torch.testing.assert_close(gradient, x.sum(0).expand_as(weight))


def test_it_is_told_that_there_is_no_second_derivative() -> None:
    x, weight, bias = draw((3, 24))
    (gradient,) = torch.autograd.grad(linear(x, weight, bias).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_autocast_and_other_numbers_go_torchs_way() -> None:
    x, weight, bias = draw((3, 24))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    double = [tensor.double() for tensor in (x, weight, bias)]
    assert torch.equal(linear(*double), F.linear(*double))


def test_operations_are_counted_alike() -> None:
    x, *_ = draw((3, 7, 24))

    def step(module: nn.Module) -> None:
        module(x).sum().backward()

    counts = []
    for kind in (nn.Linear, Linear):
        module = kind(24, 40)
        counts.append(count_flops(lambda module=module: step(module))[1])  # type: ignore[misc]
    assert counts == [3 * 2 * 21 * 24 * 40] * 2
