"""How close a reconstruction is to its clip: PSNR, SSIM, and PSNR where things move (MAGVIT appendix C).

Most pixels of a short clip stand still, so a still picture scores well on the whole frame. `psnr_moving` looks only
where the clip differs from its own mean image: a model that has learnt no motion cannot win there.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from magvit_scale.config import Refusal

MOVING_THRESHOLD = 0.1
SMALLEST_MSE = 1e-10  # Equal frames count as 100 dB, so that one of them doesn't make a mean infinite.
LUMA = (0.2125, 0.7154, 0.0721)
WINDOW_TAPS, WINDOW_SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2  # SSIM's stabilisers for values with maximum 1


def psnr(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean over the frames of -10 log10(mse).

    Args:
        original: `b c t h w` in [0, 1].
        reconstruction: as `original`.

    Returns:
        `b` float64, dB.
    """
    squares = (original.double() - reconstruction.double()).square()
    return reduce(_decibel(reduce(squares, "b c t h w -> b t", "mean")), "b t -> b", "mean")


def ssim(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Structural similarity of the luma: 11-tap Gaussian window of sigma 1.5, valid positions only, maximum 1.

    Args:
        original: `b c t h w` in [0, 1] with 3 channels, h and w at least 11.
        reconstruction: as `original`.

    Returns:
        `b` float64, mean over frames and positions.

    Raises:
        Refusal: the frames are smaller than the window.
    """
    if min(original.shape[-2:]) < WINDOW_TAPS:
        height, width = original.shape[-2:]
        raise Refusal(
            f"SSIM: frames of {width} x {height} px; its window needs {WINDOW_TAPS} x {WINDOW_TAPS} px or more"
        )
    x, y = _luma(original), _luma(reconstruction)
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * covariance + C2) / (variance_x + variance_y + C2)
    return reduce(luminance * structure, "(b t) 1 h w -> b", "mean", b=original.shape[0])


def mean_image(clip: Tensor) -> Tensor:
    """The baseline that knows no motion: the clip's mean over time in every frame. `b c t h w` -> the same shape."""
    return reduce(clip, "b c t h w -> b c 1 h w", "mean").expand_as(clip)


def moving_mask(clip: Tensor) -> Tensor:
    """Where a clip moves: pixels that differ by more than 0.1 in any channel from the clip's own mean image.

    Args:
        clip: `b c t h w` in [0, 1].

    Returns:
        `b 1 t h w` bool.
    """
    return reduce((clip - mean_image(clip)).abs(), "b c t h w -> b 1 t h w", "max") > MOVING_THRESHOLD


def psnr_moving(original: Tensor, reconstruction: Tensor) -> float:
    """PSNR in dB over all moving pixels of the set (`b c t h w`) at once; NaN where nothing moves."""
    return _pooled_psnr(original, reconstruction, moving_mask(original))


def psnr_static(original: Tensor, reconstruction: Tensor) -> float:
    """PSNR in dB over all pixels of the set (`b c t h w`) that stand still; NaN where everything moves."""
    return _pooled_psnr(original, reconstruction, ~moving_mask(original))


class ReconstructionScores:
    """Running scores of a set of clips; `merge` adds those of another part of the set.

    Moving and static errors are pooled over the pixels of the whole set: a mean of per-clip decibels would let clips in
    which hardly anything moves decide.
    """

    def __init__(self, perceptual: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        """Starts with an empty set.

        Args:
            perceptual: mean distance over all frames of two `b c t h w` sets of clips, a scalar: for LPIPS
                `vqgan.perceptual.PerceptualLoss("lpips_vgg")`, which the program has to fetch.
        """
        self.perceptual = perceptual
        self.totals = torch.zeros(8, dtype=torch.float64)
        """Sums, so that ranks can add them: clips, psnr, ssim, lpips, squared error and values (moving), the same
        (static).
        """

    @torch.no_grad()
    def update(self, original: Tensor, reconstruction: Tensor) -> None:
        """Adds a batch of clips, `b c t h w` in [0, 1]; all batches have clips of one length."""
        moving = moving_mask(original)
        parts = [
            original.new_tensor(original.shape[0], dtype=torch.float64),
            psnr(original, reconstruction).sum(),
            ssim(original, reconstruction).sum(),
            self._perceptual_sum(original, reconstruction),
            *_masked_error(original, reconstruction, moving),
            *_masked_error(original, reconstruction, ~moving),
        ]
        self.totals += torch.stack(parts).cpu()

    def merge(self, other: "ReconstructionScores") -> None:
        """Adds the scores of clips that `other` has seen."""
        self.totals += other.totals

    def result(self) -> dict[str, float]:
        """`psnr`, `psnr_moving`, `psnr_static` in dB, `ssim`, and `lpips` where it was asked for; NaN where there is
        nothing to measure.

        Raises:
            Refusal: no clip was given.
        """
        clips, sum_psnr, sum_ssim, sum_lpips, *pooled = self.totals.tolist()
        if clips == 0:
            raise Refusal("reconstruction scores: no clip was measured; give a split that has clips")
        return {
            "psnr": sum_psnr / clips,
            "psnr_moving": _pooled_decibel(*pooled[:2]),
            "psnr_static": _pooled_decibel(*pooled[2:]),
            "ssim": sum_ssim / clips,
            **({"lpips": sum_lpips / clips} if self.perceptual else {}),
        }

    def _perceptual_sum(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        if self.perceptual is None:
            return original.new_zeros((), dtype=torch.float64)
        return self.perceptual(original, reconstruction).double() * original.shape[0]


def _pooled_psnr(original: Tensor, reconstruction: Tensor, mask: Tensor) -> float:
    error, count = _masked_error(original, reconstruction, mask)
    return _pooled_decibel(error.item(), count.item())


def _pooled_decibel(error: float, count: float) -> float:
    return _decibel(torch.tensor(error / count, dtype=torch.float64)).item() if count else float("nan")


def _masked_error(original: Tensor, reconstruction: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    squares = (original.double() - reconstruction.double()).square()
    return (squares * mask).sum(), mask.sum(dtype=torch.float64) * original.shape[1]


def _decibel(mse: Tensor) -> Tensor:
    return -10 * mse.clamp(min=SMALLEST_MSE).log10()


def _luma(clip: Tensor) -> Tensor:
    weights = rearrange(torch.tensor(LUMA, dtype=torch.float64, device=clip.device), "c -> 1 c 1 1 1")
    return rearrange(reduce(clip.double() * weights, "b c t h w -> b t h w", "sum"), "b t h w -> (b t) 1 h w")


def _blur(frames: Tensor) -> Tensor:
    offsets = torch.arange(WINDOW_TAPS, dtype=frames.dtype, device=frames.device) - WINDOW_TAPS // 2
    window = torch.exp(-0.5 * (offsets / WINDOW_SIGMA) ** 2)
    window = window / window.sum()
    return F.conv2d(F.conv2d(frames, rearrange(window, "k -> 1 1 k 1")), rearrange(window, "k -> 1 1 1 k"))
