"""Slices over the files of some ranks, read by any other division."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from magvit_scale.config import Refusal
from magvit_scale.training.slices import open_slices, read_whole, write_tensors

WHOLE = torch.arange(11.0)
OTHER = -torch.arange(3.0)


def write(folder: Path, *ranks: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for rank, tensors in enumerate(ranks):
        write_tensors(tensors, folder / f"rank_{rank:05d}.safetensors")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One tensor in three parts out of order, another within one file, and a rank without anything."""
    return write(
        tmp_path,
        {"part/a@9": WHOLE[9:].clone(), "part/a@0": WHOLE[:2].clone(), "part/a.b@0": OTHER},
        {"part/a@2": WHOLE[2:9].clone()},
        {},
    )


@pytest.mark.parametrize("first", range(12))
def test_any_slice_is_joined_from_those_that_overlap_it(folder: Path, first: int) -> None:
    with open_slices(folder) as read:
        for length in range(12 - first):
            assert read("part/a", first, length).tolist() == WHOLE[first : first + length].tolist()
        assert read("part/a.b", 1, 2).tolist() == [-1, -2]


@settings(deadline=None, max_examples=30)
@given(cuts=st.sets(st.integers(1, 10)), owners=st.lists(st.integers(0, 2), min_size=11, max_size=11))
def test_every_division_gives_every_slice(
    tmp_path_factory: pytest.TempPathFactory, cuts: set[int], owners: list[int]
) -> None:
    ranks: list[dict[str, Tensor]] = [{}, {}, {}]
    bounds = [0, *sorted(cuts), 11]
    for owner, (first, stop) in zip(owners, pairwise(bounds), strict=False):
        ranks[owner][f"x@{first}"] = WHOLE[first:stop].clone()
    folder = write(tmp_path_factory.mktemp("slices"), *ranks)
    with open_slices(folder) as read:
        assert all(
            read("x", first, stop - first).tolist() == WHOLE[first:stop].tolist()
            for first in range(11)
            for stop in range(first, 12)
        )


@pytest.mark.parametrize(
    ("name", "first", "length", "words"),
    [
        ("part/a", 0, 12, "checkpoint holds 11 of 12 elements of part/a; it is of another model"),
        ("part/a", 8, 5, "checkpoint holds 3 of 5 elements of part/a"),
        ("part/missing", 0, 3, "checkpoint holds 0 of 3 elements of part/missing"),
    ],
)
def test_what_is_not_there_is_refused(folder: Path, name: str, first: int, length: int, words: str) -> None:
    with open_slices(folder) as read, pytest.raises(Refusal, match=words):
        read(name, first, length)


def test_a_hole_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"x@0": WHOLE[:3].clone()}, {"x@5": WHOLE[5:].clone()})
    with open_slices(tmp_path) as read, pytest.raises(Refusal, match="holds 9 of 11 elements of x"):
        read("x", 0, 11)


def test_whole_tensors_have_their_shapes(folder: Path) -> None:
    found = read_whole(folder, "part", {"a": (11, 1), "a.b": (3,)})
    assert found.keys() == {"a", "a.b"}
    assert torch.equal(found["a"], WHOLE[:, None])
    assert torch.equal(found["a.b"], OTHER)
    with pytest.raises(Refusal, match=r"holds 3 of 4 elements of part/a\.b"):
        read_whole(folder, "part", {"a.b": (2, 2)})


def test_a_number_has_one_element(tmp_path: Path) -> None:
    write(tmp_path, {"part/scale@0": torch.tensor([4.0])})
    assert read_whole(tmp_path, "part", {"scale": ()})["scale"].shape == ()


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "rank_00000.safetensors"
    write_tensors({"x@0": WHOLE}, path)
    (tmp_path / "rank_00000.tmp").write_bytes(b"half of the next one")
    with open_slices(tmp_path) as read:
        assert torch.equal(read("x", 0, 11), WHOLE)
    write_tensors({"x@0": WHOLE + 1}, path)
    assert torch.equal(load_file(path)["x@0"], WHOLE + 1)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
