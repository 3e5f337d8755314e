"""A run folder and what is written into it: config, environment, metrics.jsonl, TensorBoard. For the main rank."""

import io
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from magvit_scale.config import MAY_CHANGE, Refusal, dump, load

PACKAGES = ("torch", "deepspeed", "webdataset", "einops", "lpips", "submitit", "tensorboard")


def refuse_other_config(folder: Path, config: Any) -> None:
    """Checks that a run folder is new or this config's, but for the keys of MAY_CHANGE. Every rank, before the main one
    claims the folder.

    Raises:
        Refusal: the folder belongs to another config; the first key that differs is named.
    """
    path = folder / "config.yaml"
    if path.is_file():
        found = _differences(asdict(load(type(config), [path])), asdict(config))
        for key, (was, now) in found.items():
            if not key.startswith(MAY_CHANGE):
                raise Refusal(
                    f"{path} has {key}={was}, this run {key}={now}; give another run.folder or the same values"
                )


def claim_run_folder(folder: Path, config: Any) -> None:
    """Dumps the resolved config and the environment into a run folder; of a resumed run the present ones."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {"python": platform.python_version(), "host": platform.node(), "gpus": torch.cuda.device_count()}
    (folder / "env.json").write_text(json.dumps(environment | versions(), indent=1))
    dump(config, folder / "config.tmp")
    os.replace(folder / "config.tmp", folder / "config.yaml")


def versions() -> dict[str, str]:
    """Of the packages that decide what a run computes."""
    return {name: version(name) for name in PACKAGES}


class Tracker:
    """Scalars to metrics.jsonl and TensorBoard, pictures and clips to TensorBoard.

    On a resume, points after `start_step` are cut from metrics.jsonl and hidden in TensorBoard, so that none stands
    twice.
    """

    def __init__(self, folder: Path, start_step: int):
        self.path, self.log = folder / "metrics.jsonl", folder / "log.txt"
        self.last: dict[str, float] = _cut(self.path, start_step)
        # At step 0 too: a run that was killed before its first checkpoint has logged points already.
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)

    def text(self) -> str:
        """What metrics.jsonl holds."""
        return self.path.read_text() if self.path.is_file() else ""

    def note(self, *lines: str) -> None:
        """Appends lines to log.txt and says them on stderr."""
        with self.log.open("a") as file:
            file.writelines(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n" for line in lines)
        sys.stderr.writelines(f"{line}\n" for line in lines)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line; `step` counts completed optimiser steps. `last` has the newest value of every name."""
        rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 3), **rounded}) + "\n")
        self.last |= rounded
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def clips(self, step: int, name: str, rows: NDArray[np.uint8], fps: int = 8) -> None:
        """Shows uint8 clips 'n t h w 3' side by side as one moving picture."""
        frames = [Image.fromarray(np.concatenate(list(frame), axis=1)) for frame in rows.swapaxes(0, 1)]
        buffer = io.BytesIO()
        frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=1000 // fps, loop=0)
        # TensorBoard passes an encoded picture to the browser as it is, so a GIF moves; add_video needs moviepy.
        image = Summary.Image(encoded_image_string=buffer.getvalue(), height=frames[0].height, width=frames[0].width)
        self.writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def flush(self) -> None:
        """Brings everything that was logged into its file, so that a checkpoint is never ahead of the curves."""
        self.writer.flush()

    def close(self) -> None:
        """Flushes TensorBoard."""
        self.writer.close()


def _cut(path: Path, start_step: int) -> dict[str, float]:
    """Takes what is of later steps out of metrics.jsonl; returns the last value of everything that stays."""
    if not path.is_file():
        return {}
    # A kill can leave half a line at the end: it is of a step that will be done again.
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
    kept = [line for line in lines if json.loads(line)["step"] <= start_step]
    path.with_suffix(".tmp").write_text("".join(line + "\n" for line in kept))
    os.replace(path.with_suffix(".tmp"), path)
    last: dict[str, float] = {}
    for line in kept:
        last |= {name: value for name, value in json.loads(line).items() if name not in ("step", "time")}
    return last


def _differences(was: Any, now: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for key in was.keys() | now.keys():
        old, new = was.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found |= _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found[prefix + key] = (old, new)
    return dict(sorted(found.items()))
