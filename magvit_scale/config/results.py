"""What is made of trained models: videos, figures, a page."""

from dataclasses import dataclass, field
from typing import Any, Literal

from magvit_scale.config.commit import TASKS, DecodingConfig, Task
from magvit_scale.config.data import ClipsConfig
from magvit_scale.config.reading import Refusal
from magvit_scale.config.training import ComputeConfig


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """magvit generate: task, condition clip and class -> videos. Ranks share the samples; a sample is a function of its
    seed, whatever the batch and the number of ranks.
    """

    model: str | None = None
    """Pipeline folder, with model_index.json; instead of tokenizer and transformer."""
    tokenizer: str | None = None
    """Export folder of a 3D VQGAN."""
    transformer: str | None = None
    """Export folder of a transformer."""
    output: str
    """Folder that receives <task>/NNNN_{condition,generated,real} in every format, <task>/tokens.npz,
    <task>/0000_steps.png and samples.npz, the first 16 samples for the report."""
    clips: ClipsConfig = field(default_factory=ClipsConfig)
    """Where condition clips and classes come from; needed by all tasks but CG."""
    videos: tuple[str, ...] = ()
    """Video files instead of clips, taken in turn: from their first frame on, every clips.frame_stride-th; the short
    side is scaled to the models' size, the long one cropped."""
    labels: tuple[str, ...] = ()
    """Classes by name or number (-1: none), taken in turn; by default those of the clips. A task that is told a class
    needs the one or the other."""
    tasks: tuple[Task, ...] = ()
    """None takes all that the transformer was trained for."""
    samples_per_task: int = 8
    batch_size: int = 8
    """Samples that a rank generates at once."""
    compute: ComputeConfig = ComputeConfig()
    """Of both models. The last batch may be smaller, which compiles once more."""
    num_frames: int | None = None
    """Frames of the videos, in place of clips.num_frames; more than the models' clips go by windows: frame prediction
    slides on from its own last frames, other tasks need a condition of so many frames. null: the models' number."""
    overlap_frames: int = 0
    """Frames that windows share; they are cross-faded. Not for frame prediction."""
    decoding: DecodingConfig = DecodingConfig()
    seed: int = 0
    """Of the first sample; the others count on."""
    formats: tuple[Literal["mp4", "webp", "png"], ...] = ("mp4",)
    """`png`: one picture per sample, condition, generated and real clip below each other, their frames side by side."""
    fps: int | None = None
    """Frames per second of the files; null: the pipeline folder's, or 8."""

    def __post_init__(self) -> None:
        """Refuses models that are named twice, or not at all."""
        given = [name for name in ("model", "tokenizer", "transformer") if getattr(self, name)]
        if given not in (["model"], ["tokenizer", "transformer"]):
            found = " and ".join(given) or "no models"
            raise Refusal(
                f"{found} given: expected either model=FOLDER, or tokenizer=FOLDER and transformer=FOLDER; null takes "
                "back what a file says"
            )


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """magvit judge: models on held-out clips -> results.json, every figure with its baseline."""

    tokenizer: str
    inflated: str | None = None
    """Export folder of the un-trained inflated tokenizer, the baseline of the trained one."""
    transformer: str
    train_tokens: str
    """Token shards that give the per-position frequency table."""
    test_tokens: str
    clips: ClipsConfig
    """Held-out clips."""
    tasks: tuple[Task, ...] = TASKS
    output: str
    """Folder that receives results.json and reconstructions.npz."""
    num_clips: int = 64
    batch_size: int = 16
    seed: int = 0
    """Of the masks under which tokens are predicted."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """magvit evaluate: models by a protocol -> a result file, with everything that its figures hang on.

    `magvit evaluate CONFIG... --watch RUN` evaluates the checkpoints of a training run as they appear;
    `magvit evaluate --compare OURS.json [THEIRS.json]` is `magvit compare-results`.
    """

    protocol: str
    """Name of a protocol (docs/protocols.md), or a YAML file with one of your own."""
    tokenizer: str | None = None
    """Export folder of a 3D VQGAN; null: that of the run that is watched, or whose tokens it learns."""
    transformer: str | None = None
    """Export folder of a transformer; null: that of the run that is watched, or no task but reconstruction."""
    shards: str
    """Clip shards of the protocol's data set; with videos of the real clips' split, which is never trained on unless
    the protocol says so."""
    output: str | None = None
    """Folder that receives PROTOCOL.json; null: evaluation/, with `watch` that of the run."""
    statistics: str | None = None
    """Folder of the real sets' feature statistics, computed once for each protocol, data set and network; null: the
    folder `real` in the output."""
    tasks: tuple[str, ...] = ()
    """Of the protocol's; none takes all that the models can do."""
    networks: Literal["protocol", "random"] = "protocol"
    """`random`: untrained ones, for trials without weights; the figures are comparable with nothing."""
    decoding: dict[str, Any] = field(default_factory=dict)
    """Keys of DecodingConfig in which the sampler differs from the protocol's, as decoding.num_steps=24."""
    batch_size: int = 16
    """Clips of one forward pass, per rank. Decides no figure but for rounding."""
    num_workers: int = 2
    """Loader processes per rank."""
    seed: int | None = None
    """Of the choice of real clips and of the sampling; null takes the protocol's."""
    watch: str | None = None
    """Run folder of train-vqgan or train-commit: each new checkpoint is evaluated once, until the last step's."""
    watch_every_s: float = 60
    """Seconds from one look at the run to the next."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """magvit export: a checkpoint of a training run, of any ZeRO stage and world size -> model folders. One process, no
    GPU.
    """

    run: str
    """Run folder of train-vqgan or train-commit."""
    step: int | None = None
    """Which checkpoint; null takes the newest complete one."""
    output: str | None = None
    """Folder that receives config.json and model.safetensors; null takes the run folder's export/."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """magvit report RUN...: a self-contained page of each RUN, RUN/report.html, and for several a page that compares
    them.
    """

    runs: tuple[str, ...]
    """RUN...: folders as `make demo` makes them (training runs, generated/, judgement/, evaluation/*.json; anything may
    be missing), or training runs."""
    output: str | None = None
    """Of one RUN its page; of several the page that compares them, null takes comparison.html beside the first."""
    gate: Literal["fail", "warn"] = "fail"
    """What a figure below its baseline does: end non-zero, or only say so."""


@dataclass(frozen=True, kw_only=True)
class CompareResultsConfig:
    """magvit compare-results OURS.json [THEIRS.json]: results of one protocol beside each other and the paper's
    figures.
    """

    ours: str
    """Result of `magvit evaluate` with a protocol; the first file named."""
    theirs: str | None = None
    """Another one; null shows the paper's figures only."""


@dataclass(frozen=True, kw_only=True)
class PublishConfig:
    """magvit publish: model folders and what their runs say of them -> a folder for the Hugging Face hub, with a card.

    A folder that holds other models is refused; the same models are written again to the same bytes.
    """

    tokenizer: str
    """Export folder of a VQGAN, inside its run folder where the card is to say how it was trained."""
    transformer: str | None = None
    """Export folder of a transformer of that tokenizer; null publishes the tokenizer alone."""
    output: str
    """Folder that receives model_index.json, tokenizer/, transformer/ and README.md; a tokenizer alone is put into the
    folder itself."""
    results: tuple[str, ...] = ()
    """Results of magvit evaluate for these models."""
    classes: tuple[str, ...] = ()
    """Names by class id; empty takes those of the transformer's token shards, or of the tokenizer's clip shards."""
    fps: float | None = None
    """Of the clips; null takes that of the tokenizer's clip shards."""
    license: str = "apache-2.0"
    """Of the weights, as the hub abbreviates it; you know what the training videos allow."""
    datasets: tuple[str, ...] = ()
    """The hub's ids of the training data, where they are there."""
    push: str | None = None
    """owner/name: uploads the folder to the Hugging Face hub as well (pip install huggingface_hub, hf auth login). A
    repository that is not there is made as the hub makes it: public, but for organisations that say otherwise."""


@dataclass(frozen=True, kw_only=True)
class ExportProgramConfig:
    """magvit export-program: a VQGAN -> tokenize.pt2 and detokenize.pt2, which run with torch alone, for any batch.

    Both are loaded again and compared with the model; program.json holds what was found. Ends with status 1 where they
    differ.
    """

    model: str
    """Export folder of a VQGAN."""
    output: str
    """Folder that receives the two programs and program.json."""
    num_frames: int | None = None
    """Of the clips that the programs take; null takes what the model's folder or its run says."""
    size_px: int | None = None
    """Of the same clips."""
