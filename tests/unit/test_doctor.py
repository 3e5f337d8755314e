"""`magvit doctor` on a machine alone."""

import json
import socket
from pathlib import Path

import pytest

from magvit_scale import doctor
from magvit_scale.config import DoctorConfig, Refusal
from tests.tiny_tokens import NUM_SHARDS, write_clips


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)


def kept(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "rank00000.json").read_text())
    return content


def test_a_laptop_that_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = write_clips(tmp_path)
    capsys.readouterr()
    doctor.main([f"folder={tmp_path}", f"shards={clips}", f"reports={tmp_path / 'reports'}"])
    versions, heads, machine, verdict = capsys.readouterr().out.splitlines()
    assert versions.startswith("python ")
    assert heads.split() == ["rank", "host", "device", "memory", "bf16", "shards"]
    assert machine.split()[:2] == ["0", socket.gethostname()]
    assert machine.split()[-1] == str(NUM_SHARDS)
    assert verdict == "all well"
    report = kept(tmp_path / "reports")
    assert (report["is_final"], report["problems"], report["warnings"]) == (True, [], [])


def test_every_problem_is_a_line_and_the_status_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        doctor.main([f"folder={tmp_path / 'no'}", f"shards={tmp_path / 'none'}", f"reports={tmp_path / 'reports'}"])
    assert end.value.code == 1
    *_, first, second, verdict = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{socket.gethostname()}: cannot write to {tmp_path}/no: No such file or directory; ")
    assert second.startswith(f"{socket.gethostname()}: shards={tmp_path}/none: no dataset.json; ")
    assert verdict == "2 problems"
    assert len(kept(tmp_path / "reports")["problems"]) == 2  # type: ignore[arg-type]


def test_warnings_leave_the_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.main(["minutes_between_checkpoints=30", "time_limit_minutes=20"])
    *_, warning, verdict = capsys.readouterr().out.splitlines()
    found = "30 minutes between checkpoints, but jobs end after 20: "
    assert warning.startswith(f"warning: {socket.gethostname()}: {found}")
    assert verdict == "all well"


def test_impossible_wishes_are_refused() -> None:
    with pytest.raises(Refusal, match=r"^num_workers=-1: expected at least 0$"):
        DoctorConfig(num_workers=-1)
    with pytest.raises(Refusal, match=r"^patience_s=0: expected more than 0 seconds$"):
        DoctorConfig(patience_s=0)
