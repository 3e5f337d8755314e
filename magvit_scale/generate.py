"""Task, condition clip and class -> videos: `magvit generate configs/generate/demo.yaml [key=value ...]`.

Conditions and classes come from held-out clips. Writes, per task and sample, the condition, the generated and the
real video as mp4, and samples.npz with the same frames and the decoding trajectory of each task's first sample.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, repeat
from numpy.typing import NDArray
from torch import Tensor

from magvit_scale.commit.tasks import condition_mask
from magvit_scale.config import GenerateConfig, Task, dump, parse
from magvit_scale.data.clips import held_out_clips, to_frames, to_unit_range
from magvit_scale.data.sources import open_clips
from magvit_scale.files import write_npz
from magvit_scale.pipeline import Generated, MagvitPipeline
from magvit_scale.progress import progress
from magvit_scale.video import encode_mp4

NOT_GIVEN = 0.5
"""Grey level of pixels that a task does not give, in the condition's picture."""


def main(argv: Sequence[str] | None = None) -> None:
    """Generates `samples_per_task` clips for every task, one process."""
    config = parse(GenerateConfig, argv)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    dump(config, output / "config.yaml")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipeline = MagvitPipeline.from_pretrained(config.tokenizer, config.transformer, device)
    real, labels = load_conditions(config, device)
    arrays: dict[str, NDArray] = {"classes": np.array(open_clips(config.clips).classes), "fps": np.array(config.fps)}
    for task in progress(config.tasks, "generate", len(config.tasks), unit="task"):
        made = pipeline(task, condition=real, labels=labels, decoding=config.decoding, seed=config.seed)
        clips = {"condition": show_given(task, real), "generated": made.clips, "real": real}
        frames = {f"{task}/{kind}": to_frames(clip) for kind, clip in clips.items()}
        write_videos(output, frames, config.fps)
        arrays |= frames | {f"{task}/label": labels.cpu().numpy()} | trajectory(pipeline, task, made)
    write_npz(output / "samples.npz", arrays)


def load_conditions(config: GenerateConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Held-out clips 'n 3 t h w' in [0, 1] and their labels 'n', spread over the split."""
    batches = list(held_out_clips(config.clips, num_clips=config.samples_per_task, batch_size=config.samples_per_task))
    clips = torch.cat([to_unit_range(batch["clip"]) for batch in batches])
    labels = torch.cat([batch["label"] for batch in batches])
    return clips.to(device), labels.to(device)


def show_given(task: Task, clip: Tensor) -> Tensor:
    """The pixels a task gives, the others grey; 'n 3 t h w'."""
    _, _, t, h, w = clip.shape
    given = condition_mask(task, (t, h, w)).to(clip)
    return clip * given + NOT_GIVEN * (1 - given)


def trajectory(pipeline: MagvitPipeline, task: Task, made: Generated) -> dict[str, NDArray]:
    """The first sample after each decoding step: its clip, and which tokens are fixed by then."""
    t, h, w = pipeline.transformer.latent_shape
    clips = pipeline.detokenize(made.decoded.tokens_by_step[:, 0])
    fixed = rearrange(made.decoded.fixed_by_step[:, 0], "k (t h w) -> k t h w", t=t, h=h, w=w)
    return {f"trajectory/{task}/clips": to_frames(clips), f"trajectory/{task}/fixed": fixed.cpu().numpy()}


def write_videos(output: Path, frames: dict[str, NDArray[np.uint8]], fps: int) -> None:
    """Writes <task>/NNNN_<kind>.mp4, enlarged so that players show small clips well."""
    for name, clips in frames.items():
        task, kind = name.split("/")
        (output / task).mkdir(exist_ok=True)
        for index, clip in enumerate(clips):
            scale = max(1, 128 // clip.shape[1])
            large = repeat(clip, "t h w c -> t (h sh) (w sw) c", sh=scale, sw=scale)
            encode_mp4(large, output / task / f"{index:04d}_{kind}.mp4", fps=fps)
