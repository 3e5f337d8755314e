"""Every configuration dataclass, and how one is read, written and explained. Imports no torch.

A configuration is YAML files merged left to right, then `key.sub=value` overrides, checked against a closed frozen
dataclass: an unknown key, a wrong type or a bad literal is an error that names the key. The string under each field
is its meaning and unit; `magvit VERB --help` prints it.
"""

import ast
import inspect
import itertools
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

Config = TypeVar("Config")

Padding = Literal["reflect", "zeros"]
Inflation = Literal["central", "average"]
Perceptual = Literal["lpips_vgg", "random", "none"]
Task = Literal["FP", "FI", "OPC", "OPV", "OPH", "OPD", "IPC", "IPD", "CG", "CFP"]
TASKS: tuple[Task, ...] = get_args(Task)


class Refusal(ValueError):
    """Bad input, said in one line: what was found, what was expected, what to do. Programs end with it and status 1."""


# ----------------------------------------------------------------------------------------------------------------------
# Video files -> clip shards (data_prep)


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
    """A folder of videos -> manifest.jsonl, one line per readable video."""

    videos: str
    """Folder of videos; the name of a video's sub-folder is its class."""
    output: str
    """Folder that receives manifest.jsonl and rejects.jsonl."""
    test_fraction: float = 0.125
    """Share of each class's videos held out as split `test`; at least one video of the whole folder."""
    min_frames: int = 16
    """Shorter videos are rejected."""
    max_videos: int | None = None
    """Takes only so many videos, drawn by the seed; null takes all."""
    max_reject_fraction: float = 0.5
    """More rejects than this share of all files stops the run."""
    num_workers: int = 2
    seed: int = 0
    """Decides which videos are taken and which are held out."""


@dataclass(frozen=True, kw_only=True)
class WriteShardsConfig:
    """manifest.jsonl -> WebDataset tars of short square videos at one size."""

    manifest: str
    """The manifest.jsonl of list_videos."""
    output: str
    """Folder that receives train/, test/ and dataset.json."""
    size_px: int = 128
    """Side of the square frames: short side resized, centre cropped."""
    fps: float | None = None
    """Constant frame rate of the stored videos; null keeps the source's."""
    max_frames: int = 512
    """Longer videos are cut here."""
    encoding: Literal["h264", "raw"] = "h264"
    """`h264`: mp4, GOP 16, no B-frames. `raw`: uint8 .npy frames, lossless."""
    videos_per_shard: int = 64
    num_workers: int = 2


# ----------------------------------------------------------------------------------------------------------------------
# Parts shared by the training stages


@dataclass(frozen=True, kw_only=True)
class ClipsConfig:
    """Which clips a stage reads, and how a clip is cut from a stored video."""

    shards: str
    """Folder with the dataset.json of write_shards."""
    split: Literal["train", "test"] = "train"
    num_frames: int = 16
    """Frames per clip; 1 trains on images."""
    frame_stride: int = 1
    """Stored frames from one clip frame to the next."""
    size_px: int = 128
    """Must be the side of the stored frames."""
    horizontal_flip: bool = True
    num_workers: int = 2
    """Loader processes per rank; 0 reads in the training process."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up from 0 and a cosine to 0 (spec: MAGVIT appendix B)."""

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.0, 0.99)
    weight_decay: float = 0.0
    """Decoupled; on kernels only."""
    warmup_steps: int = 0
    gradient_clipping: float = 0.0
    """Largest global gradient norm; 0 switches clipping off."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run folder and the one loop that fills it."""

    folder: str
    """Receives config.yaml, log.txt, metrics.jsonl, tensorboard/, samples/, checkpoints/, export/."""
    steps: int
    """Optimiser steps from start to end."""
    global_batch_size: int
    """Samples per optimiser step over all ranks."""
    seed: int = 0
    log_every: int = 20
    """Steps."""
    sample_every: int = 500
    """Steps between pictures in TensorBoard; 0 switches them off."""
    checkpoint_every: int = 500
    """Steps."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    precision: Literal["fp32", "bf16"] = "fp32"
    deepspeed: str = "configs/deepspeed/zero2.json"
    """DeepSpeed's own file; batch, learning rate, clipping and precision are set from here and must not be in it."""

    def __post_init__(self) -> None:
        """Refuses counts that no run can have."""
        for name in ("steps", "global_batch_size", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise Refusal(f"run.{name}={getattr(self, name)}: expected at least 1")


# ----------------------------------------------------------------------------------------------------------------------
# Stage 1: the tokenizer


@dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """2D or 3D VQGAN (MAGVIT section 3.1)."""

    ndim: Literal[2, 3] = 3
    """2: every frame by itself; 3: space and time."""
    base_channels: int = 64
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (True, True, False)
    """One flag per down-sampler, shallow to deep; the spatial factor is always 2."""
    embedding_dim: int = 256
    codebook_size: int = 1024
    padding: Padding = "reflect"
    """`reflect`: the paper; `zeros`: the released code. The 2D decoder pads with zeros in both."""
    num_groups: int = 32
    """Groups of every GroupNorm."""


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """StyleGAN-like discriminator of the VQGAN's `ndim`."""

    base_channels: int = 64
    channel_multipliers: tuple[int, ...] = (2, 4, 4, 4, 4)


@dataclass(frozen=True, kw_only=True)
class VQGANLossConfig:
    """Weights of stage 1's losses (spec: MAGVIT section 3.1 and appendix B)."""

    reconstruction_weight: float = 1.0
    perceptual_weight: float = 0.1
    perceptual: Perceptual = "lpips_vgg"
    """`random`: LPIPS on an untrained AlexNet, for demos and tests only."""
    adversarial_weight: float = 0.1
    adversarial_start: int = 0
    """First step with a discriminator; = run.steps trains without one."""
    r1_weight: float = 10.0
    """Times the squared gradient norm, without a half."""
    lecam_weight: float = 0.001
    commitment_weight: float = 0.25
    entropy_weight: float = 0.1
    entropy_temperature: float = 0.01
    ema_decay: float = 0.999
    """Of the generator's weights and of LeCam's averages."""


@dataclass(frozen=True, kw_only=True)
class TrainVQGANConfig:
    """magvit train-vqgan: clip shards -> tokenizer."""

    run: RunConfig
    clips: ClipsConfig
    model: VQGANConfig = VQGANConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    loss: VQGANLossConfig = VQGANLossConfig()
    optim: OptimConfig = OptimConfig()
    init: str | None = None
    """Export folder to start from, for instance that of `magvit inflate`; null starts from random weights."""


@dataclass(frozen=True, kw_only=True)
class InflateConfig:
    """magvit inflate: 2D VQGAN -> 3D VQGAN (MAGVIT section 3.1, table 7)."""

    source: str
    """Export folder of a 2D VQGAN."""
    output: str
    """Folder that receives the 3D VQGAN, its unaveraged weights and its discriminator."""
    mode: Inflation = "central"
    temporal_downsample: tuple[bool, ...] = (True, True, False)
    num_frames: int = 16
    """Clip length the discriminator is built for."""
    size_px: int = 128
    """Frame side the discriminator is built for."""


# ----------------------------------------------------------------------------------------------------------------------
# Token shards


@dataclass(frozen=True, kw_only=True)
class PrecomputeTokensConfig:
    """magvit precompute-tokens: clip shards and a tokenizer -> token shards."""

    tokenizer: str
    """Export folder of a 3D VQGAN."""
    clips: ClipsConfig
    output: str
    """Folder that receives one token shard per clip shard, and dataset.json."""
    views: int = 1
    """Augmentation views (window and flip) per video."""
    batch_size: int = 16
    """Clips per forward pass."""
    seed: int = 0


# ----------------------------------------------------------------------------------------------------------------------
# Stage 2: the transformer


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """BERT-style transformer (MAGVIT section 3.2, appendix B)."""

    num_layers: int = 12
    hidden_size: int = 768
    mlp_dim: int = 3072
    num_heads: int = 12
    latent_shape: tuple[int, int, int] | None = None
    """(t, h, w); null takes it from the token shards."""
    codebook_size: int | None = None
    """null takes it from the token shards."""
    num_classes: int | None = None
    """null takes it from the token shards."""
    multi_task: bool = True
    """A task token before the class token, and 16 special rows instead of 1."""
    inpainting_token: Literal["inpainting", "outpainting"] = "inpainting"
    """`outpainting`: inpainting shares its task token, as the released code does."""
    dropout: float = 0.1


@dataclass(frozen=True, kw_only=True)
class CommitLossConfig:
    """Weights of COMMIT's three parts (MAGVIT eq. 4-5) and label smoothing."""

    refine_weight: float = 1.0
    mask_weight: float = 1.0
    reconstruct_weight: float = 1.0
    label_smoothing: float = 1e-4


@dataclass(frozen=True, kw_only=True)
class TrainCommitConfig:
    """magvit train-commit: token shards -> transformer."""

    run: RunConfig
    tokens: str
    """Folder of token shards, split train."""
    tokenizer: str
    """Export folder of the tokenizer that wrote them; other tokens are refused."""
    model: TransformerConfig = TransformerConfig()
    loss: CommitLossConfig = CommitLossConfig()
    optim: OptimConfig = OptimConfig(betas=(0.9, 0.96), weight_decay=0.045, gradient_clipping=1.0, warmup_steps=5000)
    tasks: tuple[Task, ...] = TASKS
    """A task named twice is drawn twice as often."""
    one_task_per_step: bool = True
    """True: the paper's order, one task for a whole batch; false: a task per sample."""
    mask_count: Literal["floor", "ceil"] = "floor"
    """Rounding of the number of masked tokens: `floor` the released code, `ceil` the paper."""
    validation_tokens: str | None = None
    """Token shards whose cross-entropy per task is logged at run.sample_every; null switches it off."""


# ----------------------------------------------------------------------------------------------------------------------
# Generation, evaluation, report


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """COMMIT decoding (MAGVIT algorithm 1)."""

    num_steps: int = 12
    choice_temperature: float = 4.5
    """Scale of the Gumbel noise on the confidences; falls linearly to 0."""
    sampling_temperature: float = 1.0
    """Divides the logits before sampling."""
    schedule: Literal["cosine", "uniform", "exp", "log"] = "cosine"
    guidance_scale: float = 0.0


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """magvit generate: task, condition clip and class -> videos."""

    tokenizer: str
    """Export folder of a 3D VQGAN."""
    transformer: str
    """Export folder of a transformer."""
    output: str
    """Folder that receives <task>/NNNN_{condition,generated,real}.mp4 and samples.npz."""
    clips: ClipsConfig
    """Where condition clips and classes come from."""
    tasks: tuple[Task, ...] = TASKS
    samples_per_task: int = 8
    decoding: DecodingConfig = DecodingConfig()
    seed: int = 0
    fps: int = 8


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """magvit evaluate: models on held-out clips -> results.json, every figure with its baseline."""

    tokenizer: str
    inflated: str | None = None
    """Export folder of the un-trained inflated tokenizer, the baseline of the trained one."""
    transformer: str
    train_tokens: str
    """Token shards that give the per-position frequency table."""
    test_tokens: str
    clips: ClipsConfig
    """Held-out clips."""
    output: str
    """Folder that receives results.json and reconstructions.npz."""
    num_clips: int = 64
    fvd_samples: int = 64
    """Generated clips per task for the Frechet distance; 0 skips it."""
    features: Literal["random"] = "random"
    """Feature network of the Frechet distance; `random` is untrained and not comparable with any paper."""
    decoding: DecodingConfig = DecodingConfig()
    batch_size: int = 16
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """magvit report: run folders -> one self-contained HTML page."""

    title: str = "magvit_scale"
    runs: tuple[str, ...]
    """Run folders whose metrics.jsonl is plotted."""
    generated: str
    """Output folder of `magvit generate`."""
    evaluation: str
    """Output folder of `magvit evaluate`."""
    output: str
    """The HTML file."""
    gate: Literal["fail", "warn"] = "fail"
    """What a figure below its baseline does: end non-zero, or only say so."""


# ----------------------------------------------------------------------------------------------------------------------
# The launcher (slurm)


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of a chain: a program, its arguments, its processes."""

    program: str
    """Module with main(argv), for instance magvit_scale.train_vqgan."""
    configs: tuple[str, ...] = ()
    """The program's YAML files."""
    overrides: tuple[str, ...] = ()
    """key=value arguments; {root}, {videos} and {scaled:N} (N steps at reference_minutes) are filled in."""
    overrides_with_videos: tuple[str, ...] = ()
    """Appended where `videos` is given."""
    when: Literal["always", "videos", "no_videos"] = "always"
    """`videos`: a stage only of runs on the user's own videos; `no_videos`: only of runs without them."""
    steps: int | None = None
    """Training steps at reference_minutes; becomes run.steps, scaled."""
    tasks: int = 1
    """Processes per node."""
    nodes: int = 1
    """SLURM only."""
    cpus_per_task: int | None = None
    """SLURM only; null takes the cluster's default."""
    gpus_per_node: int = 0
    """0 hides the GPUs of the machine from the stage."""


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig:
    """What every SLURM job of a chain asks for; nothing has a cluster's name built in."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    mem_gb: float | None = None
    """Memory per node in GB."""
    time_limit_minutes: int = 1440
    """A stage that reaches it is requeued and continues."""
    signal_delay_s: int = 120
    """Seconds between the warning signal and the end of a job."""
    setup: tuple[str, ...] = ()
    """Shell lines before the program, for instance `module load cuda`."""
    additional: dict[str, str] = field(default_factory=dict)
    """Any other sbatch option, by its long name."""


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """python -m slurm.launch: a chain of stages, one dependent job each, on this machine or on SLURM."""

    root: str
    """Run folder of the whole chain."""
    cluster: Literal["local", "slurm", "debug"] = "local"
    """`local`: processes of this machine; `debug`: everything in the launcher's own process."""
    minutes: float = 15.0
    """Training steps are scaled by minutes / reference_minutes."""
    reference_minutes: float = 15.0
    """Minutes that the steps in this configuration were written for."""
    videos: str | None = None
    """Folder of the user's own videos."""
    resources: ResourcesConfig = ResourcesConfig()
    stages: dict[str, StageConfig]
    """The stages by name, in order."""


# ----------------------------------------------------------------------------------------------------------------------
# Reading, writing, explaining


def parse(schema: type[Config], argv: Sequence[str] | None = None) -> Config:
    """Reads `CONFIG... [key=value ...]`; without arguments of its own it takes the command line's. `--help` explains
    the keys.

    Raises:
        Refusal: see `load`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(arguments):
        print(describe(schema))  # noqa: T201
        raise SystemExit(0)
    overrides = [argument for argument in arguments if "=" in argument]
    return load(schema, [argument for argument in arguments if "=" not in argument], overrides)


@contextmanager
def refusals_end_the_program(program: str) -> Iterator[None]:
    """Turns bad input and a failing disk into one line on stderr and exit status 1; a defect keeps its traceback."""
    try:
        yield
    except (Refusal, OSError) as error:
        raise SystemExit(f"{program}: {error}") from error


def load(schema: type[Config], sources: Sequence[str | Path | dict[str, Any]], overrides: Sequence[str] = ()) -> Config:
    """Reads a configuration: YAML files (or plain dictionaries) merged left to right, then `key.sub=value` overrides.

    Raises:
        Refusal: a file is missing or no YAML, a key is unknown or missing, a value has the wrong type.
    """
    merged = OmegaConf.structured(schema)
    for source in [*sources, *([list(overrides)] if overrides else [])]:
        name = str(source) if isinstance(source, str | Path) else "configuration"
        try:
            merged = OmegaConf.merge(merged, _read(source))
        except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
            raise Refusal(f"{name}: {_first_lines(error)}") from error
    if missing := sorted(OmegaConf.missing_keys(merged)):
        raise Refusal(f"{schema.__name__}: no value for {', '.join(missing)}; give a YAML file or KEY=VALUE")
    return _build(schema, OmegaConf.to_container(merged, resolve=True))


def _read(source: str | Path | dict[str, Any] | list[str]) -> Any:
    if isinstance(source, str | Path):
        return OmegaConf.load(source)
    return OmegaConf.from_dotlist(source) if isinstance(source, list) else OmegaConf.create(source)


def dump(config: Any, path: str | Path) -> None:
    """Writes a configuration as YAML that `load` reads back to an equal one."""
    Path(path).write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def describe(schema: type) -> str:
    """The help text of a configuration: every key with type, default and meaning."""
    summary = (schema.__doc__ or "").strip()
    return "\n".join([summary, "", "keys (KEY=VALUE, or in a YAML file):", *_describe_fields(schema, "")])


def _describe_fields(schema: Any, prefix: str) -> Iterator[str]:
    hints, meanings = get_type_hints(schema), _field_docstrings(schema)
    for item in fields(schema):
        hint, default = hints[item.name], item.default
        if is_dataclass(hint):
            yield from _describe_fields(hint, f"{prefix}{item.name}.")
            continue
        if get_origin(hint) is dict and is_dataclass(entry := get_args(hint)[1]):
            yield from _describe_fields(entry, f"{prefix}{item.name}.NAME.")
            continue
        value = "required" if default is MISSING else f"default {default!r}"
        allowed = (
            " | ".join(map(str, get_args(hint)))
            if get_origin(hint) is Literal
            else getattr(hint, "__name__", str(hint))
        )
        yield f"  {prefix}{item.name}  ({allowed}; {value})"
        if meaning := meanings.get(item.name):
            yield textwrap.indent(textwrap.fill(meaning, 112), "      ")


def _field_docstrings(schema: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(schema))).body[0].body  # type: ignore[attr-defined]
    return {
        ast.unparse(item.target): " ".join(ast.literal_eval(text.value).split())
        for item, text in itertools.pairwise(body)
        if isinstance(item, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def _build(schema: type[Config], values: Any) -> Config:
    hints = get_type_hints(schema)
    names = [item.name for item in fields(schema)]  # type: ignore[arg-type]
    return schema(**{name: _build_value(hints[name], values[name]) for name in names})


def _build_value(hint: Any, value: Any) -> Any:
    if is_dataclass(hint):
        return _build(hint, value)  # type: ignore[arg-type]
    if get_origin(hint) is dict and is_dataclass(entry := get_args(hint)[1]):
        return {name: _build(entry, part) for name, part in value.items()}  # type: ignore[arg-type]
    return tuple(value) if isinstance(value, list) else value


def _first_lines(error: Exception) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines()[:2] if line.strip())
