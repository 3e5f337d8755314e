"""The launcher's planning and bookkeeping, in one process (cluster=debug)."""

import json
from pathlib import Path

import pytest

from magvit_scale.config import LaunchConfig, Refusal, ResourcesConfig, load
from slurm import launch
from slurm.cluster import parameters
from slurm.stages import plan
from tests.unit.slurm.conftest import Chain


def argv(chain: Chain, name: str, *overrides: str) -> tuple[str, ...]:
    stages = plan(load(LaunchConfig, [chain.config], overrides))
    return next(stage.argv for stage in stages if stage.name == name)


def test_steps_are_scaled_and_placeholders_filled_in(chain: Chain) -> None:
    chain.add("train", "loss.adversarial_start={scaled:100}", "other={rest}", steps=10)
    expected = (f"output={chain.root}/train", "loss.adversarial_start=250", "other={rest}", "run.steps=25")
    assert argv(chain, "train", "minutes=37.5", "reference_minutes=15") == expected
    assert argv(chain, "train", "minutes=0.01")[-1] == "run.steps=1"
    assert argv(chain, "train", "stages.train.steps=20")[-1] == "run.steps=20"


def test_a_folder_name_that_yaml_would_cut_is_quoted(chain: Chain) -> None:
    chain.add("list", overrides_with_videos=["videos={videos}"])
    assert argv(chain, "list", 'videos="/my videos: all #1"')[-1] == 'videos="/my videos: all #1"'
    assert argv(chain, "list", "videos=/my videos")[-1] == "videos=/my videos"
    assert argv(chain, "list") == (f"output={chain.root}/list",)


def test_stages_with_and_without_videos(chain: Chain) -> None:
    chain.add("draw", when="no_videos")
    chain.add("check", when="videos")
    chain.add("list")
    names = [[stage.name for stage in plan(load(LaunchConfig, [chain.config], o))] for o in ([], ["videos=/v"])]
    assert names == [["draw", "list"], ["check", "list"]]


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"overrides": ["a={videos}"]}, "stage odd: a={videos} needs videos, and none are given; give videos=FOLDER"),
        ({"program": "no.such"}, "stage odd: no module no.such; give a module with main"),
        ({"configs": ["/no/such.yaml"]}, "stage odd: cannot read /no/such.yaml"),
        ({"when": "videos"}, "no stage to run"),
    ],
)
def test_a_chain_that_cannot_run_is_refused_before_its_first_stage(
    chain: Chain, stage: dict[str, object], message: str
) -> None:
    chain.add("odd")
    chain.stages["odd"] |= stage
    with pytest.raises(Refusal) as refusal:
        plan(LaunchConfig(root=str(chain.root), stages=_stages(chain)))
    assert str(refusal.value).startswith(message)
    assert not chain.root.exists()


def test_debug_runs_here_and_marks_what_is_finished(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    chain.add("only", "text=here")
    launch.main([str(chain.config), "cluster=debug"])
    assert (chain.root / "only" / "result.0").read_text() == "here"
    marker = json.loads((chain.root / "stages" / "only.json").read_text())
    assert marker["program"] == "tests.unit.slurm.stage_programs"
    assert marker["argv"] == [f"output={chain.root}/only", "text=here"]
    assert len(marker["sha256"]) == 64
    assert marker["seconds"] >= 0
    launch.main([str(chain.config), "cluster=debug"])
    assert chain.runs("only") == ["1"]
    assert "finished before" in capsys.readouterr().out


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
    (stage,) = plan(LaunchConfig(root=str(chain.root), stages=_stages(chain)))
    resources = ResourcesConfig(partition="gpu", additional={"mail-user": "me"})
    assert parameters(stage, resources, "17") == {
        "name": "train",
        "nodes": 2,
        "tasks_per_node": 8,
        "gpus_per_node": 8,
        "cpus_per_task": 4,
        "timeout_min": 1440,
        "slurm_partition": "gpu",
        "slurm_signal_delay_s": 120,
        "slurm_additional_parameters": {
            "requeue": True,
            "kill-on-invalid-dep": "yes",
            "mail-user": "me",
            "dependency": "afterok:17",
        },
    }
    assert "dependency" not in parameters(stage, resources, None)["slurm_additional_parameters"]


def _stages(chain: Chain) -> dict[str, object]:
    chain.config.write_text(json.dumps({"root": str(chain.root), "stages": chain.stages}))
    return load(LaunchConfig, [chain.config]).stages  # type: ignore[return-value]
