"""The end of a chain on request, and its second beginning."""

import json
from pathlib import Path

import pytest

from magvit_scale.config import Refusal
from slurm import cancel, launch, resubmit
from slurm.stages import load_stage, read_marker
from tests.unit.slurm.conftest import Chain
from tests.unit.slurm.fake_slurm import FakeSlurm

pytestmark = pytest.mark.usefixtures("at_home")
Capture = pytest.CaptureFixture[str]
RUNS = "41|RUNNING|None|0:10|1:00|2026-01-01T00:00:00|node1"
WAITS = "42|PENDING|Dependency|0:00|1:00|N/A|"


@pytest.fixture
def submitted(chain: Chain, fake_slurm: FakeSlurm) -> Chain:
    chain.add("train")
    chain.add("after")
    launch.main([str(chain.config), "cluster=slurm"])
    fake_slurm.queue(RUNS, WAITS)
    return chain


def test_waiting_jobs_leave_the_queue_and_running_ones_are_asked_to_save(
    submitted: Chain, fake_slurm: FakeSlurm, capsys: Capture
) -> None:
    capsys.readouterr()
    cancel.main([str(submitted.root)])
    assert fake_slurm.calls("scancel") == ["42", "--signal=TERM 41"]
    assert capsys.readouterr().out.splitlines() == [
        "train                   job 41  saves and ends",
        "after                   job 42  cancelled",
        f"no job is left; python -m slurm.resubmit {submitted.root} goes on",
    ]
    assert all((submitted.root / "stages" / f"{name}.cancelled").exists() for name in ("train", "after"))


def test_what_is_finished_is_not_marked_as_cancelled(submitted: Chain, fake_slurm: FakeSlurm) -> None:
    (submitted.root / "stages" / "train.json").touch()
    fake_slurm.queue(WAITS)
    cancel.main([str(submitted.root)])
    assert not (submitted.root / "stages" / "train.cancelled").exists()
    assert fake_slurm.calls("scancel") == ["42"]


def test_a_job_that_does_not_end_is_ended(
    submitted: Chain, fake_slurm: FakeSlurm, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancel.time, "sleep", lambda _seconds: fake_slurm.queue(RUNS))
    (fake_slurm.folder / "bin" / "scancel").write_text(f'#!/bin/bash\necho "scancel $*" >> {fake_slurm.folder}/calls\n')
    cancel.main([str(submitted.root), "--patience=0"])
    assert fake_slurm.calls("scancel") == ["42", "--signal=TERM 41", "41 42"]
    assert "not ended after 0 s: scancel\n" in capsys.readouterr().out


def test_without_an_answer_of_slurm_nothing_is_said_to_have_ended(
    submitted: Chain, fake_slurm: FakeSlurm, capsys: Capture
) -> None:
    fake_slurm.go_down()
    with pytest.raises(Refusal, match="Unable to contact slurm controller"):
        cancel.main([str(submitted.root)])
    assert "no job is left" not in capsys.readouterr().out


def test_a_chain_of_this_machine_is_refused(chain: Chain) -> None:
    chain.add("only")
    launch.main([str(chain.config), "cluster=debug"])
    with pytest.raises(Refusal, match="runs on cluster=debug; end its launcher with Ctrl-C"):
        cancel.main([str(chain.root)])


def test_resubmit_takes_up_what_was_cancelled_and_leaves_what_is_finished(
    submitted: Chain, fake_slurm: FakeSlurm, capsys: Capture
) -> None:
    cancel.main([str(submitted.root)])
    folder = submitted.root / "stages"
    (folder / "train.json").write_text((folder / "train.started.json").read_text())
    fake_slurm.queue()
    resubmit.main([str(submitted.root), "resources.exclude=node7"])
    after = load_stage(folder, "after")
    assert not after.cancelled_marker.exists()
    assert (after.resources.exclude, read_marker(after.started_marker)["job_id"]) == ("node7", "43")
    assert len(fake_slurm.calls("sbatch")) == 3
    assert "1 of 2 stages submitted, the others were finished before" in capsys.readouterr().out
    record = json.loads((folder / "chain.json").read_text())
    assert record["arguments"] == [str(submitted.config), "cluster=slurm", "resources.exclude=node7"]


@pytest.mark.parametrize("is_down", [False, True])
def test_a_stage_is_not_submitted_twice(submitted: Chain, fake_slurm: FakeSlurm, is_down: bool) -> None:
    if is_down:
        fake_slurm.go_down()
    record = (submitted.root / "stages" / "chain.json").read_text()
    for more in ("resources.exclude=node7", "cluster=debug"):
        with pytest.raises(Refusal, match="Unable to contact" if is_down else "stage train is already SLURM job 41"):
            resubmit.main([str(submitted.root), more])
    assert len(fake_slurm.calls("sbatch")) == 2
    assert submitted.runs("train") == []
    assert (submitted.root / "stages" / "chain.json").read_text() == record


def test_jobs_of_a_former_launch_of_other_stages_are_cancelled_too(
    submitted: Chain, fake_slurm: FakeSlurm, capsys: Capture
) -> None:
    submitted.add("last")
    launch.main([str(submitted.config), "cluster=slurm", "only=[last]"])
    capsys.readouterr()
    cancel.main([str(submitted.root)])
    assert fake_slurm.calls("scancel") == ["42", "--signal=TERM 41"]
    assert "after                   job 42  cancelled" in capsys.readouterr().out


def test_resubmit_repeats_the_recorded_command_where_it_was_given(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.add("only")
    monkeypatch.chdir(tmp_path)
    launch.main(["chain.yaml", "root=here", "cluster=debug"])
    (tmp_path / "here" / "stages" / "only.json").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    resubmit.main([str(tmp_path / "here")])
    assert (tmp_path / "here" / "only" / "runs.0").read_text() == "1\n1\n"
    assert not list((tmp_path / "elsewhere").iterdir())
