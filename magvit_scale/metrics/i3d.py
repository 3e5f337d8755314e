"""I3D on RGB, trained on Kinetics-400: the feature network of the Frechet video distance (spec section 10.1).

The FVD feature is the 400 logits, averaged over time. Two containers of the same weights are known: `i3d-ts`, a
TorchScript that brings its own network, and `i3d-sd`, a state dict for `I3D`. Peers load `i3d-sd` with an epsilon of
1e-5 in the batch norms; TensorFlow's network has 1e-3, and so has this one.

Axes: `b c t h w`.
"""

import hashlib
import io
from collections import OrderedDict
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn

from magvit_scale.config import Refusal
from magvit_scale.padding import pad_same
from magvit_scale.precision import full_float32
from magvit_scale.pretrained import fill
from magvit_scale.weights import WEIGHTS, find_weights

SIZE_PX = 224
FEWEST_FRAMES = 9
"""Time is cut by 8, rounded up, and the last pool takes two positions."""
NUM_LOGITS = 400
NORM_EPSILON = 1e-3
LAST_POOL = (2, 7, 7)

Widths = tuple[int, int, int, int, int, int]
MIXED: dict[str, Widths] = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
"""Channels of the six convolutions of each block, in the order b0, b1a, b1b, b2a, b2b, b3b."""


class I3D(nn.Module):
    """Inception-v1 in three dimensions: clips -> logits averaged over time. Frozen."""

    def __init__(self) -> None:
        """Builds the network with random weights; layers have the names of the published state dict."""
        super().__init__()
        self.layers = nn.Sequential(_layers())
        self.logits = _Unit(1024, NUM_LOGITS, (1, 1, 1), is_normed=False)
        self.eval().requires_grad_(False)

    @classmethod
    def from_file(cls, path: str | Path) -> "I3D":
        """Loads the state dict `i3d-sd`, i3d_pretrained_400.pt, onto the CPU. Nothing in it is executed.

        Raises:
            Refusal: it is something else, lacks a tensor or has one too many, or has batch norms with a gamma.
        """
        network = cls()
        fill(network, _own_names(_read_state(Path(path)), path), path)
        return network

    def forward(self, clip: Tensor) -> Tensor:
        """Logits averaged over time.

        Args:
            clip: `b 3 t 224 224` float32 in [-1, 1], t >= 9.

        Returns:
            `b 400` float32.

        Raises:
            Refusal: the clip has another shape.
        """
        return reduce(self.logits_over_time(clip), "b k t -> b k", "mean")

    def logits_over_time(self, clip: Tensor) -> Tensor:
        """`b 3 t 224 224` -> `b 400 n` with n = ceil(t / 8) - 1; see `forward`."""
        refuse_other_clips(clip)
        with full_float32(clip):
            pooled = F.avg_pool3d(self.layers(clip), LAST_POOL, stride=1)
            return reduce(self.logits(pooled), "b k t 1 1 -> b k t", "mean")


class ScriptedI3D(nn.Module):
    """The network of `i3d-ts` as its file has it; without its own resizing and scaling. Frozen."""

    def __init__(self, network: torch.jit.ScriptModule) -> None:
        """`network`: called with `x`, `rescale`, `resize` and `return_features`."""
        super().__init__()
        self.network = network.eval()
        for parameter in network.parameters():  # a ScriptModule knows no requires_grad_
            parameter.requires_grad_(False)

    @classmethod
    def from_file(cls, path: str | Path) -> "ScriptedI3D":
        """Loads i3d_torchscript.pt onto the CPU.

        A TorchScript is code, so its hash is checked first, on the very bytes that are then loaded.

        Raises:
            Refusal: it is not the published file.
        """
        content, expected = Path(path).read_bytes(), WEIGHTS["i3d-ts"].sha256
        if (found := hashlib.sha256(content).hexdigest()) != expected:
            raise Refusal(
                f"{path}: sha256 {found}, expected {expected} of i3d-ts; a TorchScript is code and is not run"
            )
        return cls(torch.jit.load(io.BytesIO(content), map_location="cpu"))

    def forward(self, clip: Tensor) -> Tensor:
        """As `I3D.forward`."""
        refuse_other_clips(clip)
        with full_float32(clip):
            logits = self.network(x=clip, rescale=False, resize=False, return_features=True)
        if logits.shape != (len(clip), NUM_LOGITS):
            raise RuntimeError(f"i3d-ts gave {tuple(logits.shape)}, expected {(len(clip), NUM_LOGITS)}")
        return logits


def load_i3d(name: Literal["i3d-ts", "i3d-sd"]) -> I3D | ScriptedI3D:
    """The feature network from the folder of MAGVIT_WEIGHTS, on the CPU.

    Raises:
        Refusal: its file is missing or another one.
    """
    path = find_weights(name)
    return ScriptedI3D.from_file(path) if name == "i3d-ts" else I3D.from_file(path)


def refuse_other_clips(clip: Tensor) -> None:
    """Refuses what is no `b 3 t 224 224` with at least 9 frames, in float32."""
    if clip.ndim != 5 or clip.shape[1] != 3 or clip.shape[3:] != (SIZE_PX, SIZE_PX) or clip.shape[2] < FEWEST_FRAMES:
        raise Refusal(
            f"I3D: clips of shape {tuple(clip.shape)}, expected (b, 3, t, {SIZE_PX}, {SIZE_PX}), "
            f"t >= {FEWEST_FRAMES}; resize them, or take longer ones"
        )
    if clip.dtype != torch.float32:
        raise Refusal(f"I3D: clips of {clip.dtype}, expected torch.float32 in [-1, 1]; convert them")


def _layers() -> "OrderedDict[str, nn.Module]":
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["Conv3d_1a_7x7"] = _Unit(3, 64, (7, 7, 7), stride=2)
    layers["MaxPool3d_2a_3x3"] = _MaxPool((1, 3, 3), (1, 2, 2))
    layers["Conv3d_2b_1x1"] = _Unit(64, 64, (1, 1, 1))
    layers["Conv3d_2c_3x3"] = _Unit(64, 192, (3, 3, 3))
    pools = {
        "Mixed_3b": ("MaxPool3d_3a_3x3", _MaxPool((1, 3, 3), (1, 2, 2))),
        "Mixed_4b": ("MaxPool3d_4a_3x3", _MaxPool((3, 3, 3), (2, 2, 2))),
        "Mixed_5b": ("MaxPool3d_5a_2x2", _MaxPool((2, 2, 2), (2, 2, 2))),
    }
    channels = 192
    for name, widths in MIXED.items():
        if name in pools:
            pool, layer = pools[name]
            layers[pool] = layer
        layers[name] = _Mixed(channels, widths)
        channels = widths[0] + widths[2] + widths[4] + widths[5]
    return layers


class _Unit(nn.Module):
    """Convolution, batch norm without a gamma and rectifier; or only a convolution, with bias."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: tuple[int, int, int], stride: int = 1, is_normed: bool = True
    ) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(channels_in, channels_out, kernel, stride, bias=not is_normed)
        self.bn = _Norm(channels_out) if is_normed else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3d(pad_same(x, self.conv3d.kernel_size, self.conv3d.stride))
        return x if self.bn is None else self.bn(x).relu_()


class _Norm(nn.Module):
    """Batch norm by its running statistics, with a shift and without a scale."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, bias=self.bias, eps=NORM_EPSILON)


class _MaxPool(nn.Module):
    """Maximum under SAME padding. Its input is rectified, so that padding by 0 is padding by minus infinity."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(pad_same(x, self.kernel, self.stride), self.kernel, self.stride)


class _Mixed(nn.Module):
    """Four branches side by side."""

    def __init__(self, channels: int, widths: Widths) -> None:
        super().__init__()
        point, cube = (1, 1, 1), (3, 3, 3)
        self.b0 = _Unit(channels, widths[0], point)
        self.b1a, self.b1b = _Unit(channels, widths[1], point), _Unit(widths[1], widths[2], cube)
        self.b2a, self.b2b = _Unit(channels, widths[3], point), _Unit(widths[3], widths[4], cube)
        self.b3a, self.b3b = _MaxPool(cube, (1, 1, 1)), _Unit(channels, widths[5], point)

    def forward(self, x: Tensor) -> Tensor:
        branches = self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))
        return torch.cat(branches, dim=1)


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError) as error:
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        raise Refusal(f"{path}: {line}; expected the state dict i3d_pretrained_400.pt of i3d-sd") from error
    if not (isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())):
        raise Refusal(
            f"{path}: holds a {type(state).__name__}, expected the state dict i3d_pretrained_400.pt of i3d-sd"
        )
    return state


def _own_names(state: dict[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """The tensors under the names of `I3D`, less the gammas, all of which are one, and the counters of batches."""
    tensors = {}
    for name, tensor in state.items():
        if name.endswith(".bn.weight"):
            if not bool((tensor == 1).all()):
                raise Refusal(
                    f"{path}: {name} is not all ones, and the I3D of FVD has no gamma; these are other weights"
                )
        elif not name.endswith(".bn.num_batches_tracked"):
            tensors[name if name.startswith("logits.") else f"layers.{name}"] = tensor
    return tensors
