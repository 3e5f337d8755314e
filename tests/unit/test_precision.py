"""What stays in float32 while autocast computes the rest in 16 bits."""

from collections.abc import Callable, Iterator

import lpips
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magvit_scale.commit.transformer import Layer
from magvit_scale.config import Perceptual
from magvit_scale.precision import full_float32, in_own_precision, without_autocast
from magvit_scale.vqgan.blocks import ResidualBlock, group_norm
from magvit_scale.vqgan.losses import compute_r1_penalty
from magvit_scale.vqgan.perceptual import PerceptualLoss
from magvit_scale.vqgan.quantizer import VectorQuantizer
from tests import tiny_models
from tests.frozen_networks import weights_of_random_numbers
from tests.tiny_models import Loss, without_onednn

HALVES = (torch.bfloat16, torch.float16)
RELATIVE = {torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}
"""Some roundings of a 16-bit number."""


@pytest.fixture(params=HALVES, ids=str)
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    with without_onednn():
        yield request.param


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_autocast_is_left_where_a_device_has_one(dtype: torch.dtype) -> None:
    linear, x = nn.Linear(8, 8), random(4, 8)
    exact = linear(x.to(dtype).float())
    with torch.autocast("cpu", dtype):
        assert linear(x).dtype == dtype
        assert torch.equal(in_own_precision(linear, x.to(dtype)), exact)
        with without_autocast(x):
            assert linear(x).dtype == torch.float32
        assert linear(x).dtype == dtype
    with without_autocast(torch.empty(1, device="meta")):
        pass


def test_the_quantiser_does_not_notice_autocast(dtype: torch.dtype) -> None:
    """In 16 bits the nearest of many close entries is another one, so equal ids show that none were taken there."""
    torch.manual_seed(0)
    quantizer, latents = VectorQuantizer(1024, 16), 0.05 * random(2, 16, 4, 8, 8)
    found = []
    for enabled in (False, True):
        quantizer.zero_grad()
        leaf = latents.clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=enabled):
            quantized = quantizer(leaf)
            ids, vectors = quantizer.tokenize(leaf), quantizer.look_up(quantized.token_ids)
        losses = [quantized.commitment_loss, quantized.codebook_loss, quantized.entropy_loss]
        (sum(losses) + quantized.latents.sum()).backward()
        found.append(
            [quantized.latents, quantized.token_ids, *losses, ids, vectors, leaf.grad, quantizer.codebook.grad]
        )
    for plain, automatic in zip(*found, strict=True):
        assert plain.dtype == automatic.dtype
        assert torch.equal(plain, automatic)
    with torch.autocast("cpu", dtype):
        rows = latents.movedim(1, -1).reshape(-1, 16)
        rounded = (quantizer.codebook.square().sum(1) - 2 * rows @ quantizer.codebook.T).argmin(1)
    assert not torch.equal(rounded, found[0][1].flatten())


def test_group_norm_is_as_exact_as_in_float32(dtype: torch.dtype) -> None:
    x, norm = 500 + random(2, 8, 4, 6, 6), group_norm(4, 8)
    exact = F.group_norm(x.double(), 4, eps=1e-6)
    with torch.autocast("cpu", dtype):
        found = norm(x)
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 5e-4  # 500 in float32 has steps of 3e-5; in 16 bits, of 0.5 or more
    assert (F.group_norm(x.to(dtype).double(), 4) - exact).abs().max() > 0.1


def test_group_norm_answers_in_16_bits_where_asked_in_16_bits(dtype: torch.dtype) -> None:
    x, norm = (3 + random(2, 8, 4, 6, 6)).to(dtype), group_norm(4, 8)
    nn.init.normal_(norm.weight)
    exact = F.group_norm(x.double(), 4, norm.weight.double(), norm.bias.double(), eps=1e-6)
    for module in (norm, group_norm(4, 8).to(dtype)):
        module.load_state_dict(norm.state_dict())
        found = module(x)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), exact, rtol=RELATIVE[dtype], atol=RELATIVE[dtype])


def test_a_residual_block_keeps_its_activations_in_16_bits(dtype: torch.dtype) -> None:
    block, x = ResidualBlock(3, 8, 16, num_groups=4, padding="reflect"), random(1, 8, 4, 6, 6)
    with torch.autocast("cpu", dtype):
        found = block(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), block(x), rtol=0, atol=4 * RELATIVE[dtype])


def test_a_transformer_layer_sums_and_normalises_in_float32(dtype: torch.dtype) -> None:
    config = tiny_models.transformer().config
    layer, x = Layer(config).eval(), random(2, 14, config.hidden_size)
    seen: list[torch.dtype] = []
    for norm in (layer.attention_norm, layer.mlp_norm):
        norm.register_forward_hook(lambda norm, inputs, output: seen.extend([inputs[0].dtype, output.dtype]))
    with torch.autocast("cpu", dtype):
        found = layer(x)
        assert layer.expand(x).dtype == dtype
    assert seen == [torch.float32] * 4
    torch.testing.assert_close(found, layer(x), rtol=0, atol=4 * RELATIVE[dtype])


def test_what_leaves_the_networks_is_float32_and_close(dtype: torch.dtype) -> None:
    vqgan, judge, transformer = tiny_models.vqgan(), tiny_models.discriminator(), tiny_models.transformer().eval()
    clip, sequence = tiny_models.random_clip(), torch.arange(28).reshape(2, 14) % 10
    outputs = {
        "latents": lambda: vqgan.encode(clip),
        "clip": lambda: vqgan.detokenize(torch.arange(64).reshape(2, 2, 4, 4)[..., :2, :2] % 16),
        "verdict": lambda: judge(clip),
        "tokens": lambda: transformer.latent_logits(sequence),
    }
    for name, compute in outputs.items():
        exact = compute()
        with torch.autocast("cpu", dtype):
            found = compute()
        assert found.dtype == torch.float32, name
        assert not torch.equal(found, exact), name  # or autocast was off all along
        torch.testing.assert_close(found, exact, rtol=0, atol=8 * RELATIVE[dtype] * exact.abs().max().item())


def decode(model: nn.Module) -> Tensor:
    """From given ids: where rounding chooses another one, gradients jump."""
    ids = torch.randint(0, 16, (2, 2, 2, 2), generator=torch.Generator().manual_seed(0))
    return (model.decode(model.quantizer.look_up(ids)) - tiny_models.random_clip()).square().mean()


def encode(model: nn.Module) -> Tensor:
    return model.encode(tiny_models.random_clip()).square().mean()


def penalise(model: nn.Module) -> Tensor:
    real = tiny_models.random_clip().requires_grad_()
    return compute_r1_penalty(model(real), real)


GRADIENTS: dict[str, tuple[Callable[[], nn.Module], Loss]] = {
    "decoder": (tiny_models.vqgan, decode),
    "encoder": (tiny_models.vqgan, encode),
    "r1": (tiny_models.discriminator, penalise),
    "transformer": (lambda: tiny_models.transformer().eval(), tiny_models.predict),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_close_and_float32(name: str, dtype: torch.dtype) -> None:
    build, loss = GRADIENTS[name]
    found = []
    for enabled in (False, True):
        model = build()
        with torch.autocast("cpu", dtype, enabled=enabled):
            value = loss(model)
        value.backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert {gradient.dtype for gradient in gradients} == {torch.float32}
        found.append(torch.cat([gradient.flatten() for gradient in gradients]))
    exact, rounded = found
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.05


@pytest.fixture(scope="module")
def distances(tmp_path_factory: pytest.TempPathFactory) -> dict[Perceptual, PerceptualLoss]:
    with weights_of_random_numbers(tmp_path_factory.mktemp("weights")):
        return {kind: PerceptualLoss(kind) for kind in ("random", "resnet50_logits")}


@pytest.mark.parametrize("kind", ["random", "resnet50_logits"])
def test_the_perceptual_distance_is_summed_in_float32(
    kind: Perceptual, distances: dict[Perceptual, PerceptualLoss], dtype: torch.dtype
) -> None:
    real, fake = torch.rand(2, 1, 3, 1, 224, 32, generator=torch.Generator().manual_seed(0))
    exact = distances[kind](real, fake)
    with torch.autocast("cpu", dtype):
        found = distances[kind](real, fake.requires_grad_())
    found.backward()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=0.05)
    assert fake.grad.isfinite().all()


def test_lpips_is_that_of_its_package() -> None:
    loss = PerceptualLoss("random")
    real, fake = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = lpips.LPIPS.forward(loss.distance.network, real, fake, normalize=True).mean()
    torch.testing.assert_close(loss.distance(real, fake), expected, rtol=1e-6, atol=0)


def test_measurements_know_neither_autocast_nor_tf32_and_leave_the_settings_as_they_were(dtype: torch.dtype) -> None:
    def settings() -> list[str]:
        return [torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision]

    before = settings()
    assert before[0] == "tf32"  # torch's own choice, for which this exists
    clip = torch.ones(1, 1, 1, 1, 1)
    weight = torch.full((1, 1, 1, 1, 1), 1 + 2.0**-20)
    with torch.autocast("cpu", dtype), full_float32(clip):
        assert F.conv3d(clip, weight).item() == 1 + 2.0**-20
        assert settings() == ["ieee", "ieee"]
    with pytest.raises(ZeroDivisionError), full_float32(clip):
        raise ZeroDivisionError
    assert settings() == before
