"""The card's example of use: a program that runs as it stands, once the models are there."""

from magvit_scale.card.contents import Contents
from magvit_scale.commit.tasks import SPECS
from magvit_scale.config import Task

TOKENIZER = """\
import torch

from magvit_scale.vqgan.autoencoder import VQGAN

tokenizer = VQGAN.from_pretrained("{name}")  # {where}
clip = torch.rand(1, 3, {frames}, {size}, {size})  # yours
with torch.no_grad():
    ids = tokenizer.tokenize(clip)  # 'b t h w' int64
    reconstruction = tokenizer.detokenize(ids)  # 'b 3 t h w' in [0, 1]"""

BOTH = """\
from magvit_scale.pipeline import MagvitPipeline

pipe = MagvitPipeline.from_pretrained("{name}")  # {where}
{call}"""

CLASS = """\
clips = pipe("{task}", label=0, seed=0).clips  # 'b 3 t h w' in [0, 1]"""

CONDITION = """\
import torch

condition = torch.rand(1, 3, {frames}, {size}, {size})  # your clip; only what the task gives of it is looked at
clips = pipe("{task}", condition=condition{label}, seed=0).clips  # 'b 3 t h w' in [0, 1]"""


def example(contents: Contents) -> str:
    """Python code."""
    t, h, _ = contents.tokenizer.model.downsample
    # Where nothing tells the size of a clip, one that every tokenizer takes.
    frames, size = contents.clips.num_frames or 4 * t, contents.clips.size_px or 4 * h
    where = f"fetch it first: hf download {contents.name}" if "/" in contents.name else "the folder of this card"
    if contents.transformer is None:
        return TOKENIZER.format(name=contents.name, where=where, frames=frames, size=size)
    task = _task(contents)
    label = ", label=0" if SPECS[task].is_class_conditional else ""
    call = CLASS if SPECS[task].fill is None else CONDITION
    return BOTH.format(
        name=contents.name, where=where, call=call.format(task=task, frames=frames, size=size, label=label)
    )


def _task(contents: Contents) -> Task:
    """A task that it was trained on, where its run says so; by class rather than by a condition."""
    record = contents.transformer.record if contents.transformer else None
    tasks: tuple[Task, ...] = getattr(record.config, "tasks", ()) if record else ()
    trained = tasks or (("CG",) if contents.num_classes else ("FP",))
    return "CG" if "CG" in trained and contents.num_classes else trained[0]
