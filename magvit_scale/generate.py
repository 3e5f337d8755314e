"""Task, condition clip and class -> videos: `magvit generate configs/generate/demo.yaml [key=value ...]`.

Runs alone, under torchrun, the deepspeed launcher or srun; ranks share the samples. Writes, per task and sample, the
condition, the generated and the real clip, the tokens of all, a picture of the decoding steps, and samples.npz for the
report. Killed and started again it writes the same files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from magvit_scale.conditions import Batch, Conditions, is_sliding, show_condition
from magvit_scale.config import GenerateConfig, Task, parse, to_yaml
from magvit_scale.data.clips import to_frames
from magvit_scale.files import write_npz, write_text
from magvit_scale.pipeline import Generated, MagvitPipeline
from magvit_scale.progress import progress_bar
from magvit_scale.sample_files import TaskSamples, in_turn, token_grids, trajectory, write_samples, write_steps
from magvit_scale.training import distributed
from magvit_scale.training.ranks import Ranks


def main(argv: Sequence[str] | None = None) -> None:
    """Generates `samples_per_task` clips for every task. Collective: every rank must call."""
    config = parse(GenerateConfig, argv)
    ranks = distributed.start()
    models = config.model or str(config.tokenizer), config.transformer
    pipeline = MagvitPipeline.from_pretrained(*models, ranks.device, config.compute)
    config = replace(config, tasks=config.tasks or pipeline.tasks)
    conditions, output = Conditions(config, pipeline), Path(config.output)
    fps = config.fps or pipeline.fps
    if ranks.is_main:
        write_text(output / "config.yaml", to_yaml(config))
    samples: dict[Task, TaskSamples] = {task: TaskSamples() for task in config.tasks}
    for batch, task in in_order(config, conditions, ranks):
        made = generate(config, pipeline, task, batch)
        given = show_condition(config, pipeline, task, batch.clips)
        clips = {"condition": to_frames(given), "generated": to_frames(made.clips), "real": to_frames(batch.clips)}
        shown = clips if conditions.has_clips else {"generated": clips["generated"]}
        write_samples(output / task, batch.numbers, shown, config.formats, fps)
        samples[task].add(batch.numbers, batch.labels, token_grids(pipeline, made), clips)
        if batch.numbers[0] == 0:
            samples[task].trajectory = trajectory(pipeline, made)
            write_steps(output / task, samples[task].trajectory)
    arrays: dict[str, NDArray[Any]] = {"classes": np.array(conditions.classes), "fps": np.array(fps)}
    for task, own in samples.items():
        arrays |= gather(output, task, own, config.seed, ranks)
    if ranks.is_main:
        write_npz(output / "samples.npz", arrays)
    distributed.stop()


def in_order(config: GenerateConfig, conditions: Conditions, ranks: Ranks) -> Iterator[tuple[Batch, Task]]:
    """Every task for every batch of this rank, under a progress bar of the main rank."""
    tasks = tuple(dict.fromkeys(config.tasks))
    total = len(tasks) * conditions.num_batches(ranks)
    with progress_bar("generate", total, unit="batch", is_shown=ranks.is_main) as bar:
        for batch in conditions.batches(ranks):
            for task in tasks:
                yield batch, task
                bar.update(1)


def generate(config: GenerateConfig, pipeline: MagvitPipeline, task: Task, batch: Batch) -> Generated:
    """A batch of one task; sample i has the seed config.seed + i."""
    num_frames, seeds = batch.clips.shape[2], [config.seed + number for number in batch.numbers]
    told: dict[str, Any] = {
        "condition": batch.clips,
        "label": batch.labels,
        "decoding": config.decoding,
        "seed": seeds,
    }
    if num_frames == pipeline.clip_shape[0]:
        return pipeline(task, **told)
    if is_sliding(task):
        return pipeline.extend(task, num_frames=num_frames, **told)
    return pipeline.windows(task, overlap_frames=config.overlap_frames, **told)


def gather(output: Path, task: Task, own: TaskSamples, seed: int, ranks: Ranks) -> dict[str, NDArray[Any]]:
    """Writes <task>/tokens.npz and returns the task's part of samples.npz. Collective."""
    tokens, labels = in_turn(own.tokens, torch.int64, ranks), in_turn(own.labels, torch.int64, ranks)
    shown = {f"{task}/{kind}": in_turn(clips, torch.uint8, ranks) for kind, clips in own.frames.items()}
    if ranks.is_main:
        seeds = seed + np.arange(len(tokens))
        write_npz(output / task / "tokens.npz", {"tokens": tokens, "seeds": seeds, "labels": labels})
    shown[f"{task}/label"] = labels[: len(shown[f"{task}/generated"])]
    return shown | {f"trajectory/{task}/{name}": array for name, array in own.trajectory.items()}
