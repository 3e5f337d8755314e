"""The perceptual networks against the definitions of the spec, computed by hand in numpy float64.

No reference arrays exist: the released code has no weights. So the weights are random and the recipe is the reference
(spec section 4.3; weights.md section 1.1).
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from magvit_scale.vqgan.perceptual import PerceptualLoss
from tests.frozen_networks import VGG16_WIDTHS, resnet50_tensors, vgg16_tensors, weights_of_random_numbers

Arrays = dict[str, np.ndarray]
NAME = "perceptual (against numpy)"
DEEP = "float32 through 50 layers of random weights"


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, PerceptualLoss]]:
    with weights_of_random_numbers(tmp_path_factory.mktemp("weights")):
        yield {"lpips_vgg": PerceptualLoss("lpips_vgg"), "resnet50_logits": PerceptualLoss("resnet50_logits")}


def float64(tensors: dict[str, Tensor]) -> Arrays:
    return {name: tensor.double().numpy() for name, tensor in tensors.items() if tensor.numel() > 1}


def clips(seed: int, height: int, width: int) -> Tensor:
    return torch.rand(1, 3, 2, height, width, generator=torch.Generator().manual_seed(seed))


def frames_of(clip: Tensor) -> np.ndarray:
    return clip[0].transpose(0, 1).double().numpy()


def windows(frames: np.ndarray, kernel: int, stride: int, pads: tuple[int, int], fill: float = 0.0) -> np.ndarray:
    """`n c h w` -> `n c h' w' k k`, the same padding on both axes."""
    padded = np.pad(frames, ((0, 0), (0, 0), pads, pads), constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(2, 3))[:, :, ::stride, ::stride]


def convolve(frames: np.ndarray, weight: np.ndarray, stride: int, pads: tuple[int, int]) -> np.ndarray:
    patches = windows(frames, weight.shape[-1], stride, pads)
    return np.moveaxis(np.tensordot(patches, weight, axes=((1, 4, 5), (1, 2, 3))), -1, 1)


def batch_norm(x: np.ndarray, tensors: Arrays, name: str) -> np.ndarray:
    scale = tensors[f"{name}.weight"] / np.sqrt(tensors[f"{name}.running_var"] + 1e-5)
    shift = tensors[f"{name}.bias"] - scale * tensors[f"{name}.running_mean"]
    return x * scale[:, None, None] + shift[:, None, None]


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def bottleneck(x: np.ndarray, tensors: Arrays, name: str, stride: int) -> np.ndarray:
    def layer(y: np.ndarray, index: int, stride: int = 1, pads: tuple[int, int] = (0, 0)) -> np.ndarray:
        return batch_norm(
            convolve(y, tensors[f"{name}.conv{index}.weight"], stride, pads), tensors, f"{name}.bn{index}"
        )

    y = relu(layer(x, 1))
    y = relu(layer(y, 2, stride, (1, 1) if stride == 1 else (0, 1)))  # the stride is on the 3x3
    y = layer(y, 3)
    if f"{name}.downsample.0.weight" in tensors:
        x = convolve(x, tensors[f"{name}.downsample.0.weight"], stride, (0, 0))
        x = batch_norm(x, tensors, f"{name}.downsample.1")
    return relu(x + y)


def logits_by_hand(frames: np.ndarray) -> np.ndarray:
    """ResNet-50 v1 with SAME padding, for sides that are multiples of 32."""
    tensors = float64(resnet50_tensors())
    x = relu(batch_norm(convolve(frames, tensors["conv1.weight"], 2, (2, 3)), tensors, "bn1"))
    x = windows(x, 3, 2, (0, 1), fill=-np.inf).max(axis=(4, 5))
    for stage, num_blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(num_blocks):
            x = bottleneck(x, tensors, f"layer{stage}.{block}", 2 if block == 0 and stage > 1 else 1)
    return x.mean(axis=(2, 3)) @ tensors["fc.weight"].T + tensors["fc.bias"]


def lpips_by_hand(real: np.ndarray, fake: np.ndarray) -> float:
    heads_file = Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth"
    heads = float64(torch.load(heads_file, map_location="cpu", weights_only=True))
    pairs = zip(taps_by_hand(real), taps_by_hand(fake), strict=True)
    return sum(
        (heads[f"lin{k}.model.1.weight"][0] * (one - other) ** 2).sum(axis=1).mean()
        for k, (one, other) in enumerate(pairs)
    )


def taps_by_hand(frames: np.ndarray) -> list[np.ndarray]:
    """VGG16 after relu1_2, 2_2, 3_3, 4_3, 5_3, each of unit length over its channels."""
    tensors, taps = float64(vgg16_tensors()), []
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    x = (2 * frames - 1 - shift[:, None, None]) / scale[:, None, None]
    for layer in VGG16_WIDTHS:
        if layer in (5, 10, 17, 24):
            x = windows(x, 2, 2, (0, 0)).max(axis=(4, 5))
        x = convolve(x, tensors[f"features.{layer}.weight"], 1, (1, 1))
        x = relu(x + tensors[f"features.{layer}.bias"][:, None, None])
        if layer in (2, 7, 14, 21, 28):
            taps.append(x / np.sqrt((x**2).sum(axis=1, keepdims=True)))
    return taps


@torch.no_grad()
def test_resnet_logits(networks: dict[str, PerceptualLoss], agree: Callable[..., None]) -> None:
    # One side of 224 keeps the frames as they are, so that the other may be small.
    real, fake = clips(0, 224, 32), clips(1, 224, 32)
    logits = [logits_by_hand(frames_of(clip)) for clip in (real, fake)]
    network = networks["resnet50_logits"].distance.network
    found = network(real[0].transpose(0, 1))
    agree(
        NAME,
        "ResNet-50 logits, SAME padding",
        found,
        logits[0],
        relative=True,
        tolerance=1e-5,
        reason=DEEP,
    )
    agree(
        NAME,
        "ResNet-50 logit distance",
        networks["resnet50_logits"](real, fake),
        ((logits[0] - logits[1]) ** 2).mean(),
        relative=True,
        tolerance=1e-4,
        reason=f"{DEEP}; a difference of two of them, squared",
    )


@torch.no_grad()
def test_lpips_on_vgg16(networks: dict[str, PerceptualLoss], agree: Callable[..., None]) -> None:
    real, fake = clips(2, 16, 24), clips(3, 16, 24)
    expected = lpips_by_hand(frames_of(real), frames_of(fake))
    agree(
        NAME,
        "LPIPS on VGG16",
        networks["lpips_vgg"](real, fake),
        expected,
        relative=True,
        tolerance=1e-5,
        reason="float32 through 13 layers of random weights",
    )


def linear_resize_matrix(num_in: int, num_out: int) -> np.ndarray:
    """`out in`: triangles at half-pixel centres, as wide as an output pixel where the picture shrinks."""
    centres = (np.arange(num_out) + 0.5) * num_in / num_out - 0.5
    width = max(1.0, num_in / num_out)
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(num_in)) / width)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("height", "width"), [(40, 64), (300, 230), (128, 300)])
def test_resize_to_224(
    networks: dict[str, PerceptualLoss], agree: Callable[..., None], height: int, width: int
) -> None:
    clip = clips(4, height, width)
    seen = what_the_network_sees(networks["resnet50_logits"], clip)
    rows, columns = linear_resize_matrix(height, 224), linear_resize_matrix(width, 224)
    agree(
        NAME,
        "half-pixel resize to 224 px",
        seen,
        rows @ frames_of(clip) @ columns.T,
        tolerance=3e-5,
        reason="positions among up to 300 px are held in float32, good to 2e-5 of a px",
    )


def what_the_network_sees(loss: PerceptualLoss, clip: Tensor) -> Tensor:
    """The frames that reach the ResNet, which is kept from computing on them."""

    class Seen(nn.Module):
        def forward(self, frames: Tensor) -> Tensor:
            self.frames = frames
            return frames.mean(dim=(2, 3))

    network, seen = loss.distance.network, Seen()
    loss.distance.network = seen
    loss(clip, clip)
    loss.distance.network = network
    return seen.frames
