"""The launcher: a chain of stages and what each asks of a cluster."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of a chain: a program, its arguments, its processes."""

    program: str
    """Module with main(argv), for instance magvit_scale.train_vqgan."""
    configs: tuple[str, ...] = ()
    """The program's YAML files."""
    overrides: tuple[str, ...] = ()
    """key=value arguments; {root}, {videos} and {scaled:N} (N steps at reference_minutes) are filled in."""
    overrides_with_videos: tuple[str, ...] = ()
    """Appended where `videos` is given."""
    when: Literal["always", "videos", "no_videos"] = "always"
    """`videos`: a stage only of runs on the user's own videos; `no_videos`: only of runs without them."""
    steps: int | None = None
    """Training steps at reference_minutes; becomes run.steps, scaled."""
    tasks: int = 1
    """Processes per node."""
    nodes: int = 1
    """SLURM only."""
    cpus_per_task: int | None = None
    """SLURM only; null takes the cluster's default."""
    gpus_per_node: int = 0
    """0 hides the GPUs of the machine from the stage."""


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig:
    """What every SLURM job of a chain asks for; nothing has a cluster's name built in."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    mem_gb: float | None = None
    """Memory per node in GB."""
    time_limit_minutes: int = 1440
    """A stage that reaches it is requeued and continues."""
    signal_delay_s: int = 120
    """Seconds between the warning signal and the end of a job."""
    setup: tuple[str, ...] = ()
    """Shell lines before the program, for instance `module load cuda`."""
    additional: dict[str, str] = field(default_factory=dict)
    """Any other sbatch option, by its long name."""


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """python -m slurm.launch: a chain of stages, one dependent job each, on this machine or on SLURM."""

    root: str
    """Run folder of the whole chain."""
    cluster: Literal["local", "slurm", "debug"] = "local"
    """`local`: processes of this machine; `debug`: everything in the launcher's own process."""
    minutes: float = 15.0
    """Training steps are scaled by minutes / reference_minutes."""
    reference_minutes: float = 15.0
    """Minutes that the steps in this configuration were written for."""
    videos: str | None = None
    """Folder of the user's own videos."""
    resources: ResourcesConfig = ResourcesConfig()
    stages: dict[str, StageConfig]
    """The stages by name, in order."""
