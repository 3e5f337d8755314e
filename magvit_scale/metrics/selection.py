"""Which real clips a protocol takes, as a function of the protocol, the videos' lengths and nothing else. No torch.

- `random_windows`: the videos in a random order, one random window of each, then all again in another order: what a
  training stream gives.
- `even_windows`: of each video windows at even distances from its start to its end, of each window crops from one end
  of the long side to the other; all of them in a random order, then all again in another until the folds are full. In
  the order of names a fold of a data set sorted by class would hold some classes only.
- `tiles_without_replacement`: random ones of all windows that follow each other without a gap; long videos weigh more.
- `first_k`: the first videos by name, one random window of each. Kept for figures that were made so: of a data set
  sorted by class it takes the first classes only. Never a default.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from magvit_scale.config import Refusal
from magvit_scale.metrics.protocol import Protocol, RealClips

Numbers = NDArray[np.int64]


class RealClip(NamedTuple):
    """Where one clip is cut."""

    video: int
    """Place in the list of videos, which is sorted by name."""
    first_frame: int
    place: float = 0.5
    """Of the square along the long side: 0 its start, 0.5 the centre, 1 its end."""


def select_clips(protocol: Protocol, num_frames: list[int], seed: int | None = None, task: str = "") -> list[RealClip]:
    """The real clips of all folds, one fold after the other.

    Args:
        protocol: decides rule, count and clip length.
        num_frames: of each video of the split, sorted by name. Videos shorter than a clip are left out.
        seed: in place of the protocol's.
        task: for which the clips are; see `Protocol.real_clips`.

    Returns:
        `num_folds * num_clips` clips, the same on every machine.

    Raises:
        Refusal: the split has another number of videos than the protocol's, or fewer clips than it wants.
    """
    real, span = protocol.real_clips(task), (protocol.num_frames - 1) * protocol.frame_stride + 1
    if real.num_videos is not None and len(num_frames) != real.num_videos:
        raise Refusal(
            f"protocol {protocol.name}: {len(num_frames)} videos in {protocol.data_set}, split {real.split}, expected "
            f"{real.num_videos}; prepare the whole split, or use another protocol"
        )
    lengths = np.array(num_frames, dtype=np.int64)
    videos = np.flatnonzero(lengths >= span)
    wanted = real.num_clips * protocol.num_folds
    words = np.random.Philox(key=protocol.seed if seed is None else seed)
    clips = _select(real, videos, lengths, span, wanted, words)
    if len(clips) < wanted:
        raise Refusal(
            f"protocol {protocol.name}: {len(clips)} clips of {span} frames in {len(num_frames)} videos, expected "
            f"{wanted}; prepare the whole split, or use another protocol"
        )
    return clips


def split_over_ranks(num_clips: int, rank: int, world_size: int) -> range:
    """The places in the list of clips that a rank takes: every place on one rank, none twice.

    Ranks may differ by one clip, so nothing in the loop over them may be collective.
    """
    return range(rank, num_clips, world_size)


def _select(
    real: RealClips, videos: Numbers, lengths: Numbers, span: int, wanted: int, words: np.random.Philox
) -> list[RealClip]:
    """Up to `wanted` clips; fewer where there are no more."""
    if len(videos) == 0:
        return []
    if real.rule == "even_windows":
        windows = _even_windows(real, videos, lengths, span)
        return [windows[index] for index in _passes(words, len(windows), wanted)]
    if real.rule == "tiles_without_replacement":
        return _tiles(videos, lengths, span, wanted, words)
    if real.rule == "first_k":
        return _random_windows(videos[:wanted], lengths, span, words)
    return _random_windows(videos[_passes(words, len(videos), wanted)], lengths, span, words)


def _random_windows(videos: Numbers, lengths: Numbers, span: int, words: np.random.Philox) -> list[RealClip]:
    num_starts = (lengths[videos] - span + 1).astype(np.uint64)
    # The remainder of 64 random bits: its bias is below 1e-13 for any video.
    starts = words.random_raw(len(videos)) % num_starts
    return [RealClip(int(video), int(start)) for video, start in zip(videos, starts, strict=True)]


def _even_windows(real: RealClips, videos: Numbers, lengths: Numbers, span: int) -> list[RealClip]:
    places = [0.5] if real.crops == 1 else np.linspace(0, 1, real.crops).tolist()
    return [
        RealClip(int(video), int(start), place)
        for video in videos
        # Cut off, not rounded, as the official loader does.
        for start in np.linspace(0, lengths[video] - span, real.windows).astype(np.int64)
        for place in places
    ]


def _tiles(videos: Numbers, lengths: Numbers, span: int, wanted: int, words: np.random.Philox) -> list[RealClip]:
    tiles = [RealClip(int(v), start) for v in videos for start in range(0, int(lengths[v]) - span + 1, span)]
    return [tiles[index] for index in _permutation(words, len(tiles))[:wanted]]


def _passes(words: np.random.Philox, size: int, wanted: int) -> Numbers:
    """`wanted` of [0, size): each once in a random order, then all again in another."""
    return np.concatenate([_permutation(words, size) for _ in range(-(-wanted // size))])[:wanted]


def _permutation(words: np.random.Philox, size: int) -> Numbers:
    # Raw words: NumPy promises those bits for ever, but not the bits of Generator.permutation.
    return np.argsort(words.random_raw(size), kind="stable")
