"""C3D, fine-tuned on UCF-101: the classifier of the inception score of videos (spec section 10.1).

The weights are those that TGANv2 takes, `c3d-chainer`, with the mean of their training clips, `c3d-chainer-mean`; the
official score has the same ones. TGANv2 maps [-1, 1] to 0..256, the official score [0, 1] to 0..255; here it is 0..255.

Axes: `b c t h w`.
"""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from magvit_scale.config import Refusal
from magvit_scale.precision import full_float32
from magvit_scale.pretrained import fill
from magvit_scale.weights import expected_sha256, find_weights

NUM_FRAMES = 16
SIZE_PX = 112
NUM_CLASSES = 101
HIDDEN_SIZE = 4096
MEAN_BORDER_PX = 8
"""The mean is of frames of 128 px or more; the part from here on is subtracted, as TGANv2 does."""
WIDTHS = {
    "conv1a": 64,
    "conv2a": 128,
    "conv3a": 256,
    "conv3b": 256,
    "conv4a": 512,
    "conv4b": 512,
    "conv5a": 512,
    "conv5b": 512,
}
POOLED = {"conv1a": (1, 2, 2), "conv2a": (2, 2, 2), "conv3b": (2, 2, 2), "conv4b": (2, 2, 2), "conv5b": (2, 2, 2)}
"""Pool after a convolution; the last one sees 7 x 7 places and makes 4 x 4 of them."""


class C3D(nn.Module):
    """Clips -> logits of the 101 classes of UCF-101. Frozen."""

    mean: Tensor
    """`3 16 112 112`, channels blue, green, red, 0..255."""

    def __init__(self) -> None:
        """Builds the network with random weights and a mean of zero; layers have the names of the published file."""
        super().__init__()
        channels = (3, *WIDTHS.values())
        for name, fan_in, fan_out in zip(WIDTHS, channels, WIDTHS.values(), strict=False):
            setattr(self, name, nn.Conv3d(fan_in, fan_out, kernel_size=3, padding=1))
        self.fc6 = nn.Linear(channels[-1] * 4 * 4, HIDDEN_SIZE)
        self.fc7 = nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE)
        self.fc8 = nn.Linear(HIDDEN_SIZE, NUM_CLASSES)
        self.register_buffer("mean", torch.zeros(3, NUM_FRAMES, SIZE_PX, SIZE_PX))
        self.eval().requires_grad_(False)

    @classmethod
    def from_files(cls, weights: str | Path, mean: str | Path) -> "C3D":
        """Loads conv3d_deepnetA_ucf.npz and mean2.npz onto the CPU. Nothing in them is executed.

        Raises:
            Refusal: one of them is something else, lacks an array or has one too many.
        """
        network = cls()
        tensors = {_own_name(name): torch.from_numpy(array).float() for name, array in _read_npz(weights).items()}
        fill(network, tensors | {"mean": _read_mean(mean)}, weights)
        return network

    def forward(self, clip: Tensor) -> Tensor:
        """Logits of the classes; the score takes their softmax.

        Args:
            clip: `b 3 16 h w` float32 in [0, 1], red, green, blue; any size, squashed to 112 x 112 px.

        Returns:
            `b 101` float32.

        Raises:
            Refusal: the clip has another shape or type.
        """
        _refuse_other_clips(clip)
        with full_float32(clip):
            x = self.prepare(clip)
            for name in WIDTHS:
                x = getattr(self, name)(x).relu_()
                if name in POOLED:
                    x = F.max_pool3d(x, POOLED[name], ceil_mode=True)
            x = self.fc6(rearrange(x, "b c t h w -> b (c t h w)")).relu_()
            return self.fc8(self.fc7(x).relu_())

    def prepare(self, clip: Tensor) -> Tensor:
        """What the first convolution sees: blue, green, red, 112 x 112 px with corners on corners, 0..255 less the
        mean; of and as `b 3 16 h w`.
        """
        frames = rearrange(clip.flip(1), "b c t h w -> (b t) c h w")
        frames = F.interpolate(frames, size=(SIZE_PX, SIZE_PX), mode="bilinear", align_corners=True)
        return rearrange(frames, "(b t) c h w -> b c t h w", b=len(clip)) * 255 - self.mean


class ScriptedC3D(nn.Module):
    """The network of `c3d-ts` as its file has it: its mean is inside, and it gives probabilities. Frozen."""

    def __init__(self, network: torch.jit.ScriptModule) -> None:
        """`network`: `b 3 16 h w` in 0..255 -> probabilities `b 101`."""
        super().__init__()
        self.network = network.eval()

    @classmethod
    def from_file(cls, path: str | Path, sha256: str | None) -> "ScriptedC3D":
        """Loads c3d_ucf101.pt onto the CPU.

        A TorchScript is code, so its hash is checked first, on the very bytes that are then loaded.

        Raises:
            Refusal: it is not the file with this hash.
        """
        content = Path(path).read_bytes()
        if (found := hashlib.sha256(content).hexdigest()) != sha256:
            raise Refusal(f"{path}: sha256 {found}, expected {sha256} of c3d-ts; a TorchScript is code and is not run")
        return cls(torch.jit.load(io.BytesIO(content), map_location="cpu"))

    def forward(self, clip: Tensor) -> Tensor:
        """As `C3D.forward`, but logarithms of probabilities; minus infinity where one is 0."""
        _refuse_other_clips(clip)
        with full_float32(clip):
            return self.network(clip * 255).log()


def load_classifier(name: str) -> C3D | ScriptedC3D:
    """The classifier `c3d-chainer` or `c3d-ts` from the folder of MAGVIT_WEIGHTS, on the CPU.

    Raises:
        Refusal: one of its files is missing or another one.
    """
    if name == "c3d-ts":
        return ScriptedC3D.from_file(find_weights(name), expected_sha256(name))
    return C3D.from_files(find_weights("c3d-chainer"), find_weights("c3d-chainer-mean"))


def _refuse_other_clips(clip: Tensor) -> None:
    if clip.ndim != 5 or clip.shape[1:3] != (3, NUM_FRAMES):
        raise Refusal(f"C3D: clips of shape {tuple(clip.shape)}, expected (b, 3, {NUM_FRAMES}, h, w); take 16 frames")
    if clip.dtype != torch.float32:
        raise Refusal(f"C3D: clips of {clip.dtype}, expected torch.float32 in [0, 1]; convert them")


def _own_name(name: str) -> str:
    """`conv1a/W` -> `conv1a.weight`."""
    layer, _, kind = name.removeprefix("/").partition("/")
    return f"{layer}.{ {'W': 'weight', 'b': 'bias'}.get(kind, kind) }"


def _read_npz(path: str | Path) -> Mapping[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        raise Refusal(f"{path}: {error}; expected an npz of plain arrays") from error


def _read_mean(path: str | Path) -> Tensor:
    mean = _read_npz(path).get("mean")
    end = MEAN_BORDER_PX + SIZE_PX
    if mean is None or mean.ndim != 4 or mean.shape[:2] != (3, NUM_FRAMES) or min(mean.shape[2:]) < end:
        found = "no array" if mean is None else f"shape {mean.shape}"
        raise Refusal(f"{path}: {found} under 'mean', expected (3, {NUM_FRAMES}, h, w) with {end} px or more")
    return torch.from_numpy(mean[:, :, MEAN_BORDER_PX:end, MEAN_BORDER_PX:end].copy()).float()
