"""Videos in memory: our own mp4, and real files of any kind."""

from pathlib import Path

import numpy as np
import pytest

from magvit_scale.video import Frames, VideoError, decode, encode_mp4, mp4_bytes
from magvit_scale.video_bytes import count_frames, decode_mp4, decode_resized, resized, verify_mp4
from tests.ramps import moving_ramp
from tests.real_videos import VIDEOS, needs_videos


def difference(a: Frames, b: Frames) -> float:
    return float(np.abs(a.astype(int) - b).mean())


def test_ranges_of_an_mp4_are_exact(tmp_path: Path) -> None:
    frames = moving_ramp(40)
    encode_mp4(frames, tmp_path / "a.mp4", fps=29.97, gop=16)
    data = (tmp_path / "a.mp4").read_bytes()
    everything = decode_mp4(data, 0, 40)
    for start in range(40):
        assert np.array_equal(decode_mp4(data, start, min(40, start + 3)), everything[start : start + 3])
    with pytest.raises(VideoError, match=r"4 frames where \[36, 44\)"):
        decode_mp4(data, 36, 44)
    with pytest.raises(VideoError, match="unreadable mp4"):
        decode_mp4(data[:200], 0, 1)


def test_verification_counts_frames_and_finds_flipped_bytes() -> None:
    data = mp4_bytes(np.random.default_rng(0).integers(0, 255, (20, 16, 32, 3), np.uint8), fps=8)
    assert verify_mp4(data) == (20, 16, 32)
    with pytest.raises(VideoError, match="unreadable mp4"):
        verify_mp4(data[:-4000] + bytes(4000))


@needs_videos
@pytest.mark.parametrize(
    ("name", "side", "num_frames"),
    [
        ("scenes/nasa.mp4", 180, 325),
        ("people/mm_test.avi", 240, 164),
        ("odd_formats/rot90.mov", 320, 3),
        ("odd_formats/h264_10b.mp4", 200, 30),
        ("odd_formats/av1.mkv", 360, 125),
    ],
)
def test_a_video_in_memory_shows_what_its_file_does(name: str, side: int, num_frames: int) -> None:
    data = (VIDEOS / name).read_bytes()
    assert count_frames(data) == num_frames
    start = min(40, num_frames // 2)
    stop = min(start + 5, num_frames)
    for size_px in (side, side // 2):
        shown = decode(VIDEOS / name, size_px=size_px, keep_aspect=True)[start:stop]
        found = decode_resized(data, start, stop, size_px)
        assert found.shape == shown.shape
        assert difference(found, shown) < min(3, difference(found[:-1], shown[1:]))


def test_a_range_beyond_the_end_of_a_video_is_moved_back_to_it() -> None:
    data = mp4_bytes(moving_ramp(10), fps=8)
    last = decode_resized(data, 6, 10)
    assert last.shape == (4, 32, 32, 3)
    assert np.array_equal(decode_resized(data, 8, 12), last)
    for start in (0, 1):
        with pytest.raises(VideoError, match="10 frames where"):
            decode_resized(data, start, start + 11)


def test_what_is_no_video_has_no_frames() -> None:
    for read in (count_frames, lambda data: decode_resized(data, 0, 1)):
        with pytest.raises(VideoError, match="unreadable video"):
            read(b"no video")


def test_frames_take_their_short_side_and_keep_their_shape() -> None:
    frames = moving_ramp(2)[:, :16]
    assert resized(frames, 8).shape == (2, 8, 16, 3)
    assert resized(frames, 16) is frames
    assert resized(frames, None) is frames
