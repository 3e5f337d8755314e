"""One step of stage 1 against the same update written in plain PyTorch, and who touches whose gradients."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magvit_scale.config import CodebookUseConfig, DiscriminatorConfig, VQGANConfig, VQGANLossConfig, vqgan_health
from magvit_scale.page.words import CURVE_WORDS
from magvit_scale.training.engine import LossScale
from magvit_scale.vqgan import twice_differentiable
from magvit_scale.vqgan.adaptive import LastLayer
from magvit_scale.vqgan.autoencoder import VQGAN
from magvit_scale.vqgan.codebook_use import CodebookUse
from magvit_scale.vqgan.discriminator import Discriminator
from magvit_scale.vqgan.losses import LeCam
from magvit_scale.vqgan.step import VQGANTraining, vqgan_step

LEARNING_RATE = 0.1
SIDES = (4, 8, 8)
LOSS = VQGANLossConfig(perceptual="none", perceptual_weight=0.0, lecam_weight=0.5, ema_decay=0.9, r1_weight=2.0)


class Engine:
    """What vqgan_step needs of an engine, with plain SGD inside."""

    def __init__(self, module: nn.Module, watched: nn.Module, accumulation: int = 1):
        self.module, self.watched, self.accumulation = module, watched, accumulation
        self.scale = LossScale("fp32")
        self.optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
        self.calls: list[str] = []
        self.gradients: dict[str, Tensor] = {}

    def __call__(self, clip: Tensor) -> object:
        self.calls.append("forward")
        return self.module(clip)

    def backward(self, loss: Tensor) -> None:
        before = gradients_of(self.watched)
        (loss / self.accumulation).backward()
        after = gradients_of(self.watched)
        assert before.keys() == after.keys(), "the other network got gradients"
        assert all(torch.equal(before[name], after[name]) for name in before), "the other network's gradients moved"
        self.calls.append("backward")

    def step(self) -> Tensor:
        self.gradients = gradients_of(self.module)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.calls.append("step")
        return nn.utils.get_total_norm(self.gradients.values())


@dataclass
class Guard:
    seen: list[set[str]] = field(default_factory=list)

    def __call__(self, values: Mapping[str, Tensor]) -> None:
        self.seen.append(set(values))
        assert all(torch.isfinite(value).all() for value in values.values())


def gradients_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def build(
    loss: VQGANLossConfig = LOSS, ndim: int = 3, perceptual: nn.Module | None = None, accumulation: int = 1
) -> VQGANTraining:
    torch.manual_seed(0)
    generator = VQGAN(
        VQGANConfig(
            ndim=ndim,  # type: ignore[arg-type]
            base_channels=8,
            channel_multipliers=(1, 2),
            num_res_blocks=1,
            temporal_downsample=(True,),
            embedding_dim=4,
            codebook_size=8,
            num_groups=4,
        ),
        loss.entropy_temperature,
    )
    discriminator = Discriminator(
        DiscriminatorConfig(ndim=ndim, base_channels=4, channel_multipliers=(2, 2), clip_shape=SIDES)
    )
    return VQGANTraining(
        generator=Engine(generator, discriminator, accumulation),
        discriminator=Engine(discriminator, generator, accumulation),
        perceptual=perceptual,  # type: ignore[arg-type]
        lecam=LeCam(loss.ema_decay),
        loss=loss,
        mean_over_ranks=lambda value: value,
        sum_over_ranks=lambda value: value,
        codebook_use=CodebookUse(8, CodebookUseConfig(window=3, dead_after=5)),
        guard=Guard(),
        last_layer=LastLayer(generator, lambda value: value) if loss.adaptive_weight else None,
    )


def random_clip(seed: int = 0, count: int = 2) -> Tensor:
    return torch.rand(count, 3, *SIDES, generator=torch.Generator().manual_seed(seed))


def plain_update(
    training: VQGANTraining, clip: Tensor, perceptual: Callable[[Tensor, Tensor], Tensor] | None = None
) -> tuple[nn.Module, nn.Module]:
    """The definitions (spec 4.3) with autograd over the whole graph; both updates from the same old parameters."""
    generator, discriminator = copy.deepcopy(training.generator.module), copy.deepcopy(training.discriminator.module)
    loss, lecam = training.loss, training.lecam
    fake, quantized = generator(clip)
    total = loss.reconstruction_weight * (clip - fake).square().mean()
    if perceptual is not None:
        total = total + loss.perceptual_weight * perceptual(clip, fake)
    adversarial = loss.adversarial_weight * F.softplus(-discriminator(fake)).mean()
    if loss.adaptive_weight:
        last = generator.decoder.conv_out.weight
        norms = [torch.autograd.grad(one, last, retain_graph=True)[0].norm()
                 for one in (total, adversarial / loss.adversarial_weight)]  # fmt: skip
        adversarial = adversarial * norms[0] / (norms[1] + 1e-4)
    total = total + adversarial
    total = total + loss.commitment_weight * quantized.commitment_loss + quantized.codebook_loss
    total = total + loss.entropy_weight * quantized.entropy_loss
    generator_gradients = torch.autograd.grad(total, list(generator.parameters()))

    real = clip.clone().requires_grad_()
    real_logits, fake_logits = discriminator(real), discriminator(fake.detach())
    (to_pixels,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
    judged = F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()
    judged = judged + loss.r1_weight * to_pixels.square().sum() / len(clip)
    judged = judged + loss.lecam_weight * (
        F.relu(real_logits.mean() - lecam.fake_mean) ** 2 + F.relu(lecam.real_mean - fake_logits.mean()) ** 2
    )
    discriminator_gradients = torch.autograd.grad(judged, list(discriminator.parameters()))
    with torch.no_grad():
        for network, gradients in ((generator, generator_gradients), (discriminator, discriminator_gradients)):
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter -= LEARNING_RATE * gradient
    return generator, discriminator


def assert_same_parameters(found: nn.Module, expected: nn.Module) -> None:
    for (name, a), b in zip(found.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=5e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("adaptive_weight", [False, True])
def test_a_step_is_the_plain_update(ndim: int, adaptive_weight: bool) -> None:
    training, clip = build(replace(LOSS, adaptive_weight=adaptive_weight), ndim), random_clip()
    training.lecam.update(torch.tensor(20.0), torch.tensor(-20.0))  # so that both halves of LeCam are at work
    before = copy.deepcopy(training.discriminator.module)
    expected_generator, expected_discriminator = plain_update(training, clip)
    vqgan_step(training, [clip], step=0)
    assert_same_parameters(training.generator.module, expected_generator)
    assert_same_parameters(training.discriminator.module, expected_discriminator)
    assert not torch.equal(before.dense.weight, training.discriminator.module.dense.weight)


def test_the_perceptual_term_enters_with_its_weight() -> None:
    class Blur(nn.Module):
        def forward(self, real: Tensor, fake: Tensor) -> Tensor:
            return (real.mean((3, 4)) - fake.mean((3, 4))).square().sum()

    training, clip = build(replace(LOSS, perceptual_weight=3.0), perceptual=Blur()), random_clip()
    expected_generator, _ = plain_update(training, clip, Blur())
    metrics = vqgan_step(training, [clip], step=0)
    assert_same_parameters(training.generator.module, expected_generator)
    assert metrics["loss/perceptual"].item() > 0


def test_each_engine_is_called_once_and_steps_on_its_own_loss_only() -> None:
    # Engine.backward asserts that the other network's gradients are left as they were.
    training = build()
    vqgan_step(training, [random_clip()], step=0)
    assert training.generator.calls == ["forward", "backward", "step"]
    assert training.discriminator.calls == ["forward", "backward", "step"]
    # What the generator's turn left in the discriminator would have been in its step.
    assert not gradients_of(training.generator.module)
    assert not gradients_of(training.discriminator.module)


def test_the_generators_update_pays_for_no_gradient_of_the_discriminators_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training, asked = build(LOSS), list[str]()
    discriminator, of_weight = training.discriminator, twice_differentiable.FOR_WEIGHT[3]
    monkeypatch.setitem(
        twice_differentiable.FOR_WEIGHT,
        3,
        lambda *given, **named: (asked.append(str(discriminator.calls)), of_weight(*given, **named))[1],
    )
    vqgan_step(training, [random_clip()], step=3)
    assert set(asked) == {"['forward']"}  # in its own backward pass, after the generator's update


def test_nothing_adversarial_happens_before_its_start() -> None:
    training, clip = build(replace(LOSS, adversarial_start=3)), random_clip()
    before = copy.deepcopy(training.discriminator.module.state_dict())
    metrics = vqgan_step(training, [clip], step=2)
    assert training.discriminator.calls == []
    assert all(torch.equal(before[name], t) for name, t in training.discriminator.module.state_dict().items())
    assert training.lecam.real_mean.item() == training.lecam.fake_mean.item() == 0.0
    assert not {"loss/generator", "loss/discriminator", "loss/r1", "loss/lecam"} & metrics.keys()
    later = vqgan_step(training, [clip], step=3)
    assert {"loss/generator", "loss/discriminator", "loss/r1", "loss/lecam"} <= later.keys()
    assert training.discriminator.calls == ["forward", "backward", "step"]


def test_without_the_discriminator_the_generators_step_has_no_adversarial_gradient() -> None:
    quiet, clip = build(replace(LOSS, adversarial_start=9)), random_clip()
    expected, _ = plain_update(build(replace(LOSS, adversarial_weight=0.0)), clip)
    vqgan_step(quiet, [clip], step=0)
    assert_same_parameters(quiet.generator.module, expected)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("r1_weight", [0.0, 2.0])
def test_micro_batches_are_the_whole_batch(count: int, r1_weight: float) -> None:
    # But for the entropy loss, which is one of each micro-batch's own vectors.
    loss = replace(LOSS, entropy_weight=0.0, r1_weight=r1_weight)
    whole, parts = build(loss), build(loss, accumulation=count)
    clip, found = random_clip(count=4), []
    for training, clips in ((whole, [clip]), (parts, clip.chunk(count))):
        # Both halves of LeCam are at work, and their slopes depend on the means.
        training.lecam.update(torch.tensor(20.0), torch.tensor(-20.0))
        found.append(vqgan_step(training, clips, step=0))
    for name in ("generator", "discriminator"):
        assert_same_tensors(getattr(parts, name).gradients, getattr(whole, name).gradients)
        assert_same_tensors(getattr(parts, name).module.state_dict(), getattr(whole, name).module.state_dict())
        assert getattr(parts, name).calls == [*["forward", "backward"] * count, "step"]
    assert_same_tensors(parts.lecam.state_dict(), whole.lecam.state_dict())
    assert_same_tensors(parts.codebook_use.state_dict(), whole.codebook_use.state_dict())
    of_the_whole = found[0].keys() - {"loss/entropy"}
    assert_same_tensors({k: found[1][k] for k in of_the_whole}, {k: found[0][k] for k in of_the_whole})
    assert found[0]["loss/lecam"].item() > 1


def assert_same_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text)


def test_hits_of_all_ranks_and_micro_batches_are_counted_once() -> None:
    training = replace(build(accumulation=2), sum_over_ranks=lambda counts: 3 * counts)
    with torch.no_grad():
        ids = [training.generator.module(random_clip(seed))[1].token_ids for seed in (0, 1)]
    vqgan_step(training, [random_clip(0), random_clip(1)], step=0)
    expected = 3 * torch.bincount(torch.cat(ids).flatten(), minlength=8)
    assert training.codebook_use.hits.tolist() == expected.tolist()
    assert training.codebook_use.steps.item() == 1


def test_zero_weights_switch_r1_and_lecam_off() -> None:
    training = build(replace(LOSS, r1_weight=0.0, lecam_weight=0.0))
    metrics = vqgan_step(training, [random_clip()], step=0)
    assert "loss/discriminator" in metrics
    assert not {"loss/r1", "loss/lecam"} & metrics.keys()


@pytest.mark.parametrize("r1_weight", [0.0, 2.0])
def test_the_discriminator_sees_every_clip_once_and_the_generators_once_more(r1_weight: float) -> None:
    training, seen = build(replace(LOSS, r1_weight=r1_weight)), []
    training.discriminator.module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    clip = random_clip()
    with torch.no_grad():
        fake, _ = training.generator.module(clip)
    expected_generator, expected_discriminator = plain_update(training, clip)
    seen.clear()
    vqgan_step(training, [clip], step=0)
    assert sorted(one.sum().item() for one in torch.cat(seen)) == pytest.approx(
        sorted(one.sum().item() for one in torch.cat([clip, fake, fake])), rel=1e-5
    )
    assert_same_parameters(training.generator.module, expected_generator)
    assert_same_parameters(training.discriminator.module, expected_discriminator)


@pytest.mark.parametrize(("step", "r1_weight"), [(0, 0.0), (1, 4.0), (2, 0.0), (3, 4.0)])
def test_lazy_r1_has_its_whole_weight_in_the_last_of_every_so_many_steps(step: int, r1_weight: float) -> None:
    lazy, plain = build(replace(LOSS, r1_every=2)), build(replace(LOSS, r1_weight=r1_weight))
    found, expected = (vqgan_step(training, [random_clip()], step) for training in (lazy, plain))
    assert found == expected
    assert ("loss/r1" in found) == (r1_weight > 0)
    for name in ("generator", "discriminator"):
        assert gradients_equal(getattr(lazy, name).gradients, getattr(plain, name).gradients)


def gradients_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_commitment_weight_scales_the_encoders_gradient_and_not_the_codebooks() -> None:
    found = {}
    for weight in (0.25, 1.0):
        only_quantizer = replace(
            LOSS, reconstruction_weight=0.0, adversarial_weight=0.0, entropy_weight=0.0, commitment_weight=weight
        )
        training = build(only_quantizer)
        vqgan_step(training, [random_clip()], step=0)
        found[weight] = training.generator.gradients
    for name, gradient in found[1.0].items():
        expected = gradient if name == "quantizer.codebook" else 0.25 * gradient
        torch.testing.assert_close(found[0.25][name], expected, rtol=1e-4, atol=1e-7)
    assert found[1.0]["quantizer.codebook"].abs().sum() > 0
    assert found[1.0]["encoder.conv_in.weight"].abs().sum() > 0


def test_lecams_averages_move_after_the_step_with_means_over_ranks() -> None:
    asked: list[Tensor] = []

    def mean_over_ranks(value: Tensor) -> Tensor:
        asked.append(value)
        return value + 10

    training = replace(build(), mean_over_ranks=mean_over_ranks)
    metrics = vqgan_step(training, [random_clip()], step=0)
    own = [metrics["gan/logits_real"].item(), metrics["gan/logits_fake"].item()]
    assert torch.cat(asked).tolist() == pytest.approx(own, rel=1e-5)
    real, fake = (value + 10 for value in own)
    assert training.lecam.real_mean.item() == pytest.approx(0.1 * real, rel=1e-5)
    assert training.lecam.fake_mean.item() == pytest.approx(0.1 * fake, rel=1e-5)
    # The step's own loss saw the means of all ranks, and the averages as they were, zero.
    expected = max(real, 0) ** 2 + max(-fake, 0) ** 2
    assert metrics["loss/lecam"].item() == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_metrics_are_what_they_say() -> None:
    training, clip = build(), random_clip()
    with torch.no_grad():
        fake, quantized = training.generator.module(clip)
    metrics = vqgan_step(training, [clip], step=0)
    counts = torch.bincount(quantized.token_ids.flatten(), minlength=8).double()
    share = counts[counts > 0] / counts.sum()
    assert metrics["loss/reconstruction"].item() == pytest.approx((fake - clip).square().mean().item(), rel=1e-5)
    for span in ("batch", "window"):
        assert metrics[f"codebook/usage_{span}"].item() == pytest.approx((counts > 0).double().mean().item())
    assert metrics["codebook/perplexity"].item() == pytest.approx((-(share * share.log()).sum()).exp().item(), rel=1e-5)
    parts = 0.25 * quantized.commitment_loss + quantized.codebook_loss + 0.1 * quantized.entropy_loss
    assert metrics["loss/quantizer"].item() == pytest.approx(parts.item(), rel=1e-5)
    total = (LOSS.reconstruction_weight * metrics["loss/reconstruction"] + metrics["loss/quantizer"]
             + LOSS.adversarial_weight * metrics["loss/generator"])  # fmt: skip
    assert metrics["loss/generator_total"].item() == pytest.approx(total.item(), rel=1e-6)
    for part in ("commitment", "codebook", "entropy"):
        assert metrics[f"loss/{part}"].item() == pytest.approx(getattr(quantized, f"{part}_loss").item(), rel=1e-5)
    for name in ("generator", "discriminator"):
        squares = [gradient.square().sum() for gradient in getattr(training, name).gradients.values()]
        norm = metrics[f"optim/gradient_norm_{name}"].item()
        assert norm == pytest.approx(torch.stack(squares).sum().sqrt().item(), rel=1e-5)
    assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())
    assert metrics.keys() <= CURVE_WORDS.keys(), "the page has no word for it"
    assert metrics.keys() >= {rule.metric for rule in vqgan_health().rules.values()}, "a rule would never act"


def test_the_guard_sees_losses_and_leaves_gradients_to_the_engine() -> None:
    training = build(replace(LOSS, adaptive_weight=True))
    metrics = vqgan_step(training, [random_clip()], step=0)
    assert training.guard.seen == [  # type: ignore[attr-defined]
        {"loss/reconstruction", "loss/generator", "loss/quantizer"},
        {"loss/discriminator", "loss/r1", "loss/lecam"},
    ]
    assert metrics["gan/adaptive_weight"].item() > 0


def test_the_guard_stops_before_the_optimiser() -> None:
    def refuse(values: Mapping[str, Tensor]) -> None:
        if not all(torch.isfinite(value).all() for value in values.values()):
            raise FloatingPointError("not finite")

    training, clip = replace(build(), guard=refuse), random_clip()
    clip[0, 0, 0, 0, 0] = float("nan")
    before = copy.deepcopy(training.generator.module.state_dict())
    with pytest.raises(FloatingPointError):
        vqgan_step(training, [clip], step=0)
    assert "step" not in training.generator.calls + training.discriminator.calls
    assert all(torch.equal(before[name], t) for name, t in training.generator.module.state_dict().items())
