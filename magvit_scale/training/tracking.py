"""A run folder and what is written into it: config, environment, metrics.jsonl, TensorBoard. For the main rank."""

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

import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from magvit_scale.config import MAY_CHANGE, Refusal, dump, load, to_yaml
from magvit_scale.pictures import png_bytes
from magvit_scale.training.pictures import Pixels, gif, image_summary

PACKAGES = ("torch", "deepspeed", "webdataset", "einops", "lpips", "submitit", "tensorboard")


def refuse_other_config(folder: Path, config: Any) -> None:
    """Checks that a run folder is new or this config's, but for the keys of MAY_CHANGE. Every rank, before the main one
    claims the folder.

    Raises:
        Refusal: the folder belongs to another config; the first key that differs is named.
    """
    path = folder / "config.yaml"
    if path.is_file():
        was, now = _flat(asdict(load(type(config), [path]))), _flat(asdict(config))
        for key in sorted(was.keys() | now.keys()):
            if was.get(key) != now.get(key) and not key.startswith(MAY_CHANGE):
                raise Refusal(
                    f"{path} has {key}={was.get(key)}, this run {key}={now.get(key)}; give another run.folder or the "
                    "same values"
                )


def claim_run_folder(folder: Path, config: Any) -> None:
    """Dumps the resolved config and the environment into a run folder; of a resumed run the present ones."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "env.json").write_text(json.dumps(environment(), indent=1))
    dump(config, folder / "config.tmp")
    os.replace(folder / "config.tmp", folder / "config.yaml")


def environment() -> dict[str, object]:
    """Where a run runs, and the versions."""
    where = {"python": platform.python_version(), "host": platform.node(), "gpus": torch.cuda.device_count()}
    return where | versions()


def hyperparameters(config: Any) -> dict[str, str | int | float]:
    """What decides a run's result, as `optim.learning_rate`: every key that may not change, in plain values."""
    found = {key: value for key, value in _flat(asdict(config)).items() if not key.startswith(MAY_CHANGE)}
    is_number = {key: isinstance(value, (int, float)) and not isinstance(value, bool) for key, value in found.items()}
    return {key: value if is_number[key] else _words(value) for key, value in found.items()}


def versions() -> dict[str, str]:
    """Of the packages that decide what a run computes."""
    return {name: version(name) for name in PACKAGES}


class Tracker:
    """Scalars to metrics.jsonl and TensorBoard; pictures, histograms and what the run is to TensorBoard.

    On a resume, points after `start_step` are cut from metrics.jsonl and hidden in TensorBoard, so that none stands
    twice.
    """

    def __init__(self, folder: Path, start_step: int):
        self.path, self.log = folder / "metrics.jsonl", folder / "log.txt"
        self.last: dict[str, float] = _cut(self.path, start_step)
        # What a restart will hide, and so has to write again.
        self._first_step = start_step + 1
        self._is_new = start_step == 0 or not (folder / "tensorboard").is_dir()
        # At step 0 too: a run that was killed before its first checkpoint has logged points already.
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=self._first_step)

    def introduce(self, config: Any) -> None:
        """Says once in a run's life what it is: configuration and environment as text, and what decides its result as
        hyperparameters.
        """
        if not self._is_new:
            return
        for name, text in (("config", to_yaml(config)), ("environment", json.dumps(environment(), indent=1))):
            self.writer.add_text(name, f"```\n{text}\n```", self._first_step)
        # Not add_hparams, which makes a second run; nor its list of columns, as TensorBoard takes that of one run for
        # all: without it runs of any stage stand in one table, what differs first, beside their last scalars.
        _, session, _ = hparams(hyperparameters(config), {})
        self._add(self._first_step, session)

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

    def moving_picture(self, step: int, name: str, frames: Pixels, words: str, fps: int = 8) -> None:
        """Shows uint8 frames 't h w 3'; `words` say what is seen."""
        self._add(step, image_summary(name, gif(frames, fps), frames.shape[1:3], words))

    def picture(self, step: int, name: str, pixels: Pixels, words: str) -> None:
        """Shows uint8 pixels 'h w 3'; `words` say what is seen."""
        self._add(step, image_summary(name, png_bytes(pixels), pixels.shape[:2], words))

    def histogram(self, step: int, name: str, values: Tensor) -> None:
        """Shows how values of any shape are spread."""
        self.writer.add_histogram(name, values, step)

    def flush(self) -> None:
        """Brings everything that was logged into its file, so that a checkpoint is never ahead of the curves."""
        self.writer.flush()

    def close(self) -> None:
        """Flushes TensorBoard."""
        self.writer.close()

    def _add(self, step: int, summary: Summary) -> None:
        self.writer._get_file_writer().add_summary(summary, step)


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


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
