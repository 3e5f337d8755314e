"""Long videos, against values worked out frame by frame."""

import numpy as np
import pytest
import torch
from torch import Tensor

from magvit_scale.config import Refusal
from magvit_scale.long_video import cross_fade, lengthened, slide, window_seed, window_starts


def numbered(first: int, count: int) -> Tensor:
    """A clip 'b c t h w' whose frames are numbers."""
    return torch.arange(first, first + count, dtype=torch.float32)[None, None, :, None, None].expand(2, 3, -1, 2, 2)


def frames_of(video: Tensor) -> list[float]:
    assert (video == video[:1, :1, :, :1, :1]).all()
    return video[0, 0, :, 0, 0].tolist()


@pytest.mark.parametrize(
    ("num_frames", "length", "overlap", "starts"),
    [(16, 16, 0, [0]), (16, 16, 4, [0]), (48, 16, 0, [0, 16, 32]), (40, 16, 4, [0, 12, 24]), (20, 16, 0, [0, 4]),
     (41, 16, 4, [0, 12, 24, 25]), (17, 16, 15, [0, 1])],
)  # fmt: skip
def test_windows_overlap_and_the_last_ends_with_the_video(
    num_frames: int, length: int, overlap: int, starts: list[int]
) -> None:
    assert window_starts(num_frames, length, overlap) == starts


def test_windows_that_cannot_be_are_refused() -> None:
    with pytest.raises(Refusal, match=r"15 frames, expected at least the 16"):
        window_starts(15, 16, 0)
    for overlap in (-1, 16):
        with pytest.raises(Refusal, match=rf"overlap_frames={overlap}: .*less than the 16"):
            window_starts(32, 16, overlap)


def test_a_cross_fade_is_linear_and_begins_with_the_earlier_window_alone() -> None:
    video = cross_fade([numbered(0, 6), numbered(100, 6)], [0, 2])
    # Shared: frames 2 to 5, weights 0, 1/4, 2/4, 3/4 of 100, 101, 102, 103 over 2, 3, 4, 5.
    assert frames_of(video) == [0, 1, 2, 0.75 * 3 + 0.25 * 101, 0.5 * 4 + 0.5 * 102, 0.25 * 5 + 0.75 * 103, 104, 105]
    assert frames_of(cross_fade([numbered(0, 2), numbered(50, 2)], [0, 2])) == [0, 1, 50, 51]


def test_many_cross_faded_windows_are_those_of_a_loop_over_frames() -> None:
    generator = torch.Generator().manual_seed(0)
    windows = [torch.rand(1, 3, 8, 2, 2, generator=generator, dtype=torch.float64) for _ in range(4)]
    starts = [0, 5, 10, 11]
    expected = np.zeros((19, 3, 2, 2))
    end = 0
    for window, start in zip(windows, starts, strict=True):
        for place in range(8):
            share = place / (end - start) if start + place < end else 1.0
            new = window[0, :, place].numpy()
            expected[start + place] = (1 - share) * expected[start + place] + share * new
        end = start + 8
    found = cross_fade(windows, starts)[0].transpose(0, 1).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=0)


def test_equal_windows_of_one_video_join_to_that_video() -> None:
    video = torch.rand(2, 3, 29, 4, 4, generator=torch.Generator().manual_seed(1))
    for overlap in (0, 1, 3, 7):
        starts = window_starts(29, 8, overlap)
        found = cross_fade([video[:, :, start : start + 8] for start in starts], starts)
        torch.testing.assert_close(found, video, rtol=0, atol=1e-6)  # one rounding of a weighted mean


@pytest.mark.parametrize(("num_given", "num_frames"), [(1, 20), (5, 20), (5, 8), (1, 3)])
def test_sliding_counts_on_from_its_own_last_frames(num_given: int, num_frames: int) -> None:
    """A model that counts on from the last given frame by tens, and blurs what it is given (by a half)."""
    seen: list[tuple[int, list[float]]] = []

    def predict(given: Tensor, window: int) -> Tensor:
        seen.append((window, frames_of(given)))
        last = given[:, :, -1:]
        return torch.cat([given + 0.5, *[last + 10 * step for step in range(1, 9 - num_given)]], dim=2)

    found = frames_of(slide(numbered(0, 12), num_given, num_frames, predict))
    given = [float(number) for number in range(num_given)]
    expected = [number + 0.5 for number in given]
    last = given[-1]
    while len(expected) < num_frames:
        if len(expected) == 8 or (len(expected) > 8 and (len(expected) - 8) % (8 - num_given) == 0):
            last = expected[-1]
            step = 0
        elif len(expected) == num_given:
            step = 0
        step += 1
        expected.append(last + 10 * step)
    assert found == expected[:num_frames]
    assert seen[0] == (0, given)
    assert [window for window, _ in seen] == list(range(max(1, -(-(num_frames - num_given) // (8 - num_given)))))
    for number, (_, frames) in enumerate(seen[1:], start=1):
        end = 8 + (number - 1) * (8 - num_given)
        assert frames == expected[end - num_given : end]


def test_the_first_window_has_the_videos_seed_and_no_two_windows_share_one() -> None:
    assert window_seed(5, 0) == 5
    seeds = [window_seed(seed, window) for seed in range(50) for window in range(4)]
    assert len(set(seeds)) == 200
    assert all(0 <= seed < 1 << 62 for seed in seeds)
    assert window_seed(5, 1) == window_seed(5, 1)


def test_a_clip_is_lengthened_by_its_last_frame() -> None:
    assert frames_of(lengthened(numbered(3, 2), 5)) == [3, 4, 4, 4, 4]
    assert frames_of(lengthened(numbered(3, 2), 2)) == [3, 4]
