"""Video files, clip shards, token shards."""

from dataclasses import dataclass, field
from typing import Literal

from magvit_scale.config.commit import TASKS, Task
from magvit_scale.config.training import ComputeConfig


@dataclass(frozen=True, kw_only=True)
class MovingShapesConfig:
    """The embedded data set: class-labelled videos of moving shapes, a function of the seed alone."""

    output: str
    """Folder that receives one sub-folder of mp4 files per class."""
    videos_per_class: int = 48
    num_frames: int = 64
    """Frames per video."""
    size_px: int = 64
    fps: int = 8
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ListVideosConfig:
    """A data set of videos or images -> manifest.jsonl, one line per readable one."""

    videos: str
    """Folder of the files, as the data set was unpacked."""
    output: str
    """Folder that receives manifest.jsonl, rejects.jsonl and duplicates.jsonl."""
    source: Literal["folder", "csv", "ucf101", "kinetics", "ssv2", "bair", "images"] = "folder"
    """Where classes and splits come from. `folder`: the name of a file's sub-folder is its class. `csv`: columns path,
    label, split. `ucf101`, `kinetics`, `ssv2`: the published annotations. `bair`: TFRecords, camera image_aux1, no
    classes. `images`: as `folder`, for jpg, jpeg, png and webp, with train/ and val/ as splits."""
    annotations: str | None = None
    """csv: the file. ucf101: folder with classInd.txt, trainlist01.txt, ... kinetics: the file, or a folder of them.
    ssv2: folder with the labels, train and validation JSON."""
    split_number: Literal[1, 2, 3] = 1
    """ucf101: which of its three splits."""
    expect_counts: bool = True
    """ucf101, ssv2 and bair: refuses other numbers of videos than the published ones."""
    test_fraction: float = 0.125
    """Where the source names no splits: share of each class's videos held out as split `test`; at least one video of
    the whole data set."""
    min_frames: int = 16
    """Shorter videos are rejected; does not hold for source=images."""
    max_videos: int | None = None
    """Takes only so many videos, drawn by the seed; null takes all."""
    max_reject_fraction: float = 0.5
    """More rejects than this share of all files stops the run."""
    num_workers: int = 2
    seed: int = 0
    """Decides which videos are taken and which are held out."""


@dataclass(frozen=True, kw_only=True)
class WriteShardsConfig:
    """manifest.jsonl -> WebDataset tars of short videos at one size."""

    manifest: str
    """The manifest.jsonl of list_videos."""
    output: str
    """Folder that receives train/, test/ and dataset.json."""
    size_px: int = 128
    """Short side of the stored frames."""
    keep_aspect: bool = False
    """Keeps the long side, to the next even number; otherwise the frames are cropped square, at the centre."""
    fps: float | None = None
    """Constant frame rate of the stored videos; null keeps the source's."""
    max_frames: int = 512
    """Longer videos are cut here."""
    encoding: Literal["h264", "raw", "zstd", "jpeg"] = "h264"
    """`h264`: mp4, GOP 16, no B-frames. `raw`: uint8 .npy frames, lossless. `zstd`: the same, compressed: for
    evaluation to the last bit. `jpeg`: images only, quality 95 with full colour resolution."""
    videos_per_shard: int = 64
    num_workers: int = 2


@dataclass(frozen=True, kw_only=True)
class CheckShardsConfig:
    """Re-reads clip shards and proves counts, checksums, offsets and frames; ends with status 1 at any fault."""

    shards: str
    """Folder with the dataset.json of write_shards."""
    sample: float = 1.0
    """Share of each split's shards whose bytes are read and whose videos are decoded, at least one; the indexes are
    always read whole."""
    num_workers: int = 2
    seed: int = 0
    """Decides which shards are sampled."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One of several data sets that are mixed."""

    shards: str
    """As clips.shards."""
    weight: float = 1
    """Share of the clips, relative to the other sources'."""


@dataclass(frozen=True, kw_only=True)
class ClipsConfig:
    """Which clips a stage reads, and how a clip is cut from a stored video."""

    shards: str = ""
    """Folder with the dataset.json of write_shards, or its URL (http, s3, ...); a folder or brace pattern of other
    WebDataset tars; or `pipe:COMMAND`, a stream that cannot be resumed."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Instead of shards: several data sets by name, mixed by weight. Classes of the same name become one."""
    split: Literal["train", "test"] = "train"
    num_frames: int = 16
    """Frames per clip; 1 trains on images."""
    frame_stride: int = 1
    """Stored frames from one clip frame to the next."""
    sampled_frames: int | None = None
    """For 2D networks: trains on only so many evenly spread frames of a clip (4 of 16: frames 3, 6, 10, 13); null takes
    all."""
    size_px: int = 128
    """Side of the clips, at most the short side of the stored frames. Larger ones are cropped: at random in training,
    else in the centre."""
    horizontal_flip: bool = True
    num_workers: int = 2
    """Loader processes per rank; 0 reads in the training process."""
    shuffle_window: int | None = None
    """Shards that are shuffled jointly; fewer need fewer files at hand. null: all, of remote shards 8."""
    max_broken_fraction: float = 0.05
    """Videos that do not decode are replaced by the next of the order; more of them than this share stop the run."""
    cache: str | None = None
    """Folder of copies of remote shards, and of indexes of tars whose own folder is read-only; null: MAGVIT_CACHE, or
    ~/.cache/magvit_scale."""
    cache_gb: float = 100
    """Size of those copies, 10^9 bytes; those not used for longest are deleted."""


@dataclass(frozen=True, kw_only=True)
class PrecomputeTokensConfig:
    """magvit precompute-tokens: clip shards and a tokenizer -> token shards.

    Ranks take shards in turn, and several launches may work on one output. A killed run is started again with the same
    words and continues; its result is the same to the byte. dataset.json is written last.
    """

    tokenizer: str
    """Export folder of a 3D VQGAN of at most 65,536 codes."""
    clips: ClipsConfig
    output: str
    """Folder that receives one token shard per clip shard, and dataset.json. It belongs to one tokenizer, split, way of
    cutting clips and set of tasks: others are refused."""
    tasks: tuple[Task, ...] = TASKS
    """Only the condition canvases of these are tokenized; a transformer trains on no other task with them."""
    views: int = 1
    """Augmentation views per video. Each is a random window of clips.num_frames frames, flipped or not
    (clips.horizontal_flip), and a random crop where the stored frames are larger than clips.size_px; keyed by seed,
    view and video. In split `test` view 0 is the centre, unflipped."""
    batch_size: int = 16
    """Clips and canvases per forward pass, of one video at a time."""
    compute: ComputeConfig = ComputeConfig()
    """Of the tokenizer. Other than fp32 gives other tokens where two codes are nearly as near."""
    verify: float = 0.0
    """Share of the videos that are tokenized once more at the end and compared, after the shards' checksums, at least
    one video; 0 compares nothing. On a GPU, an id may differ where its code is as near as the nearest but for
    rounding. Other differences end the program with status 1."""
    seed: int = 0
    """Decides the views, and what is verified."""
