"""The resizing before I3D: its rule by hand, its edges, its crop."""

import pytest
import torch

from magvit_scale.config import Refusal
from magvit_scale.metrics.resize import central_crop, resize_and_crop, resize_tf1


def ramp(height: int, width: int) -> torch.Tensor:
    """Column number plus 100 times row number, 1 1 1 height width."""
    return (torch.arange(width) + 100.0 * torch.arange(height)[:, None])[None, None, None]


def test_positions_are_multiples_of_the_ratio_without_half_a_pixel() -> None:
    # 4 -> 6: positions 0, 2/3, 4/3, 2, 8/3, 10/3; the last is past the last pixel, which it repeats.
    row = resize_tf1(ramp(1, 4), 1, 6).flatten()
    assert row.tolist() == pytest.approx([0, 2 / 3, 4 / 3, 2, 8 / 3, 3], abs=1e-6)


def test_shrinking_takes_pixels_and_smooths_nothing() -> None:
    assert resize_tf1(ramp(4, 6), 2, 3).flatten().tolist() == [0, 2, 4, 200, 202, 204]


def test_rows_and_columns_are_not_exchanged_and_frames_and_channels_stay_apart() -> None:
    clip = torch.rand(2, 3, 4, 5, 7, generator=torch.Generator().manual_seed(0))
    whole = resize_tf1(clip, 9, 4)
    assert whole.shape == (2, 3, 4, 9, 4)
    assert torch.equal(whole[1, 2, 3], resize_tf1(clip[1:, 2:, 3:], 9, 4)[0, 0, 0])


def test_its_own_size_changes_nothing_and_the_precision_stays() -> None:
    clip = torch.rand(1, 3, 2, 5, 7, dtype=torch.float64)
    assert torch.equal(resize_tf1(clip, 5, 7), clip)


def test_the_crop_leaves_an_odd_rest_below_and_on_the_right() -> None:
    assert central_crop(ramp(5, 7), 2, 4).flatten().tolist() == [101, 102, 103, 104, 201, 202, 203, 204]


def test_a_crop_larger_than_its_frames_is_refused() -> None:
    with pytest.raises(Refusal, match="central crop of 4 x 6 px: frames have 7 x 5 px"):
        central_crop(ramp(5, 7), 6, 4)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48)])
def test_resize_and_crop_brings_the_short_side_to_256_and_cuts_the_middle(height: int, width: int) -> None:
    clip = torch.rand(1, 3, 1, height, width, generator=torch.Generator().manual_seed(1))
    sizes = [256 if side == 48 else 341 for side in (height, width)]
    top, left = ((side - 224) // 2 for side in sizes)
    expected = resize_tf1(clip, *sizes)[..., top : top + 224, left : left + 224]
    assert torch.equal(resize_and_crop(clip), expected)
