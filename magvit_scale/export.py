"""A checkpoint -> model folders: `magvit export run=runs/vqgan [step=1000] [output=FOLDER]`.

Joins the slices of all ranks, whatever ZeRO stage and world size wrote them; one process, no GPU. A VQGAN's folder
holds the averaged weights, with unaveraged/ and discriminator/ beside them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import ExportConfig, Refusal, TrainCommitConfig, parse
from magvit_scale.pretrained import save_model, shapes_of
from magvit_scale.run_record import read_training_config
from magvit_scale.training.engine_state import MASTER
from magvit_scale.training.retention import is_complete, latest
from magvit_scale.training.slices import read_whole
from magvit_scale.vqgan.autoencoder import VQGAN
from magvit_scale.vqgan.discriminator import Discriminator, resolve_discriminator


def main(argv: Sequence[str] | None = None) -> None:
    """Exports; see the module's text."""
    config = parse(ExportConfig, argv)
    print(export_run(config.run, config.step, config.output))  # noqa: T201


def export_run(run: str | Path, step: int | None = None, output: str | Path | None = None) -> Path:
    """Writes a run's models; returns their folder. One process.

    Args:
        run: run folder.
        step: which checkpoint; None takes the newest.
        output: folder; None takes `run`/export.

    Raises:
        Refusal: no complete checkpoint of that step.
    """
    checkpoint = _find(Path(run) / "checkpoints", step)
    output = Path(run) / "export" if output is None else Path(output)
    config = read_training_config(checkpoint / "config.yaml")
    if isinstance(config, TrainCommitConfig):
        _save(CommitTransformer, config.model, checkpoint, f"transformer/{MASTER}", output)
    else:
        judge = resolve_discriminator(config)
        _save(VQGAN, config.model, checkpoint, f"generator/{MASTER}", output / "unaveraged")
        _save(Discriminator, judge, checkpoint, f"discriminator/{MASTER}", output / "discriminator")
        _save(VQGAN, config.model, checkpoint, "average", output)
    return output


def _find(folder: Path, step: int | None) -> Path:
    checkpoint = latest(folder) if step is None else folder / f"step_{step:08d}"
    if checkpoint is None or not is_complete(checkpoint):
        what = "no complete checkpoint" if step is None else f"no complete checkpoint of step {step}"
        there = ", ".join(path.name for path in sorted(folder.glob("step_*")) if is_complete(path)) or "none"
        raise Refusal(f"{folder}: {what}; there are: {there}")
    return checkpoint


def _save(kind: type[nn.Module], config: Any, checkpoint: Path, prefix: str, output: Path) -> None:
    with torch.device("meta"):
        model = kind(config)
    save_model(model, config, output, read_whole(checkpoint, prefix, shapes_of(model)))
