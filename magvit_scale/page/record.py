"""Everything that a RUN folder holds: the root of a road as `make demo` makes it, or one training run."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magvit_scale.config import Refusal
from magvit_scale.page.clips import Reconstructions, Samples, read_reconstructions, read_samples
from magvit_scale.page.evaluations import Evaluation
from magvit_scale.page.inputs import METRICS, TRANSFORMER, Run, Settings, read_json, read_run, read_settings

FOLDERS = {"generate": "generated", "judge": "judgement", "evaluate": "evaluation"}
"""Verb -> where the road has its output."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was found in a RUN folder; anything may be missing."""

    folder: Path
    runs: Sequence[Run]
    """In the order in which they were started."""
    samples: Samples | None
    results: Mapping[str, Any]
    """results.json of judge; empty where there is none."""
    reconstructions: Reconstructions | None
    evaluations: Sequence[Evaluation]
    settings: Mapping[str, Settings]
    """Verb -> its configuration, of generate and judge."""

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.resolve().name

    @property
    def gates(self) -> Sequence[Mapping[str, Any]]:
        """The claims of judge."""
        return self.results.get("gates", [])

    @property
    def fps(self) -> float:
        """Frames per second of its moving pictures."""
        return self.samples.fps if self.samples else 8

    @property
    def environment(self) -> Mapping[str, Any]:
        """What the last training run that did so wrote down about its machine."""
        return next((run.environment for run in reversed(self.runs) if run.environment), {})

    @property
    def commands(self) -> list[str]:
        """One per folder that keeps the configuration it was made with, and the page's own."""
        made = [(_verb(run), run.folder) for run in self.runs]
        made += [(verb, self.folder / folder) for verb, folder in FOLDERS.items()]
        made = [(verb, folder) for verb, folder in made if (folder / "config.yaml").exists()]
        lines = [f"magvit {verb} {shlex.quote(f'{folder}/config.yaml')}" for verb, folder in made]
        return [*lines, f"magvit report {shlex.quote(str(self.folder))}"]


def read_record(folder: Path, evaluations: Sequence[Evaluation]) -> Record:
    """Reads a RUN folder.

    Args:
        folder: with metrics.jsonl it is one training run; else those of its sub-folders that have one are its
            training runs, and generated/ and judgement/ what their models did.
        evaluations: its results by protocol.

    Raises:
        Refusal: there is nothing, or a file is damaged.
    """
    is_run = (folder / METRICS).exists()
    runs = [read_run(path.parent) for path in ([folder / METRICS] if is_run else folder.glob(f"*/{METRICS}"))]
    samples = folder / FOLDERS["generate"] / "samples.npz"
    results = folder / FOLDERS["judge"] / "results.json"
    if not (runs or samples.exists() or results.exists() or evaluations):
        missing = "" if folder.is_dir() else "not there; "
        raise Refusal(f"{folder}: {missing}expected the folder of a training run (it has {METRICS}) or one around such")
    return Record(
        folder=folder,
        runs=sorted(runs, key=lambda run: (run.started, run.name)),
        samples=read_samples(samples) if samples.exists() else None,
        results=_read_results(results) if results.exists() else {},
        reconstructions=read_reconstructions(results.with_name("reconstructions.npz")) if results.exists() else None,
        evaluations=evaluations,
        settings={verb: read_settings(folder / name / "config.yaml", "output") for verb, name in FOLDERS.items()},
    )


def _read_results(path: Path) -> dict[str, Any]:
    results = read_json(path)
    if missing := {"protocol", "reconstruction", "gates"} - set(results):
        raise Refusal(f"{path}: no {', '.join(sorted(missing))}; run `magvit judge` again")
    return results


def _verb(run: Run) -> str:
    return "train-commit" if run.kind == TRANSFORMER else "train-vqgan"
