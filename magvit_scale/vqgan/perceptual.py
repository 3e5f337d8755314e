"""Per-frame perceptual distance by a frozen image network (MAGVIT section 3.1, `image perceptual loss`).

The paper names no network. `lpips_vgg` is what most tokenizers train with; `resnet50_logits` is the recipe of the
released code, whose own weights were never released (spec sections 4.3 and 13.3).

lpips and torchvision are imported where a network of theirs is built: the step around it runs without them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from magvit_scale.config import Perceptual, Refusal
from magvit_scale.padding import pad_same
from magvit_scale.precision import without_autocast
from magvit_scale.weights import WEIGHTS, find_weights

RANDOM_SEED = 0
RESNET_PX = 224
SMALLEST_PX: dict[Perceptual, int] = {"lpips_vgg": 16, "random": 32}
"""Frames below this vanish in the network's pools."""

NOTES: dict[Perceptual, str] = {
    "lpips_vgg": f"perceptual loss: LPIPS on VGG16, weights vgg16-in1k-v1 (sha256 {WEIGHTS['vgg16-in1k-v1'].sha256})",
    "resnet50_logits": (
        f"perceptual loss: ResNet-50 logits, weights resnet50-v1 (sha256 {WEIGHTS['resnet50-v1'].sha256}); these were "
        "trained on frames normalised by mean and deviation, and see frames in [0, 1] as the official recipe has it"
    ),
    "random": "perceptual loss: LPIPS on an UNTRAINED network (loss.perceptual=random), not the real one",
    "none": "perceptual loss: none",
}
"""What a reader of a run must know about its perceptual loss."""


class PerceptualLoss(nn.Module):
    """Mean distance over all frames; its parameters are frozen, the gradient reaches the fake clips only."""

    def __init__(self, kind: Perceptual) -> None:
        """Builds the network of `kind`, any but `none`.

        Raises:
            Refusal: its weights are missing or are not the published ones.
        """
        super().__init__()
        self.kind = kind
        # The global generator is put back, and an untrained network does not depend on what was drawn before it.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(RANDOM_SEED)
            self.distance = _build_distance(kind)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "PerceptualLoss":
        """Stays in inference mode: neither batch statistics nor dropout may move."""
        return super().train(False)

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Scalar distance of 'b 3 t h w' clips in [0, 1].

        Raises:
            Refusal: see `refuse_small_frames`.
        """
        refuse_small_frames(self.kind, min(real.shape[-2:]))
        frames = (rearrange(clip, "b c t h w -> (b t) c h w") for clip in (real.detach(), fake))
        return self.distance(*frames)


def refuse_small_frames(kind: Perceptual, size_px: int) -> None:
    """Ends the program where frames with a shorter side of `size_px` do not fit the network of `kind`.

    Raises:
        Refusal: they don't.
    """
    smallest = SMALLEST_PX.get(kind, 1)
    if size_px < smallest:
        raise Refusal(
            f"loss.perceptual={kind}: frames of {size_px} px, its network needs {smallest} px or more; "
            "use larger frames or loss.perceptual=none"
        )


def _build_distance(kind: Perceptual) -> nn.Module:
    if kind == "lpips_vgg":
        return LpipsDistance(_lpips_vgg())
    if kind == "resnet50_logits":
        return LogitDistance(_resnet50_same())
    if kind == "random":
        import lpips

        # AlexNet, since untrained features are no better for being VGG16's 20 times dearer ones.
        return LpipsDistance(lpips.LPIPS(net="alex", pnet_rand=True, verbose=False))
    raise ValueError(f"perceptual={kind} has no network")


class LpipsDistance(nn.Module):
    """Mean LPIPS of two sets of frames."""

    def __init__(self, network: Any) -> None:
        """`network`: an `lpips.LPIPS` or alike; its trunk and its heads are called, not itself."""
        super().__init__()
        self.network = network

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Float32 scalar, from frames `n 3 h w` in [0, 1]."""
        pairs = zip(self._features(real), self._features(fake), strict=True)
        with without_autocast(fake):
            # The mean over frames and places of each layer, summed: LPIPS.forward with its heads kept out of autocast.
            layers = [head((a - b).square()).mean() for head, (a, b) in zip(self.network.lins, pairs, strict=True)]
            return torch.stack(layers).sum()

    def _features(self, frames: Tensor) -> list[Tensor]:
        """The trunk's maps in float32, normalised along the channels."""
        maps = self.network.net(self.network.scaling_layer(2 * frames - 1))
        with without_autocast(frames):
            return [F.normalize(layer.float(), dim=1, eps=1e-10) for layer in maps]


class LogitDistance(nn.Module):
    """Mean squared difference between the class logits of two sets of frames (spec section 4.3)."""

    def __init__(self, network: nn.Module) -> None:
        """`network`: frames to logits."""
        super().__init__()
        self.network = network

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Float32 scalar, from frames `n 3 h w` in [0, 1], which the network sees as they are, without mean and
        deviation.
        """
        with torch.no_grad():
            target = self.network(_to_resnet_size(real))
        return F.mse_loss(self.network(_to_resnet_size(fake)).float(), target.float())


def _to_resnet_size(frames: Tensor) -> Tensor:
    """The official condition, to the letter: a frame of which one side fits is left alone (spec section 4.3)."""
    if RESNET_PX in frames.shape[-2:]:
        return frames
    # Half-pixel centres; `antialias` as jax.image.resize has it, which matters for larger frames only.
    return F.interpolate(frames, size=(RESNET_PX, RESNET_PX), mode="bilinear", antialias=True)


def _lpips_vgg() -> nn.Module:
    """LPIPS with the heads of its package; left to itself it would download the trunk."""
    import lpips

    path = find_weights("vgg16-in1k-v1")
    network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    weights = torch.load(path, map_location="cpu", weights_only=True)
    # `slice2.5.weight` here is layer 5 there, `features.5.weight`.
    names = {name: "features." + name.split(".", 1)[1] for name in network.net.state_dict()}
    network.net.load_state_dict({name: weights[published] for name, published in names.items()})
    return network


def _resnet50_same() -> nn.Module:
    """The ResNet-50 v1 of torchvision (stride on the 3x3), padded as the official one.

    The official network has no rectifier between its first batch norm and its first pool. These weights were trained
    with one, so it stays.
    """
    from torchvision.models import resnet50

    path = find_weights("resnet50-v1")
    network = resnet50(weights=None)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    strided = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2)]
    for layer in (*strided, network.maxpool):
        layer.padding = 0 if layer is network.maxpool else (0, 0)
        layer.register_forward_pre_hook(_pad_same)
    return network


def _pad_same(layer: nn.Conv2d | nn.MaxPool2d, inputs: tuple[Tensor]) -> Tensor:
    """Pads the input of a square layer as SAME does, where an odd rest goes to the end: (2, 3), not (3, 3)."""
    (frames,) = inputs
    kernel, stride = ((side, side) if isinstance(side, int) else side for side in (layer.kernel_size, layer.stride))
    return pad_same(frames, kernel, stride, value=float("-inf") if isinstance(layer, nn.MaxPool2d) else 0.0)
