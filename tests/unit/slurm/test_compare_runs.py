"""The table at the end of a sweep."""

import json
from pathlib import Path

import pytest

from slurm import compare_runs


def run(folder: Path, *lines: dict[str, float]) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def table(*runs: Path) -> list[list[str]]:
    output = runs[0].parent / "tables" / "table.md"
    compare_runs.main([f"runs={json.dumps([str(path) for path in runs])}", f"output={output}"])
    return [line.strip("| ").split(" | ") for line in output.read_text().splitlines()]


def test_the_best_comes_first_and_what_has_logged_nothing_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worse = run(tmp_path / "a", {"step": 5, "loss/total": 1.0}, {"step": 10, "loss/total": 12.34567, "perf/step_s": 1})
    better = run(tmp_path / "b", {"step": 20, "loss/total": 2.0, "loss/mask": 3.0, "accuracy": 1.0})
    output = tmp_path / "table.md"
    runs = json.dumps([str(tmp_path / "none"), str(worse), str(better)])
    compare_runs.main([f"runs={runs}", f"output={output}"])
    assert output.read_text() == (
        "| run | step | loss/total | loss/mask |\n"
        "| --- | --- | --- | --- |\n"
        "| b | 20 | 2 | 3 |\n"
        "| a | 10 | 12.35 |  |\n"
        "| none | nothing logged |  |  |\n"
    )
    assert capsys.readouterr().out == output.read_text()


def test_runs_that_end_with_a_line_of_validation_are_ranked_by_their_loss(tmp_path: Path) -> None:
    first = run(tmp_path / "a", {"step": 10, "loss/total": 4.0}, {"step": 10, "validation/FP": 1.0})
    second = run(tmp_path / "b", {"step": 10, "loss/total": 3.0}, {"step": 10, "validation/FP": 2.0})
    assert table(first, second) == [
        ["run", "step", "loss/total", "validation/FP"],
        ["---", "---", "---", "---"],
        ["b", "10", "3", "2"],
        ["a", "10", "4", "1"],
    ]


def test_runs_of_one_name_in_two_folders_are_two_rows(tmp_path: Path) -> None:
    base = run(tmp_path / "base" / "commit", {"step": 1, "loss/total": 2.0})
    large = run(tmp_path / "large" / "commit", {"step": 1, "loss/total": 1.0})
    assert [row[0] for row in table(base, large)[2:]] == ["large/commit", "base/commit"]


def test_a_run_that_has_diverged_is_not_the_best(tmp_path: Path) -> None:
    losses = {"a": 3.0, "b": float("nan"), "c": 1.0, "d": float("inf"), "e": 2.0}
    rows = table(*[run(tmp_path / name, {"step": 1, "loss/total": loss}) for name, loss in losses.items()])
    assert [row[0] for row in rows[2:]] == ["c", "e", "a", "b", "d"]


def test_tokenizers_are_ranked_by_their_reconstruction_which_stands_first(tmp_path: Path) -> None:
    a = run(tmp_path / "a", {"step": 1, "codebook/perplexity": 9, "loss/generator": 1, "loss/reconstruction": 0.5})
    b = run(tmp_path / "b", {"step": 1, "codebook/perplexity": 8, "loss/generator": 2, "loss/reconstruction": 0.25})
    rows = table(a, b)
    assert rows[0] == ["run", "step", "loss/reconstruction", "codebook/perplexity", "loss/generator"]
    assert [row[0] for row in rows[2:]] == ["b", "a"]
