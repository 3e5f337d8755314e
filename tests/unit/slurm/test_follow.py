"""What of a job's log reaches the screen."""

import io
from pathlib import Path

import pytest

from slurm.follow import LogFollower, explain_failure

BAR = "train:  50%|#####     | 5/10 [00:01<00:01,  5.00step/s]"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_only_whole_lines_are_shown_and_none_twice(tmp_path: Path) -> None:
    log, output = tmp_path / "log", io.StringIO()
    follower = LogFollower([log, tmp_path / "missing"], output)
    follower.copy()
    log.write_text("submitit INFO (2026-01-01) - Starting\none\ntw")
    follower.copy()
    assert output.getvalue() == "one\n"
    with log.open("a") as more:
        more.write(f"o\n{BAR}\n")
    follower.close()
    assert output.getvalue() == f"one\ntwo\n{BAR}\n"


def test_on_a_terminal_progress_is_redrawn_and_other_lines_start_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "21")
    log, output = tmp_path / "log", Terminal()
    log.write_text(f"{BAR}\n{BAR}\ndone\n{BAR}\n")
    follower = LogFollower([log], output)
    follower.close()
    drawn = f"\r\x1b[2K{BAR[:20]}"
    assert output.getvalue() == f"{drawn}{drawn}\ndone\n{drawn}\n"


def test_a_refusal_is_the_reason_whatever_is_printed_after_it(tmp_path: Path) -> None:
    out, err = tmp_path / "out", tmp_path / "err"
    out.write_text("reading\n")
    err.write_text(f"{BAR}\nmagvit_scale.train: found 3, expected 4\nresource tracker: bye\n")
    reason, lines = explain_failure(["magvit_scale.train"], out, err)
    assert reason == "magvit_scale.train: found 3, expected 4"
    assert lines == ["reading", "magvit_scale.train: found 3, expected 4", "resource tracker: bye"]
    assert explain_failure(["other"], out, err)[0] == "resource tracker: bye"
    assert explain_failure(["other"], tmp_path / "no", tmp_path / "no")[0].startswith("it ended without a message")
