"""Linear layers by oneDNN on a CPU: the values, gradients and operations of torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx

from magvit_scale.linear import Linear, linear, linear_gelu
from magvit_scale.training.flops import count_flops
from tests.fake_gpu import fake_gpu

aten = torch.ops.aten

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


@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_with_its_gelu_has_torchs_values_and_gradients(shape: tuple[int, ...]) -> None:
    x, weight, bias = draw(shape)
    expected = F.gelu(F.linear(x, weight, bias), approximate="tanh")
    torch.testing.assert_close(linear_gelu(x, weight, bias), expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(linear_gelu(x, weight, bias), expected, rtol=1e-5, atol=1e-5)
        erf = F.gelu(F.linear(x, weight, bias))
    assert x.numel() == 0 or (erf - expected).abs().max() > 1e-4
    inputs = (x, weight, bias)
    found, right = (torch.autograd.grad(out.sum(), inputs) for out in (linear_gelu(*inputs), expected))
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-4)


def test_on_a_gpu_the_gelu_is_cublas_own_and_by_tanh() -> None:
    """As far as torch's own account of the operator goes; here it has no values."""

    def trace(*inside: OpOverload, dtype: torch.dtype = torch.bfloat16) -> list[torch.fx.Node]:
        with torch.no_grad(), fake_gpu():
            on_gpu = [torch.empty(each.shape, dtype=dtype, device="cuda") for each in draw((3, 7, 24))]
            graph = make_fx(linear_gelu, decomposition_table=get_decompositions(inside))(*on_gpu).graph
        return [node for node in graph.nodes if node.target in (aten._addmm_activation.default, aten.gelu.default)]

    assert [node.target for node in trace()] == [aten._addmm_activation.default]
    assert [node.target for node in trace(dtype=torch.float32)] == [aten.gelu.default]  # autocast converts linear alone
    assert [node.kwargs for node in trace(aten._addmm_activation.default)] == [{"approximate": "tanh"}]


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
    layer = Linear(24, 40)
    with torch.no_grad():
        assert count_flops(lambda: layer(x, then_gelu=True))[1] == 2 * 21 * 24 * 40
    with torch.no_grad(), fake_gpu():
        on_gpu = [torch.empty(own, dtype=torch.float16, device="cuda") for own in ((3, 7, 24), (40, 24), (40,))]
        assert count_flops(lambda: linear_gelu(*on_gpu))[1] == 2 * 21 * 24 * 40
