import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from magvit_scale.config import Refusal
from magvit_scale.data import shard_index
from magvit_scale.data.shard_index import IndexLines, open_lines, read_lines

TEXTS = st.text(alphabet='{}[]",:\\ \nsamplekyö', max_size=12)
ONE = st.integers(0, 9) | TEXTS
VALUES = (
    ONE | st.lists(ONE, max_size=2) | st.dictionaries(TEXTS, ONE | st.dictionaries(TEXTS, ONE, max_size=1), max_size=2)
)
LINES = st.lists(st.dictionaries(TEXTS, VALUES, max_size=3) | VALUES, min_size=1, max_size=4)


def write(path: Path, lines: Any, indent: int | None = 1) -> Path:
    """As write_shards leaves an index, with objects before and after the lines."""
    errors = [{"key": "a"}, {"key": "b"}]
    content = {"count": 2, "settings": {"samples": 1}, "samples": lines, "errors": errors, "stats": {"b": {}}}
    path.write_text(json.dumps(content, indent=indent))
    return path


@given(lines=LINES, indent=st.sampled_from([None, 0, 1, 4]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lines_are_those_of_the_whole_whatever_they_hold(tmp_path: Path, lines: list[Any], indent: int | None) -> None:
    path = write(tmp_path / "index.json", lines, indent)
    assert list(open_lines(path, len(lines))) == read_lines(path, len(lines)) == lines


@pytest.mark.parametrize("indent", [None, 1])
def test_a_line_is_parsed_alone(tmp_path: Path, indent: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_index, "read_json", None)
    lines = [{"key": f'}}, {{"key": "{number}', "size": number} for number in range(500)]
    path = write(tmp_path / "index.json", lines, indent)
    path.write_text(path.read_text().replace('"size": 7', '"size": ?').replace('"size": 499', '"size": 499,'))
    with pytest.raises(TypeError):  # its last line shows where the lines end, so that all are parsed
        open_lines(path, 500)
    path.write_text(path.read_text().replace('"size": 499,', '"size": 499'))
    found = open_lines(path, 500)
    assert [found[number] for number in (0, 6, 8, 499)] == [lines[number] for number in (0, 6, 8, 499)]
    with pytest.raises(Refusal, match=r"index.json: not JSON \(Expecting value.*; delete it and run data_prep"):
        found[7]


@pytest.mark.parametrize(
    "lines",
    [
        [{"c": 2}, {}], [None, {"c": 2}], [{"c": 2}, None], [{"x": 1}, {}, {"a": {"b": 1}}, {"c": 2}],
        [{"x": 1}, 1, {"a": [{"b": 1}, {"d": 1}]}, {"c": 2}], [{"x": 1}, 1, {"c": 2}], [{"a": [1]}, {"c": 2}],
        [{"x": "], "}, {"c": 2}],
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_told_costs_time_and_not_truth(tmp_path: Path, lines: list[Any]) -> None:
    found = open_lines(write(tmp_path / "index.json", lines), len(lines))
    assert not isinstance(found, IndexLines)
    assert list(found) == lines


def test_names_with_brackets_and_objects_in_lines_cost_none(tmp_path: Path) -> None:
    lines: list[Any] = [{}, {"key": "[a] {b}.mp4", "about": {"c": {"d": 1}, "e": {"f": 2}}}, {"key": "x", "about": {}}]
    found = open_lines(write(tmp_path / "index.json", lines), 3)
    assert isinstance(found, IndexLines)
    assert list(found) == lines


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text: text[:-1], "not JSON"),
        (lambda text: text[: len(text) // 2], "not JSON"),
        (lambda text: text.replace('"errors"', "errors"), "not JSON"),
        (lambda text: text.replace('"samples": [', '"samples": [{"c": 4},'), "3 samples, expected 2"),
        (lambda text: text.replace('"samples": [', '"others": ['), "no samples, expected 2"),
        (lambda text: f"[{text}]", "no samples, expected 2"),
        (lambda text: f"{text}{text}", "not JSON"),
        (lambda text: '{"samples": []}', "0 samples, expected 2"),
        (lambda text: "", "not JSON"),
    ],
)  # fmt: skip
def test_damage_beside_the_lines_is_refused_before_any_is_asked_for(tmp_path: Path, change: Any, expected: str) -> None:
    path = write(tmp_path / "index.json", [{"a": 1}, {"b": "2"}])
    path.write_text(change(path.read_text()))
    with pytest.raises(Refusal, match=rf"index.json: {expected}") as refusal:
        open_lines(path, 2)
    with pytest.raises(Refusal) as other:
        read_lines(path, 2)
    assert str(other.value) == str(refusal.value)
