"""How a model was trained, as facts by name for a table."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from urllib.parse import urlsplit

from magvit_scale.card.contents import Part
from magvit_scale.card.tables import NOT_KNOWN
from magvit_scale.config import ClipsConfig, OptimConfig, TrainCommitConfig, TrainVQGANConfig
from magvit_scale.data.sources import is_stream
from magvit_scale.run_record import RunRecord

VERSIONS = ("torch", "deepspeed")
"""Of env.json; its host is nobody's business."""


def training_facts(part: Part) -> dict[str, str]:
    """Facts of a run by name, in the order in which a reader asks."""
    if part.record is None:
        return {"run": NOT_KNOWN}
    return dict(_facts(part.record))


def _facts(record: RunRecord) -> Iterator[tuple[str, str]]:
    config = record.config
    yield from _data(config)
    yield "fingerprint of the data", record.data or NOT_KNOWN
    yield "step of these weights", f"{record.step}" if record.step is not None else NOT_KNOWN
    yield "steps of the run", f"{config.run.steps}"
    yield "samples per step", f"{config.run.global_batch_size}"
    yield "ranks", f"{record.num_ranks}" if record.num_ranks is not None else NOT_KNOWN
    yield "seed", f"{config.run.seed}"
    yield "optimiser", _optimiser(config.optim)
    yield "precision", config.run.precision
    yield from _stage(config)
    yield "last logged losses", _show(record.losses)
    yield "versions", ", ".join(f"{n} {record.environment[n]}" for n in VERSIONS if n in record.environment)


def _data(config: TrainVQGANConfig | TrainCommitConfig) -> Iterator[tuple[str, str]]:
    if isinstance(config, TrainCommitConfig):
        yield "data", f"token shards `{PurePath(config.tokens).name}`"
        shares = Counter(config.tasks)
        yield "tasks", ", ".join(f"{task} x {count}" if count > 1 else task for task, count in shares.items())
    else:
        yield "data", f"{_names(config.clips)}, split {config.clips.split}"
        every = f"every {config.clips.frame_stride} stored frames" if config.clips.frame_stride > 1 else "every frame"
        yield "clips", f"{config.clips.num_frames} frames of {config.clips.size_px} px, {every}"


def _names(clips: ClipsConfig) -> str:
    """Names only: where they lie is the trainer's own affair, and an address may hold a password."""
    if clips.sources:
        return ", ".join(f"`{name}` (weight {source.weight:g})" for name, source in sorted(clips.sources.items()))
    if is_stream(clips.shards):
        return "a stream"
    return f"clip shards `{PurePath(urlsplit(clips.shards).path).name}`"


def _optimiser(optim: OptimConfig) -> str:
    clipped = f", gradients clipped at {optim.gradient_clipping:g}" if optim.gradient_clipping else ""
    return (
        f"AdamW, learning rate {optim.learning_rate:g}, {optim.warmup_steps} steps of warm-up, then a cosine, betas "
        f"{optim.betas[0]:g} and {optim.betas[1]:g}, weight decay {optim.weight_decay:g}{clipped}"
    )


def _stage(config: TrainVQGANConfig | TrainCommitConfig) -> Iterator[tuple[str, str]]:
    if isinstance(config, TrainCommitConfig):
        return
    untrained = ", an UNTRAINED network" if config.loss.perceptual == "random" else ""
    yield "perceptual loss", f"{config.loss.perceptual}{untrained}, weight {config.loss.perceptual_weight:g}"
    yield "adversarial loss", f"weight {config.loss.adversarial_weight:g} from step {config.loss.adversarial_start}"
    yield "started from", "another model" if config.init else "random weights"


def _show(losses: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
