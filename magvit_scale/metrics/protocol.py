"""What decides a figure besides the model: a protocol as frozen data, and the hash that stands in every result. No
torch.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from magvit_scale.config import DecodingConfig, Refusal, Task
from magvit_scale.config.reading import refuse_below_one

ClipRule = Literal["random_windows", "even_windows", "tiles_without_replacement", "first_k"]
"""Which clips of the real videos are taken; `selection.py` says how."""
Quantiser = Literal["float", "uint8_round", "uint8_truncate"]
"""What both sets of clips go through before the feature network; truncation darkens by half a grey level."""
Divisor = Literal["n-1", "n"]
"""Of a covariance: unbiased, or that of StyleGAN-V's code and its descendants."""


@dataclass(frozen=True, kw_only=True)
class Resize:
    """One step from frames of one size to frames of another."""

    size_px: int
    """Of the square result."""
    rule: Literal["tf1", "half_pixel", "lanczos"]
    """Pixel i is taken from i * in / out by `tf1`, else from (i + 1/2) * in / out - 1/2; the first two are bilinear."""
    antialias: bool = False
    """Smooths where a picture shrinks."""
    fit: Literal["squash", "centre_crop"] = "squash"
    """Both sides to `size_px`, or the short side and then the middle of the long one."""

    def __post_init__(self) -> None:
        """Refuses what no resizing is."""
        refuse_below_one("resize", {"size_px": self.size_px})
        if self.rule == "tf1" and self.antialias:
            raise Refusal("resize: rule tf1 with antialias=true, expected false; TensorFlow 1 does not smooth")


@dataclass(frozen=True, kw_only=True)
class RealClips:
    """The real clips of a distance."""

    split: Literal["train", "test", "train+test"]
    num_videos: int | None = None
    """Of the split; null where no copy of the data set is complete."""
    rule: ClipRule
    num_clips: int
    """Of one fold."""
    windows: int = 1
    """Of each video, for `even_windows`: so many first frames from the start to the end."""
    crops: int = 1
    """Of each window, for `even_windows`: so many places along the long side."""

    def __post_init__(self) -> None:
        """Refuses counts below 1."""
        refuse_below_one("real clips", {name: getattr(self, name) for name in ("num_clips", "windows", "crops")})


@dataclass(frozen=True, kw_only=True)
class InceptionScoreRule:
    """How samples fall into groups: each group gives one score; the result is their mean and deviation."""

    num_samples: int
    """Clips of one repeat."""
    num_splits: int
    """Groups into which one repeat falls."""
    num_repeats: int
    """Independent repeats of `num_samples` clips."""

    def __post_init__(self) -> None:
        """Refuses groups without a clip."""
        if min(self.num_splits, self.num_repeats) < 1 or self.num_samples < self.num_splits:
            raise Refusal(
                f"inception score: {self.num_samples} samples in {self.num_splits} splits, {self.num_repeats} repeats; "
                "expected at least one sample in each split"
            )

    @property
    def num_groups(self) -> int:
        """Scores that are averaged."""
        return self.num_splits * self.num_repeats

    def shuffled(self, seed: int) -> NDArray[np.int64]:
        """For each place in the order of generation its place in groups that mix the classes: within a repeat a random
        one, where a repeat is split; else its own. Raw bits of Philox, the same on every machine.
        """
        size = self.num_samples * self.num_repeats
        if self.num_splits == 1:
            return np.arange(size)
        words = np.random.Philox(key=seed)
        parts = [np.argsort(words.random_raw(self.num_samples), kind="stable") for _ in range(self.num_repeats)]
        return np.concatenate([part + index * self.num_samples for index, part in enumerate(parts)])

    def groups_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The group of each sample.

        Args:
            positions: `n` in [0, num_samples * num_repeats), places in the order of generation, or in a shuffled one
                where samples were generated class by class.

        Returns:
            `n` in [0, num_groups). Split i of a repeat begins at floor(i * num_samples / num_splits).
        """
        repeat, place = np.divmod(positions, self.num_samples)
        return repeat * self.num_splits + ((place + 1) * self.num_splits - 1) // self.num_samples


MAGVIT_SCORE = InceptionScoreRule(num_samples=10_000, num_splits=1, num_repeats=4)
TGANV2_SCORE = InceptionScoreRule(num_samples=2_048, num_splits=1, num_repeats=10)
STYLEGAN_V_SCORE = InceptionScoreRule(num_samples=2_048, num_splits=10, num_repeats=1)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A figure that a paper prints for this protocol."""

    figure: str
    """`TASK/METRIC`, as in a result."""
    model: str
    value: float
    spread: float | None = None
    """As printed after the +- sign."""
    source: str


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything that decides a figure except the models, their decoding and the weights of the feature network."""

    name: str
    data_set: str
    tasks: tuple[Task | Literal["reconstruction"], ...]
    real: RealClips
    real_of_classes: RealClips | None = None
    """For the task CG; null where it takes `real` like the others."""
    num_generated: int
    """Clips of one fold and task."""
    num_folds: int
    """Consecutive parts of one run; a figure is their mean, its spread their deviation with divisor `num_folds`."""
    seed: int = 0
    num_frames: int = 16
    frame_stride: int = 1
    condition_frames: int | None = None
    """Real frames that a generated clip begins with, and that are scored with it; null where the task decides."""
    size_px: int
    """Of the clips that the model makes."""
    data_resize: tuple[Resize, ...]
    """From the videos to `size_px`."""
    feature_resize: tuple[Resize, ...]
    """From `size_px` to the feature network."""
    quantiser: Quantiser
    feature_network: Literal["i3d-ts", "i3d-sd", "random"]
    """A name of `magvit_scale.weights`, or the untrained one."""
    divisor: Divisor
    inception_score: InceptionScoreRule | None = None
    classifier: Literal["c3d-ts", "c3d-chainer"] | None = None
    """Of the inception score; a name of `magvit_scale.weights`."""
    psnr_best_of: int = 1
    """Samples of each video of which the best counts for PSNR and SSIM."""
    decoding: DecodingConfig | None = None
    """The paper's own; results state theirs. Not in the hash: it belongs to the model that is measured."""
    published: tuple[Published, ...] = ()
    """Not in the hash."""
    assumptions: str = ""
    """Where the source is silent. Not in the hash."""

    def __post_init__(self) -> None:
        """Refuses counts below 1, and an inception score that is not of all clips or without its classifier."""
        counts = ("num_generated", "num_folds", "num_frames", "frame_stride", "size_px", "psnr_best_of")
        refuse_below_one(f"protocol {self.name}", {name: getattr(self, name) for name in counts})
        rule = self.inception_score
        if rule is None:
            return
        if (scored := rule.num_samples * rule.num_repeats) != (made := self.num_generated * self.num_folds):
            raise Refusal(
                f"protocol {self.name}: inception score of {rule.num_samples} x {rule.num_repeats} = {scored} clips, "
                f"expected the {made} that it generates ({self.num_generated} x {self.num_folds}); change one of them"
            )
        if self.classifier is None and self.feature_network != "random":
            raise Refusal(f"protocol {self.name}: an inception score without classifier; give c3d-chainer or c3d-ts")

    def conditions(self) -> dict[str, Any]:
        """What the hash covers, as plain JSON values."""
        return {k: v for k, v in asdict(self).items() if k not in ("decoding", "published", "assumptions")}

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON of `conditions`: sorted keys, no spaces, ASCII."""
        text = json.dumps(self.conditions(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def real_clips(self, task: str) -> RealClips:
        """The real clips that belong to a task."""
        return self.real_of_classes if task == "CG" and self.real_of_classes else self.real
