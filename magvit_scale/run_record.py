"""What is known of an exported model: what the folder of its run says, the clips that it is for, its classes.

Nothing is guessed and nothing fetched: what no file says is None. Data sets that a run names are believed only as long
as they have the fingerprint with which it trained.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magvit_scale.config import ClipsConfig, Refusal, TrainCommitConfig, TrainVQGANConfig, load
from magvit_scale.data.shards import Dataset, load_dataset
from magvit_scale.data.sources import fingerprint
from magvit_scale.data.token_facts import TokenFacts, facts_of, read_dataset
from magvit_scale.page.inputs import read_run
from magvit_scale.pretrained import find_folder, load_tensors
from magvit_scale.training.engine_state import MASTER
from magvit_scale.training.retention import is_complete, newest_first
from magvit_scale.training.slices import read_whole

PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run folder says."""

    config: TrainVQGANConfig | TrainCommitConfig
    losses: Mapping[str, float]
    """The last logged value of everything under loss/ and validation/."""
    environment: Mapping[str, Any]
    """env.json; empty where there is none."""
    data: str | None
    """Fingerprint of the data set."""
    num_ranks: int | None
    """Of the newest checkpoint."""
    step: int | None
    """Of the checkpoint whose weights the export holds; None where there is none of them any more."""


@dataclass(frozen=True, kw_only=True)
class ClipFacts:
    """The clips that a model was trained on."""

    num_frames: int | None = None
    size_px: int | None = None
    frame_stride: int | None = None
    """Frames of the stored videos from one of a clip to the next."""
    fps: float | None = None
    """Of a clip."""


def read_training_config(path: Path) -> TrainVQGANConfig | TrainCommitConfig:
    """Reads the config.yaml of either stage.

    Raises:
        Refusal: it is missing, or another version's.
    """
    # Only one of the two stages has token shards.
    is_commit = any(line.startswith("tokens:") for line in path.read_text().splitlines())
    return load(TrainCommitConfig, [path]) if is_commit else load(TrainVQGANConfig, [path])


def read_run_record(model: str | Path) -> RunRecord | None:
    """What the run folder around an export folder says; None where there is none.

    Args:
        model: as in `pretrained.find_folder`.

    Raises:
        Refusal: a file of the run is damaged or another version's.
    """
    folder = find_folder(model).resolve().parent
    if not ((folder / "config.yaml").is_file() and (folder / "metrics.jsonl").is_file()):
        return None
    config, run = read_training_config(folder / "config.yaml"), read_run(folder)
    checkpoints = [path for path in newest_first(folder / "checkpoints") if is_complete(path)]
    state = json.loads((checkpoints[0] / "state.json").read_text()) if checkpoints else {}
    return RunRecord(
        config=config,
        losses={k: values[-1] for k, (_, values) in run.curves.items() if k.startswith(("loss/", "validation/"))},
        environment=run.environment,
        data=state.get("data"),
        num_ranks=state.get("world_size"),
        step=_step_of(load_tensors(model), checkpoints, config),
    )


def read_clip_facts(model: str | Path, record: RunRecord | None) -> ClipFacts:
    """The clips of a VQGAN, as its published folder or its run says."""
    path = find_folder(model) / PREPROCESSOR
    if path.is_file():
        values = json.loads(path.read_text())
        return ClipFacts(**{name: values.get(name) for name in asdict(ClipFacts())})
    if record is None or isinstance(record.config, TrainCommitConfig):
        return ClipFacts()
    clips, dataset = record.config.clips, open_clips(record)
    fps = dataset.fps / clips.frame_stride if dataset and dataset.fps else None
    return ClipFacts(num_frames=clips.num_frames, size_px=clips.size_px, frame_stride=clips.frame_stride, fps=fps)


def open_clips(record: RunRecord) -> Dataset | None:
    """The one set of clip shards with which a VQGAN was trained, where it still lies on this machine."""
    if isinstance(record.config, TrainCommitConfig) or not _is_here(record.config.clips):
        return None
    clips = record.config.clips
    return load_dataset(clips.shards) if fingerprint(clips) == record.data else None


def open_tokens(record: RunRecord) -> TokenFacts | None:
    """What the token shards say with which a transformer was trained, where they still lie on this machine."""
    if isinstance(record.config, TrainVQGANConfig):
        return None
    try:
        content = read_dataset(Path(record.config.tokens))
    except Refusal:
        return None
    return TokenFacts(**facts_of(content)) if content["hash"] == record.data else None


def _is_here(clips: ClipsConfig) -> bool:
    return bool(clips.shards) and (Path(clips.shards) / "dataset.json").is_file()


def _step_of(
    weights: Mapping[str, Tensor], checkpoints: list[Path], config: TrainVQGANConfig | TrainCommitConfig
) -> int | None:
    """An export does not say of which checkpoint it is, so its weights are compared."""
    prefix = f"transformer/{MASTER}" if isinstance(config, TrainCommitConfig) else "average"
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for checkpoint in checkpoints:
        whole = read_whole(checkpoint, prefix, shapes)
        if all(torch.equal(whole[name], tensor) for name, tensor in weights.items()):
            return int(json.loads((checkpoint / "state.json").read_text())["step"])
    return None
