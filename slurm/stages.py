"""What a stage of a chain is, and what the run folder says about it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from magvit_scale.config import Refusal, ResourcesConfig, StageConfig, load


@dataclass(frozen=True)
class Call:
    """A program with its final arguments."""

    program: str
    argv: tuple[str, ...]
    alone: bool = False
    """Only the first rank runs it."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Programs with their final arguments, and where the run folder keeps their state."""

    name: str
    group: str
    """Name of the stage in the chain's configuration; elements of an array and points of a sweep share it."""
    calls: tuple[Call, ...]
    """What the stage's processes run, in order; at least one."""
    digest: str
    """sha256 of the programs, their arguments and the content of their configuration files."""
    folder: str
    """`{root}/stages`, absolute."""
    config: StageConfig
    resources: ResourcesConfig
    """The stage's own over the chain's over the standard ones."""
    needs_success: bool = True
    """False: starts when the stage before has ended, well or not."""

    @property
    def marker(self) -> Path:
        """Written once, when every process of the stage has ended well."""
        return Path(self.folder, f"{self.name}.json")

    @property
    def started_marker(self) -> Path:
        """Written before the stage's first process starts."""
        return Path(self.folder, f"{self.name}.started.json")

    @property
    def cancelled_marker(self) -> Path:
        """There while a request to cancel holds; the job does not start again."""
        return Path(self.folder, f"{self.name}.cancelled")

    @property
    def ledger(self) -> Path:
        """Every start and end of the stage's SLURM jobs, a line each."""
        return Path(self.folder, f"{self.name}.attempts.jsonl")

    @property
    def root(self) -> Path:
        """Run folder of the chain."""
        return Path(self.folder).parent

    @property
    def logs(self) -> Path:
        """Folder of the logs of every process and every attempt."""
        return Path(self.folder, "logs", self.group)

    @property
    def is_finished(self) -> bool:
        """Whether the marker is there; `refuse_changes` has to have accepted it."""
        return self.marker.exists()

    def record(self, **more: Any) -> dict[str, Any]:
        """The content of a marker, of which `load_stage` makes the stage again."""
        return {
            "name": self.name,
            "group": self.group,
            "calls": [asdict(call) for call in self.calls],
            "sha256": self.digest,
            "config": asdict(self.config),
            "resources": asdict(self.resources),
            **more,
        }

    def rank_marker(self, attempt: str, rank: int) -> Path:
        """What a rank notes at its own end: its status, and why. A process of another attempt writes another file."""
        return Path(self.folder, f"{self.name}.{attempt}.rank{rank}.json")

    def call_marker(self, attempt: str, number: int, rank: int) -> Path:
        """Written when a rank has ended this call of the stage well, or had no part in it."""
        return Path(self.folder, f"{self.name}.{attempt}.call{number}.rank{rank}.json")


def refuse_changes(stage: Stage) -> None:
    """Stops a run folder from being continued with other arguments than it was begun with.

    Raises:
        Refusal: the stage was finished or started with other arguments or configuration files.
    """
    for marker, verb in ((stage.marker, "finished"), (stage.started_marker, "started")):
        if marker.exists() and read_marker(marker)["sha256"] != stage.digest:
            root = Path(stage.folder).parent
            raise Refusal(
                f"stage {stage.name} was {verb} with other arguments or configuration files ({marker}); "
                f"repeat the first command, or give another root=, or delete {root}"
            )


def load_stage(folder: Path, name: str) -> Stage:
    """The stage that was started under this name.

    Raises:
        Refusal: none was.
    """
    marker = folder / f"{name}.started.json"
    if not marker.exists():
        raise Refusal(f"no {marker}: stage {name} was never started; start it with python -m slurm.launch")
    record = read_marker(marker)
    return Stage(
        name=name,
        group=record["group"],
        calls=tuple(Call(**call | {"argv": tuple(call["argv"])}) for call in _calls(record)),
        digest=record["sha256"],
        folder=str(folder),
        config=load(StageConfig, [record["config"]]),
        resources=load(ResourcesConfig, [record["resources"]]),
    )


def _calls(record: dict[str, Any]) -> list[dict[str, Any]]:
    # A run folder may have been begun when a stage was one program.
    return list(record.get("calls") or [{"program": record["program"], "argv": record["argv"]}])


def recorded_seconds(stage: Stage) -> float:
    """Seconds that the stage's last attempt took, from its marker."""
    return float(read_marker(stage.marker)["seconds"])


def read_marker(marker: Path) -> dict[str, Any]:
    """The content of a marker.

    Raises:
        Refusal: it is no marker.
    """
    try:
        record = json.loads(marker.read_text())
        return {"seconds": 0.0, "job_id": None, **record, "sha256": record["sha256"]}
    except (ValueError, KeyError, TypeError) as error:
        raise Refusal(f"{marker} is no stage marker ({error!r}); delete it and the stage runs again") from error
