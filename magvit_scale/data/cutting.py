"""One clip out of one stored video: which frames, which square, flipped or not."""

import numpy as np
import torch
from numpy.typing import NDArray

from magvit_scale.config import ClipsConfig
from magvit_scale.data.frames import Encoding, Sample, count_stored, decode_stored
from magvit_scale.data.shards import Dataset
from magvit_scale.video import Frames


def cut_clip(dataset: Dataset, sample: Sample, config: ClipsConfig, rng: np.random.Generator | None) -> Frames:
    """Cuts one clip out of a stored video; a video that is too short repeats its last frame.

    Args:
        dataset: where the sample comes from.
        sample: the video.
        config: clip length, stride, sampled frames, flip and side.
        rng: draws the window, the flip and the crop; None takes the centre of all, unflipped.

    Returns:
        uint8 't h w c', h = w = size_px; t is num_frames, or sampled_frames where that is set.

    Raises:
        VideoError: the video does not decode.
    """
    clip, is_flipped = cut_unflipped(dataset, sample, config, rng)
    return flipped(np.array(clip)) if is_flipped else clip


def cut_unflipped(
    dataset: Dataset, sample: Sample, config: ClipsConfig, rng: np.random.Generator | None
) -> tuple[Frames, bool]:
    """`cut_clip` that leaves the flip to the caller, and says whether there is one."""
    if rng is None:
        return centre(window(dataset, sample, config, 0.5), config.size_px), False
    return augmented(window(dataset, sample, config, rng.random()), config, rng)


def augmented(clip: Frames, config: ClipsConfig, rng: np.random.Generator) -> tuple[Frames, bool]:
    """Crops a window, uint8 't h w c' -> 't size_px size_px c', and says whether it is to be flipped."""
    is_flipped = config.horizontal_flip and bool(rng.random() < 0.5)
    # Drawn for square frames too, so that what follows never depends on what is stored.
    top, left = (int(rng.random() * (side - config.size_px + 1)) for side in clip.shape[1:3])
    if is_flipped:  # `left` is counted in the flipped frame
        left = clip.shape[2] - config.size_px - left
    return clip[:, top : top + config.size_px, left : left + config.size_px], is_flipped


def flipped(clip: Frames) -> Frames:
    """Left and right of a clip 't h w c' exchanged; it must be writable."""
    # With torch: NumPy copies rows of pixels backwards at a fortieth of the speed.
    return torch.from_numpy(clip).flip(2).numpy()


def centre(clip: Frames, size_px: int) -> Frames:
    """The square in the middle, uint8 't h w c' -> 't size_px size_px c'."""
    top, left = ((side - size_px) // 2 for side in clip.shape[1:3])
    return clip[:, top : top + size_px, left : left + size_px]


def window(dataset: Dataset, sample: Sample, config: ClipsConfig, place: float) -> Frames:
    """The window at `place` in [0, 1) of all possible ones, whole frames."""
    num_frames = sample.num_frames or dataset.num_frames(sample)
    start, stop = _frame_range(config, num_frames, place)
    frames = dataset.read_video(sample, start, stop, config.frame_stride, size_px=config.size_px)
    return _taken(frames, config)


def _taken(frames: Frames, config: ClipsConfig) -> Frames:
    if config.sampled_frames is None and len(frames) == config.num_frames:
        return frames
    return frames[np.minimum(_taken_frames(config), len(frames) - 1)]


def _frame_range(config: ClipsConfig, num_frames: int, place: float) -> tuple[int, int]:
    span = (config.num_frames - 1) * config.frame_stride + 1
    start = int(place * (max(0, num_frames - span) + 1))
    return start, min(start + span, num_frames)


def _taken_frames(config: ClipsConfig) -> NDArray[np.int64]:
    """Which of a clip's frames are taken: all, or the inner points of an even division (spec section 1.6)."""
    if config.sampled_frames is None:
        return np.arange(config.num_frames)
    places = config.num_frames / (config.sampled_frames + 1) * np.arange(1, config.sampled_frames + 1)
    return places.round().astype(np.int64)


def cut_bytes(
    data: bytes, encoding: Encoding, config: ClipsConfig, rng: np.random.Generator | None
) -> tuple[Frames, bool]:
    """`cut_unflipped` for a foreign video in memory.

    Raises:
        VideoError: the video does not decode.
    """
    start, stop = _frame_range(config, count_stored(data, encoding), 0.5 if rng is None else rng.random())
    frames = decode_stored(data, encoding, start, stop, config.size_px)[:: config.frame_stride]
    frames = _taken(frames, config)
    return (centre(frames, config.size_px), False) if rng is None else augmented(frames, config, rng)
