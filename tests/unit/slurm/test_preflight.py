"""What `magvit doctor` is asked before step 0."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from magvit_scale.config import DoctorConfig, LaunchConfig, load, parse
from slurm import preflight
from slurm.plan import plan
from slurm.stages import Stage
from tests.unit.slurm.conftest import Chain


class Doctor:
    """Stands where subprocess.run is."""

    def __init__(self, status: int | None) -> None:
        self.status, self.config, self.port = status, DoctorConfig(), ""

    def __call__(self, command: list[str], env: dict[str, str], timeout: float, **_: Any) -> Any:
        self.config = parse(DoctorConfig, command[command.index("doctor") + 1 :])
        self.port = env["MASTER_PORT"]
        if self.status is None:
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, self.status)


def planned(chain: Chain, *overrides: str, **settings: Any) -> Stage:
    chain.add("train", *overrides, **settings)
    return plan(load(LaunchConfig, [chain.config]))[0]


def test_the_run_to_come_is_described(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    chain.root = chain.root.with_name("my runs: all #1")
    overrides = ["run.folder={root}/train", "run.checkpoint_every=120", "clips.shards={root}/shards"]
    stage = planned(chain, *overrides, "clips.num_workers=2", tasks=2)
    (chain.root / "train").mkdir(parents=True)
    (chain.root / "train" / "metrics.jsonl").write_text(json.dumps({"step": 1, "perf/step_s": 0.5}) + "\n")
    monkeypatch.setattr(preflight.subprocess, "run", doctor := Doctor(0))
    preflight.examine(stage, "7-2", 26_000)
    assert doctor.port == "26000"
    assert doctor.config == DoctorConfig(
        folder=f"{chain.root}/stages",
        shards=f"{chain.root}/shards",
        num_workers=2,
        reports=f"{chain.root}/stages/preflight/train.7-2",
        patience_s=preflight.PATIENCE_S,
        minutes_between_checkpoints=1.0,
        time_limit_minutes=1440,
    )


@pytest.mark.parametrize("status", [1, None])
def test_a_problem_or_no_end_is_unfit(chain: Chain, monkeypatch: pytest.MonkeyPatch, status: int | None) -> None:
    monkeypatch.setattr(preflight.subprocess, "run", Doctor(status))
    with pytest.raises(SystemExit) as end:
        preflight.examine(planned(chain), "7-2", 26_000)
    assert end.value.code == preflight.UNFIT_STATUS


def test_it_is_wanted_of_more_than_one_process_unless_something_is_said(chain: Chain) -> None:
    assert not preflight.is_wanted(planned(chain))
    assert preflight.is_wanted(planned(chain, nodes=2))
    assert not preflight.is_wanted(planned(chain, tasks=2, resources={"preflight": False}))
    assert preflight.is_wanted(planned(chain, resources={"preflight": True}))


def test_a_rank_that_did_not_reach_its_end_makes_its_node_unfit(chain: Chain) -> None:
    stage = planned(chain, nodes=3)
    reports = Path(stage.folder, "preflight", "train.7-2")
    reports.mkdir(parents=True)
    for rank, (host, is_final) in enumerate([("node1", True), ("node1", False), ("node2", True)]):
        report = {"host": host, "problems": [], "is_final": is_final}
        (reports / f"rank{rank:05d}.json").write_text(json.dumps(report))
    assert preflight.unfit_nodes(stage, "7-2", ["node1", "node2", "node3"]) == ["node1", "node3"]
    assert preflight.unfit_nodes(stage, "7-3", ["node1", "node2"]) == []
