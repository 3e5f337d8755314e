"""The perceptual loss: frozen, the same every time, and a bystander to everybody else's random numbers."""

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from magvit_scale.config import ClipsConfig, Perceptual, Refusal, RunConfig, TrainVQGANConfig, VQGANLossConfig
from magvit_scale.training.ranks import Ranks
from magvit_scale.vqgan.perceptual import NOTES, SMALLEST_PX, PerceptualLoss
from magvit_scale.vqgan_training import build_models, build_training, perceptual_kind
from magvit_scale.weights import WEIGHTS
from tests.frozen_networks import weights_of_random_numbers

TRAINED: tuple[Perceptual, ...] = ("lpips_vgg", "resnet50_logits")
KINDS: tuple[Perceptual, ...] = ("random", *TRAINED)


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Perceptual, PerceptualLoss]]:
    with weights_of_random_numbers(tmp_path_factory.mktemp("weights")):
        yield {kind: PerceptualLoss(kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def loss(request: pytest.FixtureRequest, losses: dict[Perceptual, PerceptualLoss]) -> PerceptualLoss:
    return losses[request.param]


def random_clip(seed: int, height: int = 224, width: int = 32) -> Tensor:
    """Frames of which one side fits the ResNet, so that it leaves them as small as they are."""
    return torch.rand(2, 3, 2, height, width, generator=torch.Generator().manual_seed(seed))


def test_building_it_is_deterministic_and_leaves_the_global_generator_alone(
    losses: dict[Perceptual, PerceptualLoss],
) -> None:
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = PerceptualLoss("random")
    assert torch.equal(torch.get_rng_state(), state)
    for (name, first), second in zip(losses["random"].state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(first, second), name


def test_it_is_frozen_and_the_gradient_reaches_the_fake_only(loss: PerceptualLoss) -> None:
    real, fake = (random_clip(seed).requires_grad_() for seed in (0, 1))
    loss(real, fake).backward()
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    assert all(parameter.grad is None for parameter in loss.parameters())
    assert real.grad is None
    assert (fake.grad.abs().sum(dim=(1, 3, 4)) > 0).all()  # of every frame


@torch.no_grad()
def test_nothing_in_it_moves_even_where_somebody_turns_training_on(loss: PerceptualLoss) -> None:
    before = {name: tensor.clone() for name, tensor in loss.state_dict().items()}
    first = loss(random_clip(0), random_clip(1))
    loss.train()
    assert not any(module.training for module in loss.modules())
    assert torch.equal(loss(random_clip(0), random_clip(1)), first)
    for name, tensor in loss.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@torch.no_grad()
def test_it_is_zero_for_equal_clips_and_grows_with_the_difference(loss: PerceptualLoss) -> None:
    real, other = random_clip(0), random_clip(1)
    assert loss(real, real).item() == 0.0
    near, far = loss(real, real + 0.05 * (other - real)), loss(real, other)
    assert 0 < near.item() < far.item()


@torch.no_grad()
def test_it_is_the_mean_over_frames_and_repeats_exactly(loss: PerceptualLoss) -> None:
    real, fake = random_clip(0), random_clip(1)
    whole = loss(real, fake)
    assert torch.equal(whole, loss(real, fake))  # no dropout is left on
    frames = [loss(real[b : b + 1, :, t : t + 1], fake[b : b + 1, :, t : t + 1]) for b in range(2) for t in range(2)]
    assert whole.item() == pytest.approx(torch.stack(frames).mean().item(), rel=1e-4)


@torch.no_grad()
def test_the_kinds_are_different_distances(losses: dict[Perceptual, PerceptualLoss]) -> None:
    found = {round(loss(random_clip(0), random_clip(1)).item(), 6) for loss in losses.values()}
    assert len(found) == len(KINDS)


@pytest.mark.parametrize(
    ("height", "width", "seen"), [(32, 48, (224, 224)), (224, 48, (224, 48)), (48, 224, (48, 224))]
)
def test_resnet_frames_are_resized_only_where_neither_side_fits(
    losses: dict[Perceptual, PerceptualLoss], height: int, width: int, seen: tuple[int, int]
) -> None:
    shapes: list[torch.Size] = []
    network = losses["resnet50_logits"].distance.network
    handle = network.conv1.register_forward_hook(lambda layer, inputs, output: shapes.append(output.shape[-2:]))
    with torch.no_grad():
        losses["resnet50_logits"](random_clip(0, height, width)[:1, :, :1], random_clip(1, height, width)[:1, :, :1])
    handle.remove()
    assert shapes == [tuple(side // 2 for side in seen)] * 2


def test_strided_layers_of_the_resnet_look_where_same_does(losses: dict[Perceptual, PerceptualLoss]) -> None:
    network = losses["resnet50_logits"].distance.network
    strided = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2)]
    assert [layer.kernel_size for layer in strided] == [(7, 7), *[(3, 3), (1, 1)] * 3]
    pixels = torch.zeros(1, 3, 8, 8)
    pixels[..., 0, 0] = 1
    # Under SAME, output (0, 0) sees pixel (0, 0) at tap (2, 2) of the 7x7; with symmetric padding it would be (3, 3).
    assert torch.allclose(network.conv1(pixels)[0, :, 0, 0], network.conv1.weight[:, :, 2, 2].sum(dim=1), atol=1e-6)
    # The first window of the pool begins at the first pixel; nothing but the padding is left for the others' rest.
    falling = -1 - torch.arange(16.0).reshape(1, 1, 4, 4)
    assert network.maxpool(falling).flatten().tolist() == [-1, -3, -9, -11]


@pytest.mark.parametrize("kind", SMALLEST_PX)
def test_frames_that_vanish_in_the_pools_are_refused(
    losses: dict[Perceptual, PerceptualLoss], kind: Perceptual
) -> None:
    smallest = SMALLEST_PX[kind]
    fitting = random_clip(0, smallest, smallest)
    assert torch.isfinite(losses[kind](fitting, fitting))
    for height, width in ((smallest - 1, 64), (64, smallest - 1)):
        clip = random_clip(0, height, width)
        with pytest.raises(Refusal, match=f"perceptual={kind}: frames of {smallest - 1} px") as refusal:
            losses[kind](clip, clip)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", TRAINED)
def test_networks_without_weights_are_refused(
    kind: Perceptual, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGVIT_WEIGHTS", str(tmp_path))
    with pytest.raises(Refusal, match=r"no file \S+\.pth in"):
        PerceptualLoss(kind)
    for weights in WEIGHTS.values():
        (tmp_path / weights.file).write_bytes(b"something else")
    with pytest.raises(Refusal, match="has sha256"):
        PerceptualLoss(kind)


def test_every_kind_says_in_the_log_what_it_is() -> None:
    assert set(NOTES) == set(get_args(Perceptual))
    assert "sha256 397923af" in NOTES["lpips_vgg"]
    assert "sha256 0676ba61" in NOTES["resnet50_logits"]
    assert "normalised by mean and deviation" in NOTES["resnet50_logits"]
    assert [kind for kind, note in NOTES.items() if "UNTRAINED" in note] == ["random"]
    assert not any("\n" in note for note in NOTES.values())


def test_a_weight_of_zero_needs_no_network() -> None:
    assert perceptual_kind(VQGANLossConfig(perceptual="lpips_vgg")) == "lpips_vgg"
    assert perceptual_kind(VQGANLossConfig(perceptual="lpips_vgg", perceptual_weight=0.0)) == "none"


def training_config(folder: Path, size_px: int) -> TrainVQGANConfig:
    return TrainVQGANConfig(
        run=RunConfig(folder=str(folder), steps=1, global_batch_size=1),
        clips=ClipsConfig(shards=str(folder), num_frames=4, size_px=size_px),
    )


def test_training_refuses_small_frames_before_it_builds_models(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="perceptual=lpips_vgg: frames of 8 px"):
        build_models(training_config(tmp_path, size_px=8))


def test_training_refuses_missing_weights_before_it_builds_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGVIT_WEIGHTS", str(tmp_path))
    config, nothing = training_config(tmp_path, size_px=128), nn.Identity()
    with pytest.raises(Refusal, match="no file vgg16-"):
        build_training(config, Ranks(0, 1, torch.device("cpu")), nothing, nothing)  # type: ignore[arg-type]
