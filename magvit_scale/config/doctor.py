"""What is examined before step 0."""

from dataclasses import dataclass

from magvit_scale.config.reading import Refusal


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """magvit doctor: examines a machine, or every rank of an allocation, before step 0 of a run. Started like a program
    that trains: alone, under torchrun, under srun. Status 1 where any rank has a problem; warnings leave it 0.
    """

    folder: str | None = None
    """An existing folder that every rank must see and be able to write to: the run folder, or the one it will be in."""
    shards: str | None = None
    """Clip shards, as clips.shards, or a folder of token shards: every rank opens them and reads one sample."""
    num_workers: int = 0
    """Loader processes per rank, as clips.num_workers: clip shards fewer than all readers are worth a warning."""
    reports: str | None = None
    """Folder, a new one for each examination: every rank writes rank00003.json there before it speaks to any other, and
    once more at the end."""
    patience_s: float = 120.0
    """Seconds that ranks wait for each other; those that do not come by then are named."""
    minutes_between_checkpoints: float | None = None
    """Of the run to come; worth a warning where it is longer than time_limit_minutes."""
    time_limit_minutes: float | None = None
    """After which the cluster ends a job of the run to come."""

    def __post_init__(self) -> None:
        """Refuses what no run can have."""
        if self.num_workers < 0:
            raise Refusal(f"num_workers={self.num_workers}: expected at least 0")
        if self.patience_s <= 0:
            raise Refusal(f"patience_s={self.patience_s}: expected more than 0 seconds")
