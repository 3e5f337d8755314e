"""The launcher's bookkeeping, in one process (cluster=debug), and what SLURM is asked for."""

import json
from pathlib import Path

import pytest

from magvit_scale.config import LaunchConfig, Refusal, ResourcesConfig, load
from slurm import launch
from slurm.cluster import parameters
from slurm.plan import plan
from tests.unit.slurm.conftest import Chain


def test_debug_runs_here_and_marks_what_is_finished(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    chain.add("only", "text=here")
    launch.main([str(chain.config), "cluster=debug"])
    assert (chain.root / "only" / "result.0").read_text() == "here"
    marker = json.loads((chain.root / "stages" / "only.json").read_text())
    argv = [f"output={chain.root}/only", "text=here"]
    assert marker["calls"] == [{"program": "tests.unit.slurm.stage_programs", "argv": argv, "alone": False}]
    assert len(marker["sha256"]) == 64
    assert marker["seconds"] >= 0
    launch.main([str(chain.config), "cluster=debug"])
    assert chain.runs("only") == ["1"]
    assert "finished before" in capsys.readouterr().out


@pytest.mark.parametrize("end", ["none", "zero"])
def test_a_program_that_exits_well_has_ended_well(chain: Chain, end: str) -> None:
    chain.add("only", f"end_with={end}")
    chain.add("after")
    launch.main([str(chain.config), "cluster=debug"])
    assert (chain.root / "stages" / "only.json").exists()
    assert chain.runs("after") == ["1"]


@pytest.mark.parametrize("is_finished", [True, False])
@pytest.mark.parametrize("what", ["argument", "configuration file"])
def test_a_run_folder_of_other_arguments_is_refused(chain: Chain, tmp_path: Path, is_finished: bool, what: str) -> None:
    program_config = tmp_path / "program.yaml"
    program_config.write_text("a: 1\n")
    refuse = () if is_finished else ("refuse_rank=0",)
    chain.add("only", *refuse, configs=[str(program_config)])
    if is_finished:
        launch.main([str(chain.config), "cluster=debug"])
    else:
        with pytest.raises(SystemExit, match="found 0 videos, expected 2"):
            launch.main([str(chain.config), "cluster=debug"])
    if what == "argument":
        chain.add("only", "text=new", *refuse, configs=[str(program_config)])
    else:
        program_config.write_text("a: 2\n")
    with pytest.raises(Refusal) as refusal:
        launch.main([str(chain.config), "cluster=debug"])
    verb, marker = ("finished", "only.json") if is_finished else ("started", "only.started.json")
    assert str(refusal.value) == (
        f"stage only was {verb} with other arguments or configuration files ({chain.root}/stages/{marker}); "
        f"repeat the first command, or give another root=, or delete {chain.root}"
    )
    assert chain.runs("only") == ["1"]


def test_a_broken_marker_is_refused_by_name(chain: Chain) -> None:
    chain.add("only")
    marker = chain.root / "stages" / "only.json"
    marker.parent.mkdir(parents=True)
    marker.write_text("{")
    with pytest.raises(Refusal, match=r"only\.json is no stage marker .* delete it"):
        launch.main([str(chain.config), "cluster=debug"])


def test_dry_run_prints_every_argument_and_makes_nothing(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    chain.add("only", "text=a b", tasks=2)
    launch.main([str(chain.config), "--dry-run"])
    out = capsys.readouterr().out
    assert "1 only  (2 x python -m tests.unit.slurm.stage_programs)" in out
    assert "       text=a b\n" in out
    assert not chain.root.exists()


def test_what_slurm_is_asked_for(chain: Chain) -> None:
    chain.add("train", tasks=8, nodes=2, gpus_per_node=8, cpus_per_task=4)
    chain.stages["train"]["resources"] = {"time_limit_minutes": 60, "exclude": "node7", "setup": ["module load cuda"]}
    resources = ResourcesConfig(
        partition="gpu", time_limit_minutes=90, mem_gb=1.5, additional={"mail-user": "me", "dependency": "after:5"}
    )
    group = plan(LaunchConfig(root=str(chain.root), stages=_stages(chain), resources=resources))
    asked = parameters(group, Path("/the code"), "17")
    setup = asked.pop("setup")
    assert setup[:2] == ["unset SLURM_EXPORT_ENV", "module load cuda"]
    assert "cd '/the code'" in setup
    assert "trap at_end EXIT" in setup
    assert asked == {
        "job_name": "train",
        "nodes": 2,
        "ntasks_per_node": 8,
        "gpus_per_node": 8,
        "cpus_per_task": 4,
        "time": 60,
        "mem": "1536M",
        "partition": "gpu",
        "exclude": "node7",
        "comment": f"magvit_scale {chain.root}",
        "signal_delay_s": 120,
        "srun_args": ["--cpus-per-task=4"],
        "additional_parameters": {
            "requeue": True,
            "kill-on-invalid-dep": "yes",
            "mail-user": "me",
            "dependency": "afterok:17,after:5",
        },
    }
    assert parameters(group, Path("/code"), None)["additional_parameters"]["dependency"] == "after:5"


def test_a_job_that_may_shrink_asks_for_processors_and_leaves_the_tasks_to_srun(chain: Chain) -> None:
    chain.add("train", tasks=8, nodes=2, cpus_per_task=4, min_nodes=1)
    asked = parameters(plan(LaunchConfig(root=str(chain.root), stages=_stages(chain))), Path("/code"), None)
    assert asked["additional_parameters"] | {"nodes": "1-2", "mincpus": 32} == asked["additional_parameters"]
    assert asked["srun_args"] == ["--ntasks-per-node=8", "--cpus-per-task=4"]
    assert not {"ntasks_per_node", "cpus_per_task"} & set(asked)


def test_ranks_that_may_wait_between_programs_end_with_the_first_that_ends_badly(chain: Chain) -> None:
    chain.add("train", tasks=2)
    chain.add_then("after")
    asked = parameters(plan(LaunchConfig(root=str(chain.root), stages=_stages(chain))), Path("/code"), None)
    assert asked["srun_args"] == ["--kill-on-bad-exit=1"]


def _stages(chain: Chain) -> dict[str, object]:
    chain.config.write_text(json.dumps({"root": str(chain.root), "stages": chain.stages}))
    return load(LaunchConfig, [chain.config]).stages  # type: ignore[return-value]
