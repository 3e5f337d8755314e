"""torch.compile of the networks in place: what a model computes and how it is checkpointed stays, r1 does not work."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from magvit_scale.checkpointing import Granularity, checkpoint_activations
from magvit_scale.commit.decoding import Decoded, decode, draw_noise
from magvit_scale.config import DecodingConfig
from magvit_scale.precision import compute_in
from magvit_scale.vqgan.autoencoder import FUSED
from magvit_scale.vqgan.perceptual import PerceptualLoss
from tests import tiny_models
from tests.tiny_models import Loss

CASES: dict[str, tuple[Callable[[], nn.Module], Loss]] = {
    "vqgan": (tiny_models.vqgan, tiny_models.reconstruct),
    "discriminator": (tiny_models.discriminator, tiny_models.judge),
    "transformer": (lambda: tiny_models.transformer().eval(), tiny_models.predict),  # dropout draws other numbers
}


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compare(name: str, granularity: Granularity, backend: str) -> None:
    build, loss = CASES[name]
    plain, compiled = build(), build()
    checkpoint_activations(compiled, granularity)
    compiled.compile(backend=backend)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    expected, found = loss(plain), loss(compiled)
    expected.backward()
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for (key, own), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        assert (own.grad is None) == (other.grad is None), key
        if own.grad is not None:
            # Traced and not made to code, GroupNorm is torch's own, which on a CPU is inexact with channels last.
            largest = float(own.grad.abs().max())
            # A key's bias has the gradient 0, and what its sums are rounded to.
            torch.testing.assert_close(other.grad, own.grad, rtol=1e-4, atol=2e-4 * largest + 1e-12, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_traced_network_is_the_same_network(name: str) -> None:
    compare(name, "stages", "aot_eager")


@pytest.mark.slow
def test_a_network_compiled_to_code_is_the_same_network() -> None:
    compare("discriminator", "blocks", "inductor")


def decoded(size: int, is_compiled: bool, **settings: Any) -> Decoded:
    """Six steps that ignore what was decoded before; a fifth of the tokens is known from the start."""
    draws = torch.Generator().manual_seed(size)
    answers = iter(torch.randn(6, size, 64, 16, generator=draws))
    start, unknown = torch.randint(16, (size, 64), generator=draws), torch.rand(size, 64, generator=draws) < 0.8
    noise = draw_noise([torch.Generator().manual_seed(seed) for seed in range(size)])
    config = DecodingConfig(num_steps=6, **settings)
    return decode(lambda *_: next(answers), start, unknown, config, noise, is_compiled)


@pytest.mark.slow
def test_a_compiled_decoding_step_takes_the_same_decisions() -> None:
    sizes: list[tuple[int, dict[str, Any]]] = [(2, {}), (3, {}), (5, {})]
    settings = ({"top_k": 3}, {"top_p": 0.7}, {"sampling_temperature": 2.5}, {"mask_count": "ceil"})
    for size, changed in sizes + [(3, each) for each in settings]:
        plain, compiled = (decoded(size, is_compiled, **changed) for is_compiled in (False, True))
        assert torch.equal(compiled.tokens_by_step, plain.tokens_by_step)
        assert torch.equal(compiled.fixed_by_step, plain.fixed_by_step)
        if size == 5:
            assert counters["stats"]["unique_graphs"] == 2  # one for the first size, one for all others
    assert not counters["graph_break"]


def networks() -> dict[str, tuple[nn.Module, tuple[torch.Tensor, ...]]]:
    clip, vqgan, transformer = tiny_models.random_clip(), tiny_models.vqgan(), tiny_models.transformer()
    frames = (torch.rand(1, 3, 1, 32, 32), torch.rand(1, 3, 1, 32, 32, requires_grad=True))
    return {
        "encoder": (vqgan.encoder, (clip,)),
        "decoder": (vqgan.decoder, (vqgan.encode(clip).detach().requires_grad_(),)),
        "encoder 2D": (tiny_models.vqgan(2).encoder, (clip[:, :, 0],)),
        "transformer": (transformer, (torch.zeros(2, len(transformer.position.weight), dtype=torch.int64),)),
        "perceptual": (PerceptualLoss("random"), frames),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["encoder", "decoder", "encoder 2D", "transformer", "perceptual"])
def test_nothing_cuts_a_networks_graph(name: str) -> None:
    """In 16 bits: at the entry to each of its float32 islands torch 2.11's compiler was stopped."""
    network, inputs = networks()[name]
    with tiny_models.without_onednn():
        compute_in(network, "bf16", torch.device("cpu"))
        network.compile(fullgraph=True, backend="aot_eager")
        network(*inputs).float().sum().backward()
    assert all(each.grad is not None for each in inputs if each.requires_grad)


def test_a_3d_vqgan_tells_inductor_what_to_leave_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **named: told.append(named))
    tiny_models.vqgan(3).compile()
    tiny_models.vqgan(2).compile()
    assert told[:2] == [{"backend": "inductor", "options": FUSED}] * 2
    assert told[2:] == [{"backend": "inductor", "options": None}] * 2
    assert set(FUSED) <= set(torch._inductor.list_options())


@pytest.mark.slow
def test_r1_cannot_pass_through_a_compiled_discriminator() -> None:
    """The day this fails, r1 may be compiled."""
    model = tiny_models.discriminator()
    model.compile(backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"create_graph|double backward"):
        tiny_models.penalise(model).backward()


@pytest.mark.slow
def test_a_compiled_perceptual_loss_has_the_same_gradient() -> None:
    real, fake = (torch.rand(1, 3, 2, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    gradients = []
    for is_compiled in (False, True):
        loss, leaf = PerceptualLoss("random"), fake.clone().requires_grad_()
        if is_compiled:
            loss.compile(backend="aot_eager")
        gradients.append(torch.autograd.grad(loss(real, leaf), leaf)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-8)
