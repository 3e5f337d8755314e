"""What is published, gathered from model folders and the runs around them, and checked to fit together."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import nn

from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import PublishConfig, Refusal, TransformerConfig
from magvit_scale.data.token_facts import TokenFacts
from magvit_scale.metrics.results import Result
from magvit_scale.pipeline import MagvitPipeline
from magvit_scale.pretrained import find_folder, hash_model, refuse_other_tokenizer
from magvit_scale.run_record import ClipFacts, RunRecord, open_clips, open_tokens, read_clip_facts, read_run_record
from magvit_scale.vqgan.autoencoder import VQGAN

Role = Literal["tokenizer", "transformer"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One model: its folder, the model itself, and what its run says."""

    role: Role
    folder: Path
    sha256: str
    model: Any
    record: RunRecord | None

    @property
    def num_parameters(self) -> int:
        """Numbers that were trained."""
        module: nn.Module = self.model
        return sum(parameter.numel() for parameter in module.parameters())


@dataclass(frozen=True, kw_only=True)
class Contents:
    """All that a published folder and its card are made of."""

    name: str
    """By which a user finds the folder: owner/name, or its own name."""
    tokenizer: Part
    transformer: Part | None
    classes: tuple[str, ...]
    """Empty where nothing names them."""
    clips: ClipFacts
    tokens: TokenFacts | None
    """Of the transformer's token shards, where they could be read."""
    results: tuple[Result, ...]
    license: str
    datasets: tuple[str, ...]
    """Ids of the hub; both as the user says."""

    @cached_property
    def parts(self) -> dict[Role, Part]:
        """The models by role."""
        return {part.role: part for part in (self.tokenizer, self.transformer) if part is not None}

    @property
    def hashes(self) -> dict[str, str]:
        """sha256 of each model's weights by role."""
        return {role: part.sha256 for role, part in self.parts.items()}

    @property
    def num_classes(self) -> int:
        """Of the transformer."""
        return self.transformer.model.num_classes if self.transformer else 0


def gather(config: PublishConfig, name: str, results: Mapping[Path, Result]) -> Contents:
    """Reads and joins the parts; what the user gives stands before what the runs say.

    Args:
        config: the user's words.
        name: see `Contents`.
        results: by file.

    Raises:
        Refusal: a model cannot be read, the models are not of one run, a result is of other models, or there are not as
            many names as classes.
    """
    tokenizer = _read_part("tokenizer", config.tokenizer)
    transformer = _read_part("transformer", config.transformer) if config.transformer else None
    tokens = open_tokens(transformer.record) if transformer and transformer.record else None
    clips = read_clip_facts(tokenizer.folder, tokenizer.record)
    if transformer is not None:
        MagvitPipeline(tokenizer.model, transformer.model)  # refuses another codebook
        learnt = transformer.model.config.tokenizer_hash or (tokens.tokenizer_hash if tokens else None)
        refuse_other_tokenizer(tokenizer.folder, learnt)
        clips = _clips_of_both(tokenizer.model, transformer.model.config, clips, tokens)
    contents = Contents(
        name=name,
        tokenizer=tokenizer,
        transformer=transformer,
        classes=config.classes or _read_classes(tokenizer, transformer, tokens),
        clips=replace(clips, fps=config.fps) if config.fps else clips,
        tokens=tokens,
        results=tuple(results.values()),
        license=config.license,
        datasets=config.datasets,
    )
    if config.classes and len(config.classes) != contents.num_classes:
        found, expected = len(config.classes), contents.num_classes
        raise Refusal(f"classes: {found} names, the transformer has {expected} classes; give each its name")
    for path, result in results.items():
        _refuse_other_models(path, result, contents.hashes)
    return contents


def _read_part(role: Role, folder: str) -> Part:
    """Reads a model whole: what is published can be read."""
    model = VQGAN.from_pretrained(folder) if role == "tokenizer" else CommitTransformer.from_pretrained(folder)
    record = read_run_record(folder)
    return Part(role=role, folder=find_folder(folder), sha256=hash_model(folder), model=model, record=record)


def _refuse_other_models(path: Path, result: Result, hashes: Mapping[str, str]) -> None:
    if "tokenizer" not in result.models and "transformer" not in result.models:
        raise Refusal(f"{path}: names no models, expected the sha256 of these: {dict(hashes)}; evaluate again")
    for role, found in result.models.items():
        if found != (expected := hashes.get(role)):
            raise Refusal(f"{path}: is of a {role} {found}, expected {expected}; evaluate this model")


def _clips_of_both(
    tokenizer: VQGAN, config: TransformerConfig, clips: ClipFacts, tokens: TokenFacts | None
) -> ClipFacts:
    """A transformer knows one size of clips, whatever else its tokenizer was trained on."""
    frames, height, _ = (a * b for a, b in zip(config.latent_shape or (0, 0, 0), tokenizer.downsample, strict=True))
    stride = tokens.clips["frame_stride"] if tokens else clips.frame_stride
    fps = clips.fps if stride == clips.frame_stride else None
    return ClipFacts(num_frames=frames, size_px=height, frame_stride=stride, fps=fps)


def _read_classes(tokenizer: Part, transformer: Part | None, tokens: TokenFacts | None) -> tuple[str, ...]:
    if transformer is None:
        return ()
    dataset = open_clips(tokenizer.record) if tokenizer.record and tokens is None else None
    names = tokens.classes if tokens else dataset.classes if dataset else ()
    return names if len(names) == transformer.model.num_classes else ()
