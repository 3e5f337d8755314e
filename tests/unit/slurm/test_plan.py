"""Stages of a chain with their arguments: steps, placeholders, arrays, sweeps."""

from pathlib import Path
from typing import Any

import pytest

from magvit_scale.config import LaunchConfig, Refusal, load
from magvit_scale.files import write_json
from slurm.arguments import value
from slurm.plan import plan
from slurm.stages import Call, Stage, load_stage
from tests.unit.slurm.conftest import Chain


def planned(chain: Chain, *overrides: str) -> list[Stage]:
    return plan(load(LaunchConfig, [chain.config], overrides))


def argv(chain: Chain, name: str, *overrides: str) -> tuple[str, ...]:
    return next(stage.calls[0].argv for stage in planned(chain, *overrides) if stage.name == name)


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
    names = [[stage.name for stage in planned(chain, *o)] for o in ([], ["videos=/v"])]
    assert names == [["draw", "list"], ["check", "list"]]


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"overrides": ["a={videos}"]}, "stage odd: a={videos} needs videos, and none are given; give videos=FOLDER"),
        ({"program": "no.such"}, "stage odd: no module no.such; give a module with main"),
        ({"configs": ["/no/such.yaml"]}, "stage odd: cannot read /no/such.yaml"),
        ({"when": "videos"}, "no stage to run"),
        ({"array": 2, "then": [{"program": "slurm.launch"}]}, "stage odd: each of its 2 elements would run what is in"),
    ],
)
def test_a_chain_that_cannot_run_is_refused_before_its_first_stage(
    chain: Chain, stage: dict[str, object], message: str
) -> None:
    chain.add("odd")
    chain.stages["odd"] |= stage
    chain.write()
    with pytest.raises(Refusal) as refusal:
        planned(chain)
    assert str(refusal.value).startswith(message)
    assert not chain.root.exists()


def test_what_follows_in_a_stages_processes_has_its_own_arguments(chain: Chain, tmp_path: Path) -> None:
    config = tmp_path / "look.yaml"
    config.write_text("size_px: 1\n")
    chain.add("train", steps=10)
    chain.add_then(
        "look", "at={root}/train", configs=[str(config)], alone=True, overrides_with_videos=["videos={videos}"]
    )
    (stage,) = planned(chain, "videos=/v")
    looked = (str(config), f"output={chain.root}/look", f"at={chain.root}/train", "videos=/v")
    assert [call.argv for call in stage.calls] == [(f"output={chain.root}/train", "run.steps=10"), looked]
    assert [call.alone for call in stage.calls] == [False, True]
    write_json(stage.started_marker, stage.record(job_id=None))
    assert load_stage(Path(stage.folder), "train") == stage
    former = stage.record(job_id=None) | {"program": "other", "argv": ["a=1"]}
    write_json(stage.started_marker, {key: part for key, part in former.items() if key != "calls"})
    assert load_stage(Path(stage.folder), "train").calls == (Call("other", ("a=1",)),)
    config.write_text("size_px: 2\n")
    digest = planned(chain, "videos=/v")[0].digest
    assert digest != stage.digest
    chain.stages["train"]["then"][0]["alone"] = False
    chain.write()
    assert planned(chain, "videos=/v")[0].digest != digest
    chain.stages["train"]["then"][0]["program"] = "no.such"
    chain.write()
    with pytest.raises(Refusal, match=r"stage train: no module no\.such"):
        planned(chain)


def test_only_the_stages_that_are_named(chain: Chain) -> None:
    for name in ("first", "second", "third"):
        chain.add(name)
    assert [stage.name for stage in planned(chain, "only=[third,first]")] == ["first", "third"]
    with pytest.raises(Refusal, match="no stage fourth; expected one of first, second, third"):
        planned(chain, "only=[fourth]")


def test_elements_of_an_array_are_stages_on_slurm_only(chain: Chain) -> None:
    chain.add("shards", array=3)
    chain.add("train")
    on_slurm = planned(chain, "cluster=slurm")
    assert [(stage.name, stage.group) for stage in on_slurm] == [
        ("shards.0", "shards"), ("shards.1", "shards"), ("shards.2", "shards"), ("train", "train")
    ]  # fmt: skip
    assert len({stage.digest for stage in on_slurm[:3]}) == 1
    assert [stage.name for stage in planned(chain)] == ["shards", "train"]


def test_a_sweep_is_the_product_of_its_values_then_a_table(chain: Chain) -> None:
    chain.add("first")
    chain.add("train", "optim.rate=1", array_parallelism=2)
    chain.add_then("after_train")
    chain.add("last")
    first, *points, table = planned(chain, "sweep.train.optim.rate=[1e-3,0.1]", "sweep.train.kind=[a b,c]")
    assert first.name == "first"
    assert [point.name for point in points] == ["train.0", "train.1", "train.2", "train.3"]
    assert {len(point.calls) for point in points} == {1}
    assert points[1].calls[0].argv[2:] == (
        "optim.rate=0.001", 'kind="c"', f"output={chain.root}/train_sweep/rate=0.001,kind=c"
    )  # fmt: skip
    assert points[0].calls[0].argv[-1] == f"output={chain.root}/train_sweep/rate=0.001,kind=a_b"
    assert (table.name, table.calls[0].program, table.needs_success) == ("train_table", "slurm.compare_runs", False)
    assert f'"{chain.root}/train_sweep/rate=0.1,kind=c"' in table.calls[0].argv[0]


def test_a_sweep_in_a_folder_that_yaml_would_cut_is_quoted(chain: Chain) -> None:
    chain.root = chain.root.with_name("my runs: all #1")
    chain.add("train")
    point, table = planned(chain, "sweep.train.a=[1]")
    assert value(point.calls[0].argv, "output") == f"{chain.root}/train_sweep/a=1"
    assert value(table.calls[0].argv, "output") == f"{chain.root}/train_sweep/table.md"
    assert value(table.calls[0].argv, "runs") == [f"{chain.root}/train_sweep/a=1"]


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("sweep.nothing.a=[1]", "no stage nothing"),
        ("sweep.train.a=1", r"sweep a=1: expected a list of values, \[A,B\]"),
        ("sweep.train.a=[1,1]", "two points have the folder .*/train_sweep/a=1; take out what is given twice"),
        ("sweep.train.a=[1,2,2]", "two points have the folder .*/train_sweep/a=2; take out what is given twice"),
    ],
)
def test_sweeps_that_cannot_be(chain: Chain, sweep: str, message: str) -> None:
    chain.add("train")
    with pytest.raises(Refusal, match=message):
        planned(chain, sweep)


def test_resources_of_a_stage_go_before_the_chains_before_the_standard_ones(chain: Chain) -> None:
    resources: dict[str, Any] = {"partition": "cpu", "max_fruitless_restarts": 0}
    chain.add("shards", resources=resources)
    chain.add("train")
    shards, train = planned(chain, "resources.partition=gpu", "resources.time_limit_minutes=60")
    assert (shards.resources.partition, train.resources.partition) == ("cpu", "gpu")
    assert (shards.resources.max_fruitless_restarts, train.resources.max_fruitless_restarts) == (0, 3)
    assert shards.resources.time_limit_minutes == 60
    assert (Path(shards.folder), shards.resources.signal_delay_s) == (chain.root / "stages", 120)
