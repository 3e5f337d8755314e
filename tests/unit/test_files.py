"""In which order launches side by side make what is missing."""

import os

import pytest

from magvit_scale.files import in_own_order

ARRAY = "SLURM_ARRAY_TASK_"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ID", "COUNT", "MIN"):
        monkeypatch.delenv(f"{ARRAY}{name}", raising=False)


def element(monkeypatch: pytest.MonkeyPatch, own: int, count: int, first: int = 0) -> None:
    for name, number in (("ID", own), ("COUNT", count), ("MIN", first)):
        monkeypatch.setenv(f"{ARRAY}{name}", str(number))


@pytest.mark.parametrize("first", [0, 5])
def test_elements_of_an_array_begin_evenly_spread(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    begins = []
    for own in range(4):
        element(monkeypatch, first + own, 4, first)
        order = in_own_order(range(10))
        begins.append(order[0])
        assert order == [(order[0] + number) % 10 for number in range(10)]
    assert begins == [0, 2, 5, 7]


def test_more_elements_than_items_have_all_items_each(monkeypatch: pytest.MonkeyPatch) -> None:
    begins = []
    for own in range(6):
        element(monkeypatch, own, 6)
        begins.append(in_own_order("abc")[0])
        assert sorted(in_own_order("abc")) == ["a", "b", "c"]
    assert begins == ["a", "a", "b", "b", "c", "c"]


def test_other_launches_begin_where_their_process_number_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    for pid, expected in ((12, "abcd"), (13, "bcda"), (15, "dabc")):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        assert in_own_order("abcd") == list(expected)


def test_of_nothing_there_is_no_order() -> None:
    assert in_own_order([]) == []
