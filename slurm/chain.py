"""A chain that was started: its record in the run folder, for the commands that look after it."""

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path

from magvit_scale.config import Refusal
from slurm.stages import Stage, load_stage, read_marker


@dataclass(frozen=True)
class Chain:
    """What the launcher noted."""

    root: Path
    arguments: list[str]
    """Of python -m slurm.launch."""
    cluster: str
    names: list[str]
    """Of the stages, in order; before them those of former launches, whose jobs may be there still."""

    @property
    def started(self) -> list[Stage]:
        """The stages that were started or submitted."""
        folder = self.root / "stages"
        return [load_stage(folder, name) for name in self.names if (folder / f"{name}.started.json").exists()]

    def jobs(self) -> dict[str, Stage]:
        """The started stages by the id of their SLURM job."""
        found = {read_marker(stage.started_marker)["job_id"]: stage for stage in self.started}
        return {job_id: stage for job_id, stage in found.items() if job_id}


def open_chain(root: str) -> Chain:
    """Reads a chain's record and goes to the folder from which it was started, since its arguments hold for there.

    Raises:
        Refusal: nothing was started there.
    """
    folder = Path(root).absolute()
    record = folder / "stages" / "chain.json"
    if not record.exists():
        raise Refusal(f"{root}: no chain was started there; expected the root= of a python -m slurm.launch")
    chain = json.loads(record.read_text())
    os.chdir(chain["cwd"])
    known = {path.name.removesuffix(".started.json") for path in record.parent.glob("*.started.json")}
    names = [*sorted(known - set(chain["stages"])), *chain["stages"]]
    return Chain(folder, chain["arguments"], chain["cluster"], names)


def arguments_of(program: str, summary: str) -> argparse.ArgumentParser:
    """A parser that takes the run folder first."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}", description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="run folder of a chain, the root= of python -m slurm.launch")
    return parser
