"""Fingerprints of the tasks' rules, so that tokens of canvases made by other rules are told apart."""

import hashlib
from collections.abc import Iterable

import numpy as np
import torch

from magvit_scale.commit.tasks import condition_canvases
from magvit_scale.config import Task

_PROBE_SHAPE = (1, 3, 8, 16, 16)


def canvas_rules(canvases: Iterable[Task]) -> dict[str, str]:
    """By canvas, what its rule makes of one fixed clip, as a checksum: it changes when the rule does.

    Not a number to be raised by hand with every change: that would be forgotten.
    """
    names = tuple(canvases)
    words = np.random.Philox(key=0).random_raw(int(np.prod(_PROBE_SHAPE)))
    clip = torch.from_numpy((words >> np.uint64(40)).astype(np.float32) / 2**24).reshape(_PROBE_SHAPE)
    # In steps of 1e-4: an addition that another processor rounds otherwise is no other rule.
    _, *made = condition_canvases(clip, names).mul(10_000).round().to(torch.int32).unbind(dim=1)
    return {
        name: hashlib.sha256(canvas.numpy().tobytes()).hexdigest()[:16]
        for name, canvas in zip(names, made, strict=True)
    }
