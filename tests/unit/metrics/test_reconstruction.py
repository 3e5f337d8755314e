"""PSNR and SSIM against hand-made values; the moving split."""

import math

import numpy as np
import pytest
import torch
from einops import repeat

from magvit_scale.config import Refusal
from magvit_scale.metrics.reconstruction import (
    ReconstructionScores,
    mean_image,
    moving_mask,
    psnr,
    psnr_moving,
    psnr_static,
    ssim,
)
from magvit_scale.vqgan.perceptual import PerceptualLoss


def dot_clip() -> torch.Tensor:
    """A white pixel that walks along the diagonal of a black clip, 1 3 8 16 16."""
    clip = torch.zeros(1, 3, 8, 16, 16)
    for frame in range(8):
        clip[0, :, frame, frame, frame] = 1
    return clip


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape, dtype=np.float32))


def test_psnr_is_a_mean_of_frames_not_of_their_errors() -> None:
    original = torch.zeros(2, 3, 2, 4, 4)
    reconstruction = original.clone()
    reconstruction[0, :, 0] = 0.1
    reconstruction[0, :, 1] = 0.01
    reconstruction[1] = 1.0
    assert psnr(original, reconstruction).tolist() == pytest.approx([30.0, 0.0], abs=1e-5)


def test_equal_clips_count_100_db() -> None:
    assert psnr(dot_clip(), dot_clip()).tolist() == [100.0]


def test_ssim_equals_the_definition_at_one_window() -> None:
    a, b = noise(0, 1, 3, 1, 11, 11), noise(1, 1, 3, 1, 11, 11)
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    x, y = (np.tensordot([0.2125, 0.7154, 0.0721], clip[0, :, 0].double().numpy(), axes=1) for clip in (a, b))
    mean_x, mean_y = (window * x).sum(), (window * y).sum()
    variance_x, variance_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
    covariance = (window * (x - mean_x) * (y - mean_y)).sum()
    expected = (2 * mean_x * mean_y + 1e-4) * (2 * covariance + 9e-4)
    expected /= (mean_x**2 + mean_y**2 + 1e-4) * (variance_x + variance_y + 9e-4)
    assert ssim(a, b).item() == pytest.approx(expected, rel=1e-9)


def test_ssim_of_equal_clips_is_one_and_falls_with_noise() -> None:
    clip = noise(2, 2, 3, 2, 32, 32)
    assert ssim(clip, clip).tolist() == pytest.approx([1.0, 1.0])
    little, much = ssim(clip, 0.9 * clip + 0.1 * noise(3, *clip.shape)), ssim(clip, noise(3, *clip.shape))
    assert (little > 0.9).all()
    assert (much < 0.1).all()


def test_ssim_refuses_frames_smaller_than_its_window() -> None:
    with pytest.raises(Refusal, match="frames of 12 x 10 px; its window needs 11 x 11"):
        ssim(torch.zeros(1, 3, 1, 10, 12), torch.zeros(1, 3, 1, 10, 12))


def test_moving_pixels_are_those_that_leave_the_mean_image() -> None:
    clip = dot_clip()
    moving = moving_mask(clip)
    assert moving.shape == (1, 1, 8, 16, 16)
    # Each of the 8 pixels on the path is white once: 1/8 off its mean in seven frames, 7/8 in one; all above 0.1.
    assert moving.sum().item() == 8 * 8
    assert moving[0, 0, 3, 5, 5]
    assert not moving[0, 0, 3, 5, 6]


def test_one_moving_channel_is_enough() -> None:
    clip = torch.zeros(1, 3, 2, 4, 4)
    clip[0, 2, 1, 0, 0] = 0.3
    assert moving_mask(clip).sum().item() == 2


def test_mean_image_wins_where_nothing_moves_and_loses_where_it_does() -> None:
    clip = dot_clip()
    still = mean_image(clip)
    assert psnr_static(clip, still) == pytest.approx(100.0)
    variance = 1 / 8 * 7 / 8
    assert psnr_moving(clip, still) == pytest.approx(-10 * math.log10(variance), abs=1e-5)


def test_moving_psnr_pools_pixels_over_the_set() -> None:
    one_pixel, many_pixels = torch.zeros(2, 1, 3, 2, 16, 16)
    one_pixel[..., 1, 0, 0] = 1
    many_pixels[..., 1, :, :] = 1
    originals = torch.cat([one_pixel, many_pixels])
    reconstructions = torch.cat([1 - one_pixel, many_pixels])  # all wrong in the first clip, all right in the second
    assert psnr_moving(originals, reconstructions) == pytest.approx(-10 * math.log10(1 / 257), abs=1e-5)


def test_clips_without_motion_have_no_moving_score() -> None:
    clip = repeat(noise(4, 2, 3, 16, 16), "b c h w -> b c 4 h w")
    assert math.isnan(psnr_moving(clip, clip))
    assert psnr_static(clip, clip + 0.1) == pytest.approx(20.0, abs=1e-4)


def test_streamed_and_merged_scores_equal_those_of_the_set() -> None:
    original = noise(5, 5, 3, 4, 16, 16)
    reconstruction = (original + 0.2 * noise(6, 5, 3, 4, 16, 16)).clamp(0, 1)
    first, second = ReconstructionScores(), ReconstructionScores()
    first.update(original[:2], reconstruction[:2])
    second.update(original[2:3], reconstruction[2:3])
    second.update(original[3:], reconstruction[3:])
    first.merge(second)
    assert first.result() == pytest.approx(
        {
            "psnr": psnr(original, reconstruction).mean().item(),
            "psnr_moving": psnr_moving(original, reconstruction),
            "psnr_static": psnr_static(original, reconstruction),
            "ssim": ssim(original, reconstruction).mean().item(),
        }
    )


def test_no_clips_is_a_refusal() -> None:
    with pytest.raises(Refusal, match="no clip was measured"):
        ReconstructionScores().result()


def test_lpips_is_a_mean_over_clips_in_batches_of_any_size_and_is_absent_where_nobody_asked() -> None:
    original, other = noise(20, 5, 3, 2, 32, 32), noise(21, 5, 3, 2, 32, 32)
    original.requires_grad_()
    network = PerceptualLoss("random")
    first, second = ReconstructionScores(network), ReconstructionScores(network)
    first.update(original[:4], other[:4])
    second.update(original[4:], other[4:])
    first.merge(second)
    each = [network(original[i : i + 1], other[i : i + 1]).item() for i in range(5)]
    assert first.result()["lpips"] == pytest.approx(np.mean(each), rel=1e-5)
    assert first.result()["lpips"] > 0
    assert not first.totals.requires_grad
    plain = ReconstructionScores()
    plain.update(original, other)
    assert "lpips" not in plain.result()
    assert plain.result()["psnr"] == pytest.approx(first.result()["psnr"], rel=1e-12)
