import os
from pathlib import Path

import pytest

from benchmarks.claims.points import Point, compute
from magvit_scale.config import Refusal


def counting(folder: Path, value: int) -> Point:
    def work(aside: Path) -> dict[str, int]:
        (aside / "scratch").write_text("large")
        (folder / f"call_{len(list(folder.glob('call_*')))}").touch()
        return {"value": value}

    return Point({"value": value}, work)


def test_a_finished_point_is_not_computed_again(tmp_path: Path) -> None:
    for _ in range(2):
        found = compute({"a": counting(tmp_path, 1)}, tmp_path / "out")
        assert found["a"]["figures"] == {"value": 1}
        assert found["a"]["cpu_s"] >= 0
    assert len(list(tmp_path.glob("call_*"))) == 1
    assert not list((tmp_path / "out" / "runs").iterdir())


def test_other_settings_are_another_point(tmp_path: Path) -> None:
    compute({"a": counting(tmp_path, 1)}, tmp_path / "out")
    assert compute({"a": counting(tmp_path, 2)}, tmp_path / "out")["a"]["figures"] == {"value": 2}


def test_an_interrupted_point_goes_on_with_the_same_settings_only(tmp_path: Path) -> None:
    def point(settings: dict[str, int], *, fails: bool) -> Point:
        def work(folder: Path) -> dict[str, int]:
            before = len(list(folder.iterdir()))
            (folder / "checkpoint").touch()
            if fails:
                os._exit(9)
            return {"found": before}

        return Point(settings, work)

    with pytest.raises(Refusal, match="a: ended with status 9"):
        compute({"a": point({"steps": 1}, fails=True)}, tmp_path)
    assert compute({"a": point({"steps": 2}, fails=False)}, tmp_path)["a"]["figures"] == {"found": 0}
    assert compute({"a": point({"steps": 1}, fails=False)}, tmp_path)["a"]["figures"] == {"found": 1}


def test_a_point_that_fails_names_its_log_and_keeps_its_folder(tmp_path: Path) -> None:
    def work(folder: Path) -> dict[str, int]:
        (folder / "checkpoint").touch()
        os.write(2, b"no such thing")
        raise ValueError

    with pytest.raises(Refusal, match=r"b: ended with status 1; read .*b\.log"):
        compute({"b": Point({}, work)}, tmp_path)
    assert "no such thing" in (tmp_path / "logs" / "b.log").read_text()
    assert [path.name for path in tmp_path.glob("runs/b_*/*")] == ["checkpoint"]
    assert not (tmp_path / "points" / "b.json").exists()
