"""Spells on the ranks of a world, see `nursery.Nursery.begin`: kills at a moment that no clock decides."""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from magvit_scale import training

TRAINING = str(Path(next(iter(training.__path__))))
UNCOUNTED = ("watchdog.py", "heartbeat.py", "flops.py")
"""The first two call by the clock, the third at every operation of the first step."""
SAVING = ("save", "_facts", "_replicated", "<dictcomp>")


class Moments:
    """Counts the calls that functions of training/ get and make, in all threads of this process.

    Args:
        only_saving: only calls that write a checkpoint, in the loop and in the thread beside it.
        only_watched: only while the watchdog of the loop is there.
    """

    def __init__(self, *, only_saving: bool, only_watched: bool) -> None:
        self.only_saving, self.is_counting = only_saving, not only_watched
        self.only_watched = only_watched

    def is_one(self, frame: FrameType, event: str) -> bool:
        """Whether an event of `sys.setprofile` is a moment."""
        path, name = frame.f_code.co_filename, frame.f_code.co_name
        if event not in ("call", "c_call") or not path.startswith(TRAINING):
            return False
        if self.only_watched and event == "call":
            begins, ends = name == "_train_from_checkpoint", name == "__exit__" and path.endswith("watchdog.py")
            self.is_counting = (self.is_counting or begins) and not ends
        if not self.is_counting or path.endswith(UNCOUNTED):
            return False
        return not self.only_saving or self._saves(path, name)

    def _saves(self, path: str, name: str) -> bool:
        is_beside = threading.current_thread().name.startswith("checkpoint")
        return is_beside or (path.endswith("checkpoint.py") and name in SAVING)


def count(rank: int, *, folder: str) -> None:
    """Writes folder/moments.RANK.json: how many moments an undisturbed run has, by `only_saving`, of all and of those
    that the watchdog sees.
    """
    kinds = [(is_saving, is_whole) for is_saving in (False, True) for is_whole in (False, True)]
    moments = [Moments(only_saving=is_saving, only_watched=not is_whole) for is_saving, is_whole in kinds]
    counts, me, lock = [0] * len(kinds), os.getpid(), threading.Lock()

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if os.getpid() != me:  # a loader's worker
            return
        with lock:
            for index, kind in enumerate(moments):
                counts[index] += kind.is_one(frame, event)
        if event == "call" and frame.f_code.co_name == "stop" and frame.f_code.co_filename.endswith("distributed.py"):
            Path(folder, f"moments.{rank}.json").write_text(json.dumps([counts[:2], counts[2:]]))

    threading.setprofile(profile)
    sys.setprofile(profile)


def kill(rank: int, *, struck: int, moment: int, only_saving: bool, whole_run: bool) -> None:
    """Kills rank `struck` at its `moment`-th call, or with `whole_run` all ranks and their workers."""
    if rank != struck:
        return
    moments, me, lock = Moments(only_saving=only_saving, only_watched=not whole_run), os.getpid(), threading.Lock()
    num_calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal num_calls
        if os.getpid() != me:  # a loader's worker
            return
        with lock:
            num_calls += moments.is_one(frame, event)
            if num_calls > moment:
                os.kill(0 if whole_run else me, signal.SIGKILL)

    threading.setprofile(count)
    sys.setprofile(count)
