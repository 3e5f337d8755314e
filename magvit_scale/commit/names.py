"""Tasks, classes and seeds as people write them -> as the models take them."""

from collections.abc import Sequence
from difflib import get_close_matches

import torch
from torch import Tensor

from magvit_scale.commit.tasks import SPECS
from magvit_scale.config import Refusal, Task

Label = int | str | Sequence[int | str] | Tensor
"""Class ids (-1: none) or names; a single one holds for every clip."""

Seed = int | Sequence[int]
"""Of the first clip, the others counting on from it; or of each clip."""

RANGE_ROUNDING = 0.01
"""By how much a resized clip, or one in bfloat16, may leave [0, 1]."""


def task_named(name: str) -> Task:
    """`FP` or `frame_prediction` -> FP, whatever its case; blanks and dashes are underscores.

    Raises:
        Refusal: there is no such task.
    """
    known = {_plain(name): task for task, spec in SPECS.items() for name in (task, spec.title)}
    if (plain := _plain(name)) not in known:
        nearest = get_close_matches(plain, known, n=1)
        hint = f"the nearest is {nearest[0]}" if nearest else f"expected one of {', '.join(SPECS)}"
        raise Refusal(f"no task is called {name!r}; {hint}")
    return known[plain]


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")


def is_single(label: Label) -> bool:
    """Whether one label is meant for all clips."""
    return label.ndim == 0 if isinstance(label, Tensor) else isinstance(label, int | str)


def class_ids(label: Label, classes: Sequence[str]) -> Tensor:
    """Labels -> int64 'm' ids on the CPU; m = 1 for a single one.

    Args:
        label: ids are taken as they are.
        classes: names by id; may be empty where no label is a name.

    Raises:
        Refusal: an unknown name, or numbers that are no ids.
    """
    if isinstance(label, Tensor):
        if label.ndim > 1 or label.is_floating_point():
            raise Refusal(f"labels of {label.dtype} {tuple(label.shape)}, expected int64 'b'")
        return label.reshape(-1).long().cpu()
    single = [label] if isinstance(label, int | str) else label
    return torch.tensor([_id_of(item, classes) if isinstance(item, str) else item for item in single]).long()


def _id_of(name: str, classes: Sequence[str]) -> int:
    if name in classes:
        return list(classes).index(name)
    if not classes:
        raise Refusal(f"class {name!r}: these models come without class names; give its number")
    nearest = get_close_matches(name, classes, n=1)
    hint = f"the nearest is {nearest[0]!r}" if nearest else f"the first of {len(classes)} is {classes[0]!r}"
    raise Refusal(f"no class is called {name!r}; {hint}")


def count_clips(label: Label | None, seed: Seed) -> int | None:
    """For how many clips labels and seeds are; None where both hold for any number."""
    if label is not None and not is_single(label):
        return len(label)  # type: ignore[arg-type]
    return len(seed) if isinstance(seed, Sequence) else None


def labels_of(label: Label | None, classes: Sequence[str], num_classes: int, num_clips: int) -> Tensor:
    """One class id per clip, int64 'b' on the CPU; None is -1, no class.

    Raises:
        Refusal: see `class_ids`; ids that the model does not know, or labels for another number of clips.
    """
    if label is None:
        return torch.full((num_clips,), -1)
    ids = class_ids(label, classes)
    if is_single(label):
        ids = ids.expand(num_clips)
    if len(ids) != num_clips:
        raise Refusal(f"{len(ids)} labels for {num_clips} clips, expected one for each")
    if not ((ids >= -1) & (ids < num_classes)).all():
        raise Refusal(f"class {ids.unique().tolist()}, expected ids in [0, {num_classes}), or -1 for none")
    return ids


def seeds_of(seed: Seed, num_clips: int) -> list[int]:
    """One seed per clip: counting on from one, or the given ones.

    Raises:
        Refusal: seeds for another number of clips.
    """
    if isinstance(seed, int):
        return list(range(seed, seed + num_clips))
    if len(seed) != num_clips:
        raise Refusal(f"{len(seed)} seeds for {num_clips} clips, expected one for each, or one for all")
    return list(seed)


def refuse_other_range(clip: Tensor) -> None:
    """Refuses a float clip of any shape with values outside of [0, 1], but for rounding, or that are not numbers.

    Raises:
        Refusal: as of a clip in [0, 255], which gives tokens of nothing.
    """
    low, high = (float(value) for value in clip.aminmax())
    if not (low >= -RANGE_ROUNDING and high <= 1 + RANGE_ROUNDING):
        raise Refusal(f"clip with values from {low:g} to {high:g}, expected [0, 1]; divide uint8 frames by 255")
