"""The launcher: a chain of stages and what each asks of a cluster."""

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig:
    """What a SLURM job asks for; nothing has a cluster's name built in. A stage's own values go before the chain's, and
    what neither gives is left to the cluster.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    """Nodes that are not to be used, as SLURM writes them: node[3,7-9]."""
    mem_gb: float | None = None
    """Memory per node in GB."""
    time_limit_minutes: int | None = None
    """A stage that reaches it is requeued and continues; 1440 where nothing is said."""
    signal_delay_s: int | None = None
    """Seconds between the warning signal and the end of a job; longer than two steps and a save; 120 where nothing is
    said."""
    setup: tuple[str, ...] | None = None
    """Shell lines before the program, for instance `module load cuda`."""
    python: str | None = None
    """Command that starts the programs' Python, for instance `apptainer exec --nv magvit.sif python`; null: this
    one, in which the batch script runs in any case."""
    srun: tuple[str, ...] | None = None
    """Further arguments of srun, for instance --container-image=magvit.sqsh or --cpu-bind=none."""
    interface: str | None = None
    """Network interface of NCCL and gloo between nodes, for instance ib0; null: they choose."""
    additional: dict[str, str] | None = None
    """Any other sbatch option, by its long name."""
    preflight: bool | None = None
    """Whether every rank examines its node before the program starts; null: in jobs of more than one process."""
    exclude_bad_nodes: bool | None = None
    """Whether a job whose preflight names bad nodes is requeued without them, instead of ending."""
    max_fruitless_restarts: int | None = None
    """Restarts in a row without progress after which a job ends as failed; 3 where nothing is said."""

    def over(self, other: "ResourcesConfig") -> "ResourcesConfig":
        """These values, and those of `other` where these say nothing."""
        own = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(other, **{name: value for name, value in own.items() if value is not None})


STANDARD = ResourcesConfig(
    time_limit_minutes=1440, signal_delay_s=120, exclude_bad_nodes=False, max_fruitless_restarts=3
)
"""What holds where neither the stage nor the chain says anything."""


@dataclass(frozen=True, kw_only=True)
class ProgramConfig:
    """A program and its arguments."""

    program: str
    """Module with main(argv), for instance magvit_scale.train_vqgan."""
    configs: tuple[str, ...] = ()
    """The program's YAML files."""
    overrides: tuple[str, ...] = ()
    """key=value arguments; {root}, {videos} and {scaled:N} (N steps at reference_minutes) are filled in."""
    overrides_with_videos: tuple[str, ...] = ()
    """Appended where `videos` is given."""
    alone: bool = False
    """True: of several processes the first runs it, as one that has no others, and they wait."""


@dataclass(frozen=True, kw_only=True)
class StageConfig(ProgramConfig):
    """One stage of a chain: a program, its arguments, its processes."""

    then: tuple[ProgramConfig, ...] = ()
    """What the same processes run next, each when all of them have ended the one before well: {program, configs,
    overrides, overrides_with_videos, alone}. For what is too short to be started, or queued, by itself: a stage that
    is started again runs all of it again, and a sweep none."""
    when: Literal["always", "videos", "no_videos"] = "always"
    """`videos`: a stage only of runs on the user's own videos; `no_videos`: only of runs without them."""
    steps: int | None = None
    """Training steps at reference_minutes; becomes run.steps, scaled."""
    tasks: int = 1
    """Processes per node."""
    nodes: int = 1
    """SLURM only."""
    min_nodes: int | None = None
    """SLURM only: a job that is started again goes on with fewer nodes, down to these, rather than wait for more."""
    cpus_per_task: int | None = None
    """SLURM only; null takes the cluster's default."""
    gpus_per_node: int = 0
    """0 hides the GPUs of the machine from the stage."""
    array: int = 1
    """SLURM only: elements of a job array that run the program side by side, each making what the others have not."""
    array_parallelism: int | None = None
    """SLURM only: how many elements of an array or a sweep run at once; null: 256."""
    resources: ResourcesConfig = ResourcesConfig()


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """python -m slurm.launch: a chain of stages, one dependent job each, on this machine or on SLURM. --dry-run shows
    what would be started and makes nothing.
    """

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
    only: tuple[str, ...] | None = None
    """Names of the stages to run, in the chain's order; null: all."""
    sweep: dict[str, Any] = field(default_factory=dict)
    """sweep.STAGE.KEY=[A,B,C]: the stage once for every value, or combination of values, each in a folder of its own;
    then a table. The stages behind it are left out."""
    resources: ResourcesConfig = ResourcesConfig()
    stages: dict[str, StageConfig]
    """The stages by name, in order."""


@dataclass(frozen=True, kw_only=True)
class CompareRunsConfig:
    """python -m slurm.compare_runs: a table of what training runs logged last, the best first."""

    runs: tuple[str, ...]
    """Run folders."""
    output: str
    """Markdown file of the table."""
