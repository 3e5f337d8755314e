"""Clips at given places of whole videos: what a protocol of evaluation asks for, none left out and none replaced."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from magvit_scale.config import Refusal
from magvit_scale.data.frames import Sample
from magvit_scale.data.loading import as_it_is
from magvit_scale.data.shards import Dataset, load_dataset
from magvit_scale.video import Frames, VideoError

Cut = tuple[int, int]
"""Number of a video, first frame."""


class RealVideos:
    """The videos of some splits, sorted by name.

    Attributes:
        dataset: the shards.
        samples: the videos; a cut counts in this order.
    """

    def __init__(self, shards: str, splits: Sequence[str]) -> None:
        """Opens clip shards, see `ClipsConfig.shards`.

        Raises:
            Refusal: missing or damaged shards, or a split that they do not have.
        """
        self.dataset: Dataset = load_dataset(shards)
        videos = [sample for split in splits for sample in self.dataset.samples(split)]
        self.samples: list[Sample] = sorted(videos, key=lambda sample: sample.key)

    def lengths(self) -> list[int]:
        """Stored frames of each video; foreign ones are opened for it.

        Raises:
            Refusal: a video cannot be read.
        """
        try:
            return [sample.num_frames or self.dataset.num_frames(sample) for sample in self.samples]
        except VideoError as error:
            raise Refusal(f"{error}; a protocol leaves no video out, so write the shards again") from error

    def labels(self, numbers: Sequence[int]) -> NDArray[np.int64]:
        """Class ids of videos by number; -1 where the data have no classes."""
        return np.array([self.samples[number].class_id for number in numbers], dtype=np.int64)


def read_cuts(
    videos: RealVideos,
    cuts: Sequence[Cut],
    *,
    num_frames: int,
    frame_stride: int = 1,
    batch_size: int = 16,
    num_workers: int = 0,
) -> Iterator[list[Frames]]:
    """Yields the clips of `cuts` in their order, `batch_size` at a time.

    Yields:
        uint8 't h w 3' as they are stored; frames of videos of unlike sizes are of unlike sizes.

    Raises:
        Refusal: a video does not decode; a protocol leaves no clip out.
    """
    batches = [range(start, min(start + batch_size, len(cuts))) for start in range(0, len(cuts), batch_size)]
    loader = DataLoader(
        _Cuts(videos, cuts, num_frames, frame_stride),
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=as_it_is,
        num_workers=num_workers,
        prefetch_factor=2 if num_workers else None,
    )
    for batch in loader:
        for clip in batch:
            if isinstance(clip, str):
                raise Refusal(f"{clip}; a protocol leaves no clip out, so write the shards again")
        yield batch


class _Cuts(TorchDataset[Any]):
    """Number of a cut -> its frames, or in words why there are none: an exception would arrive as a traceback."""

    def __init__(self, videos: RealVideos, cuts: Sequence[Cut], num_frames: int, frame_stride: int) -> None:
        self.videos, self.cuts, self.num_frames, self.frame_stride = videos, cuts, num_frames, frame_stride

    def __getitem__(self, number: int) -> Frames | str:
        video, start = self.cuts[number]
        stop = start + (self.num_frames - 1) * self.frame_stride + 1
        try:
            frames = self.videos.dataset.read_video(self.videos.samples[video], start, stop, self.frame_stride)
        except (VideoError, Refusal) as error:
            return str(error)
        return np.array(frames)  # a decoder may use the memory again
