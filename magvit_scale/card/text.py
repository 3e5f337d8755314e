"""The card as text: front matter for the hub, the rest for people."""

from collections.abc import Iterator
from importlib import resources
from string import Template
from typing import Any

import yaml

from magvit_scale.card.contents import Contents
from magvit_scale.card.examples import example
from magvit_scale.card.figures import TASK_TYPE, figures_text, model_index
from magvit_scale.card.tables import beside_each_other
from magvit_scale.card.training import training_facts

LIBRARY = "magvit_scale"
TAGS = ("video", "video-tokenizer", "magvit")
GENERATOR_TAGS = ("video-generation", "masked-transformer")
NOT_THERE = "could not be read, or are no longer those of the run"
PAPER = "[MAGVIT](https://arxiv.org/abs/2212.05199)"


def render(contents: Contents) -> str:
    """The whole card: the same contents give the same text."""
    template = resources.files("magvit_scale.card").joinpath("template.md").read_text(encoding="utf-8")
    return Template(template).substitute(
        front_matter=yaml.safe_dump(_front_matter(contents), sort_keys=False),
        title=contents.name.rpartition("/")[2],
        summary=_summary(contents),
        example=example(contents),
        use="\n".join(_use(contents)),
        models=beside_each_other({role: _model_facts(contents, role) for role in contents.parts}),
        training=beside_each_other({role: training_facts(part) for role, part in contents.parts.items()}),
        figures=figures_text(contents.results),
        unknown="\n".join(f"- {line}" for line in _unknown(contents)),
    )


def _front_matter(contents: Contents) -> dict[str, Any]:
    has_both = contents.transformer is not None
    matter: dict[str, Any] = {"license": contents.license, "library_name": LIBRARY}
    matter |= {"pipeline_tag": TASK_TYPE} if has_both else {}  # the hub has no name for a video tokenizer
    matter |= {"tags": [*TAGS, *(GENERATOR_TAGS if has_both else ())]}
    matter |= {"datasets": list(contents.datasets)} if contents.datasets else {}
    index = model_index(contents.name.rpartition("/")[2], contents.results)
    return matter | ({"model-index": index} if index else {})


def _summary(contents: Contents) -> str:
    if contents.transformer is None:
        return f"A video tokenizer in the manner of {PAPER}, for magvit_scale: clips to ids and back."
    return (
        f"A video tokenizer and a masked transformer in the manner of {PAPER}, for magvit_scale: clips from a task, "
        "what the task gives of a clip, and a class."
    )


def _use(contents: Contents) -> Iterator[str]:
    clips, (t, h, w) = contents.clips, contents.tokenizer.model.downsample
    yield "A clip is `b c t h w`, RGB, float32 in [0, 1]."
    if clips.num_frames:
        yield f"These models are for clips of {clips.num_frames} frames of {clips.size_px} x {clips.size_px} pixels."
    yield f"A token stands for {t} x {h} x {w} (frames, rows, columns)."
    if contents.classes:
        yield f"Classes by id, from 0: {', '.join(contents.classes)}."


def _model_facts(contents: Contents, role: Any) -> dict[str, str]:
    part = contents.parts[role]
    config = part.model.config
    size = f"{config.ndim}D, " if role == "tokenizer" else f"{config.num_layers} layers of {config.hidden_size}, "
    return {
        "model": f"{type(part.model).__name__}, {size}codebook of {config.codebook_size}",
        "parameters": f"{part.num_parameters:,}",
        "sha256 of model.safetensors": f"`{part.sha256}`",
    }


def _unknown(contents: Contents) -> Iterator[str]:
    yield "The training videos: what they show, whence they come, what their terms allow. No file of a run says it."
    for role, part in contents.parts.items():
        if part.record is None:
            yield f"How the {role} was trained: its folder lies in no run folder."
        elif part.record.step is None:
            yield f"Of which step the {role}'s weights are: no checkpoint with them is left."
    transformer = contents.transformer
    if transformer is not None and contents.tokens is None and transformer.model.config.tokenizer_hash is None:
        yield f"Whether the transformer was trained on tokens of this tokenizer: its token shards {NOT_THERE}."
    if contents.num_classes and not contents.classes:
        yield f"The names of the {contents.num_classes} classes: the shards {NOT_THERE}."
    if contents.clips.fps is None:
        yield "The frame rate of the clips."
    if not contents.results:
        yield "How good it is: no result of `magvit evaluate` was given."
