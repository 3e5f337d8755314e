"""What is looked at on a rank, and how a defect of it is told."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from magvit_scale.training import distributed, examination
from magvit_scale.training.examination import beacon, examine_folder, examine_group, examine_machine
from magvit_scale.training.meeting import Meeting
from magvit_scale.training.rank_report import RankReport


@pytest.fixture
def report() -> RankReport:
    return RankReport(rank=0, world_size=1, host="here")


@pytest.fixture
def meeting() -> Iterator[Meeting]:
    yield Meeting(0, 1, 20)
    distributed.stop()


def test_a_machine_is_known_without_a_word_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("MASTER_ADDR", "nobody.invalid")
    found = examine_machine()
    assert (found.rank, found.world_size) == (3, 8)
    assert found.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found.memory_gb is not None
    assert found.memory_gb > 0.1


def test_more_ranks_than_gpus_are_refused_before_a_gpu_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 3))
    monkeypatch.setenv("LOCAL_RANK", "2")
    found = examine_machine()
    (problem,) = found.problems
    assert problem.startswith("LOCAL_RANK=2, but this rank sees 2 GPUs; ")
    assert (found.device_type, found.versions["nccl"]) == ("cuda", "2.27.3")


def test_a_gpu_that_does_not_answer_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: int) -> None:
        raise RuntimeError(f"device {device}: uncorrectable ECC error\nCUDA kernel errors might be ...")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 3))
    monkeypatch.setattr(torch.cuda, "get_device_properties", fail)
    monkeypatch.setenv("LOCAL_RANK", "1")
    (problem,) = examine_machine().problems
    assert problem == "GPU 1 does not answer: device 1: uncorrectable ECC error; see nvidia-smi here"


def test_a_good_folder_is_left_as_it_was(report: RankReport, meeting: Meeting, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with beacon(str(tmp_path), meeting) as name:
        assert (tmp_path / name).read_text() == name
        examine_folder(report, str(tmp_path), name)
    assert report.problems == []
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_another_folder_of_the_same_name_is_told(report: RankReport, meeting: Meeting, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    with beacon(str(tmp_path / "there"), meeting) as name:
        examine_folder(report, str(tmp_path / "here"), name)
    (problem,) = report.problems
    found = f"does not see in {tmp_path}/here what rank 0 has just written there: No such file or directory; mount"
    assert problem.startswith(found)


def test_a_folder_that_cannot_be_written_to_is_told(report: RankReport, meeting: Meeting, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with beacon(str(tmp_path / "file"), meeting) as name:
        assert name == ""
        examine_folder(report, str(tmp_path / "file"), name)
    (problem,) = report.problems
    assert problem.startswith(f"cannot write to {tmp_path}/file: Not a directory; ")


def test_a_disk_that_gives_back_other_bytes_is_told(
    report: RankReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda path: b"other")
    examine_folder(report, str(tmp_path), "")
    (problem,) = report.problems
    assert problem.startswith(f"cannot write to {tmp_path}: read back other bytes than were written; ")
    assert list(tmp_path.iterdir()) == []


def test_a_sum_is_checked_in_every_element(
    report: RankReport, meeting: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sum_badly(value: torch.Tensor) -> torch.Tensor:
        total = value.clone()
        total[-1] = total[-1].nextafter(torch.tensor(2.0))
        return total

    monkeypatch.setattr(distributed, "sum_over_ranks", sum_badly)
    examine_group(report, meeting)
    (problem,) = report.problems
    assert problem.startswith("all-reduce gave 1 wrong sums of 1048576, expected 1; ")


def test_a_group_of_one_is_tried_but_not_timed(report: RankReport, meeting: Meeting) -> None:
    examine_group(report, meeting)
    assert (report.problems, report.warnings) == ([], [])
    assert (report.all_reduce_ms, report.clock_offset_ms) == (None, None)
    assert not torch.distributed.is_initialized()


def test_an_error_of_communication_is_told_in_one_line(
    report: RankReport, meeting: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(value: torch.Tensor) -> torch.Tensor:
        raise torch.distributed.DistBackendError(
            "NCCL error: Connect to 10.0.0.2 failed \U0001f3d6\nexception raised from ..."
        )

    monkeypatch.setattr(distributed, "sum_over_ranks", fail)
    examine_group(report, meeting)
    (problem,) = report.problems
    assert problem.startswith("all-reduce failed: NCCL error: Connect to 10.0.0.2 failed; ")


@pytest.mark.parametrize(("ahead_s", "num_warnings"), [(0.9, 0), (-0.9, 0), (1.1, 1), (-1.1, 1)])
def test_clocks_more_than_a_second_apart_are_worth_a_warning(
    monkeypatch: pytest.MonkeyPatch, ahead_s: float, num_warnings: int
) -> None:
    report = RankReport(rank=1, world_size=2, host="there")
    monkeypatch.setattr(distributed, "barrier", lambda: None)
    monkeypatch.setattr(distributed, "all_of", lambda own: torch.cat([own - ahead_s, own]))
    examination._examine_clock(report, distributed.Ranks(1, 2, torch.device("cpu")))
    assert report.clock_offset_ms == pytest.approx(1000 * ahead_s, abs=0.01)
    assert (report.problems, len(report.warnings)) == ([], num_warnings)
    assert all(f"{ahead_s:+.1f} s" in warning for warning in report.warnings)
