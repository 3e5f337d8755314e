"""What `magvit generate` starts from: clips of clip shards or video files with their classes, dealt out over ranks."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from magvit_scale.commit.names import labels_of
from magvit_scale.commit.tasks import NOT_GIVEN, PREDICTION, SPECS, condition_mask, greyed
from magvit_scale.config import GenerateConfig, Refusal, Task
from magvit_scale.data.clips import held_out_clips, to_unit_range
from magvit_scale.data.sources import open_clips
from magvit_scale.ffmpeg_process import VideoError
from magvit_scale.long_video import window_starts
from magvit_scale.pipeline import MagvitPipeline
from magvit_scale.training.ranks import Ranks
from magvit_scale.video import Frames, decode


@dataclass(frozen=True)
class Batch:
    """Samples that are generated together."""

    numbers: list[int]
    """Among all samples."""
    clips: Tensor
    """'b 3 t h w' float32 in [0, 1], on the models' device; grey where there is nothing to start from."""
    labels: Tensor
    """'b' int64; -1: no class."""


class Conditions:
    """The condition clips of a configuration.

    Attributes:
        num_frames: of every clip and generated video.
        has_clips: False where samples are made from classes alone.
        classes: names by class id.

    Raises:
        Refusal: what a task needs is not given, or not what the models are for.
    """

    def __init__(self, config: GenerateConfig, pipeline: MagvitPipeline) -> None:
        _refuse_impossible(config, pipeline)
        self.config, self.shape = config, pipeline.clip_shape
        self.num_frames = config.num_frames or self.shape[0]
        self.has_clips = bool(config.videos or config.clips.shards or config.clips.sources)
        data = open_clips(config.clips).classes if self.has_clips and not config.videos else ()
        names, num_classes = pipeline.classes or tuple(data), pipeline.transformer.num_classes
        self.classes = names or tuple(map(str, range(num_classes)))
        self._ids = _translate(data, names, config)
        words = [word if word in names or not word.lstrip("-").isdecimal() else int(word) for word in config.labels]
        self._labels = labels_of(words, names, num_classes, len(words)).tolist()
        self._device = pipeline.device
        if num_classes and not (words or data):
            _refuse_without_classes(config)

    def batches(self, ranks: Ranks) -> Iterator[Batch]:
        """This rank's samples, every so many-th of all: which batch a sample is in changes nothing in it."""
        own = islice(enumerate(self._clips()), ranks.rank, None, ranks.world_size)
        while part := list(islice(own, self.config.batch_size)):
            numbers = [number for number, _ in part]
            clips = torch.stack([clip for _, (clip, _) in part]).to(self._device)
            labels = torch.tensor([self._label(number, of_clip) for number, (_, of_clip) in part])
            yield Batch(numbers, to_unit_range(clips), labels)

    def num_batches(self, ranks: Ranks) -> int:
        """Most batches of a rank."""
        return -(-self.config.samples_per_task // (ranks.world_size * self.config.batch_size))

    def _label(self, number: int, of_clip: int) -> int:
        return self._labels[number % len(self._labels)] if self._labels else of_clip

    def _clips(self) -> Iterator[tuple[Tensor, int]]:
        """All samples' clips, uint8 '3 t h w', and class ids."""
        if self.config.videos:
            return self._from_videos(self.config.videos)
        return self._from_shards() if self.has_clips else self._from_nothing()

    def _from_shards(self) -> Iterator[tuple[Tensor, int]]:
        clips = self.config.clips
        if self.config.num_frames:
            clips = replace(clips, num_frames=self.num_frames)
        expected = (self.num_frames, *self.shape[1:])
        for batch in held_out_clips(clips, self.config.samples_per_task, self.config.batch_size):
            if (found := tuple(batch["clip"].shape[2:])) != expected:
                raise Refusal(
                    f"clips of (t, h, w) = {found}, expected {expected} for these models; set clips.num_frames and "
                    "clips.size_px"
                )
            for clip, label in zip(batch["clip"], batch["label"].tolist(), strict=True):
                yield clip, self._ids[label] if label >= 0 else -1

    def _from_videos(self, paths: Sequence[str]) -> Iterator[tuple[Tensor, int]]:
        stride = self.config.clips.frame_stride
        clips = [read_video(path, self.num_frames, stride, self.shape[2]) for path in paths]
        for number in range(self.config.samples_per_task):
            yield torch.from_numpy(clips[number % len(clips)]).permute(3, 0, 1, 2), -1

    def _from_nothing(self) -> Iterator[tuple[Tensor, int]]:
        grey = torch.full((3, self.num_frames, *self.shape[1:]), round(255 * NOT_GIVEN), dtype=torch.uint8)
        return ((grey, -1) for _ in range(self.config.samples_per_task))


def read_video(path: str, num_frames: int, frame_stride: int, size_px: int) -> Frames:
    """The first frames of a video file, uint8 't h w 3', its short side scaled to `size_px` and the long one cropped.

    Raises:
        Refusal: it does not decode, or has too few frames.
    """
    needed = (num_frames - 1) * frame_stride + 1
    try:
        frames = decode(path, size_px=size_px, max_frames=needed)
    except VideoError as error:
        raise Refusal(f"{path}: {error}; give another video") from error
    if len(frames) < needed:
        raise Refusal(
            f"{path}: {len(frames)} frames, expected at least {needed} for {num_frames} at clips.frame_stride="
            f"{frame_stride}; give a longer video"
        )
    return np.array(frames[::frame_stride])


def _refuse_impossible(config: GenerateConfig, pipeline: MagvitPipeline) -> None:
    length, (_, height, width) = pipeline.clip_shape[0], pipeline.clip_shape
    num_frames = config.num_frames or length
    for key in ("samples_per_task", "batch_size"):
        if getattr(config, key) < 1:
            raise Refusal(f"{key}={getattr(config, key)}: expected at least 1")
    if config.videos and height != width:
        raise Refusal(f"videos: they are cropped square, the models are for {height} x {width} px; give clips.shards")
    window_starts(num_frames, length, config.overlap_frames)
    has_clips = config.videos or config.clips.shards or config.clips.sources
    for task in config.tasks:
        spec = SPECS[pipeline.trained_task(task)]
        if spec.fill is None and num_frames != length:
            raise Refusal(
                f"num_frames={num_frames}: {task} ({spec.title}) makes clips of {length} frames only; leave it out of "
                "tasks, or num_frames"
            )
        if spec.fill is not None and not has_clips:
            raise Refusal(
                f"task {task} ({spec.title}) needs a condition: give clips.shards=FOLDER or videos=[FILE,...]"
            )


def _refuse_without_classes(config: GenerateConfig) -> None:
    """A transformer of classes has never learnt such a task without one."""
    for task in config.tasks:
        if SPECS[task].is_class_conditional:
            raise Refusal(
                f"task {task} ({SPECS[task].title}) needs classes, found none: give labels=[NAME or NUMBER,...]"
            )


def _translate(data: Iterable[str], classes: Sequence[str], config: GenerateConfig) -> list[int]:
    """The models' class ids by the data's; -1 where the models do not know the name."""
    ids = [classes.index(name) if name in classes else -1 for name in data]
    if -1 in ids and not config.labels and any(SPECS[task].is_class_conditional for task in config.tasks):
        raise Refusal(
            f"clips of class {list(data)[ids.index(-1)]!r}, the models know {', '.join(classes[:8])}; give labels=[...]"
        )
    return ids


def is_sliding(task: Task) -> bool:
    """Whether longer videos of a task slide on by its own frames."""
    return SPECS[task].token == PREDICTION


def show_condition(config: GenerateConfig, pipeline: MagvitPipeline, task: Task, clips: Tensor) -> Tensor:
    """The pixels of 'b 3 t h w' that a task is given, in longer videos any of the windows; the others grey."""
    (length, _, _), (num_frames, height, width) = pipeline.clip_shape, clips.shape[2:]
    given = torch.zeros((num_frames, height, width), dtype=torch.bool)
    window = condition_mask(task, (length, height, width))
    for start in [0] if is_sliding(task) else window_starts(num_frames, length, config.overlap_frames):
        given[start : start + length] |= window
    return greyed(clips, given)
