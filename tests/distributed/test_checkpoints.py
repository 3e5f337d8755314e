"""What ranks tell each other. Save, load, continue: at any ZeRO stage and world size, against the run that was not
interrupted.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from tests.distributed.elastic import END, SAVED_AT, STAGES, WORLDS, continued_name, source_name

pytestmark = pytest.mark.distributed
PAIRS = [(world, stage) for world in WORLDS for stage in STAGES]
PARAMETER_SIZES = {"convolution.weight": 81, "convolution.bias": 3, "norm.weight": 3, "norm.bias": 3,
                   "hidden.weight": 33, "hidden.bias": 11, "out.weight": 11, "scale": 1}  # fmt: skip


def whole(folder: Path, step: int) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, its slices joined; fails where they overlap or leave a gap."""
    pieces: dict[str, list[tuple[int, Tensor]]] = {}
    tensors: dict[str, Tensor] = {}
    for path in sorted((folder / f"step_{step:08d}").glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                if path.name.startswith("rank_"):
                    name, start = key.split("@")
                    pieces.setdefault(name, []).append((int(start), file.get_tensor(key)))
                else:
                    tensors[key] = file.get_tensor(key)
    facts = json.loads((folder / f"step_{step:08d}" / "state.json").read_text())["facts"]
    for name, parts in pieces.items():
        parts.sort(key=lambda part: part[0])
        ends = [start + len(values) for start, values in parts]
        assert [start for start, _ in parts] == [0, *ends[:-1]], f"{name}: slices overlap or leave a gap"
        tensors[name] = torch.cat([values for _, values in parts])
    return tensors | {f"{name}/updates": torch.tensor(f["updates"]) for name, f in facts.items() if f}


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max((found[name].double() - expected[name].double()).abs().max().item() for name in expected)


@pytest.mark.parametrize(("world", "stage"), PAIRS)
def test_the_slices_of_all_ranks_are_the_whole_state(worlds: Path, world: int, stage: int) -> None:
    folder = worlds / source_name(world, stage)
    complete = json.loads((folder / f"step_{END:08d}" / "COMPLETE").read_text())
    parts = [f"rank_{rank:05d}.safetensors" for rank in range(world)]
    assert sorted(complete["files"]) == ["config.yaml", *parts, "replicated.safetensors", "state.json"]
    tensors = whole(folder, END)
    assert (tensors["early/updates"].item(), tensors["late/updates"].item()) == (7, 3)
    for engine in ("early", "late"):
        for kind in ("master", "exp_avg", "exp_avg_sq"):
            found = {name: tensors[f"{engine}/{kind}/{name}"].numel() for name in PARAMETER_SIZES}
            assert found == PARAMETER_SIZES
    assert {name: tensors[f"average/{name}"].numel() for name in PARAMETER_SIZES} == PARAMETER_SIZES
    early = whole(folder, SAVED_AT)
    assert early["late/updates"].item() == 0
    assert not any(name.startswith("late/exp_avg") for name in early)
    assert largest_difference({n: t for n, t in early.items() if "late/master" in n},
                              {n: t for n, t in tensors.items() if "late/master" in n}) > 1e-3  # fmt: skip


@pytest.mark.parametrize(("world", "stage"), PAIRS)
@pytest.mark.parametrize(("from_world", "from_stage"), PAIRS)
def test_continuing_equals_not_stopping(worlds: Path, from_world: int, from_stage: int, world: int, stage: int) -> None:
    source = source_name(from_world, from_stage)
    continued = worlds / continued_name(source, world, stage)
    assert largest_difference(whole(continued, SAVED_AT), whole(worlds / source, SAVED_AT)) == 0.0, "at load"
    difference = largest_difference(whole(continued, END), whole(worlds / source, END))
    if (from_world, from_stage) == (world, stage):
        assert difference == 0.0
    else:
        assert difference < 1e-6
    moved = largest_difference(whole(continued, SAVED_AT) | {"late/updates": torch.tensor(0)},
                               {n: t for n, t in whole(continued, END).items() if "late/exp_avg" not in n})  # fmt: skip
    assert moved > 1e-3, "the run did not train after the load"


@pytest.mark.parametrize("world", WORLDS)
def test_stages_and_worlds_agree_without_interruption(worlds: Path, world: int) -> None:
    reference = whole(worlds / source_name(1, 0), END)
    for stage in STAGES:
        assert largest_difference(whole(worlds / source_name(world, stage), END), reference) < 1e-6


def test_ranks_agree_on_what_they_tell_each_other(worlds: Path) -> None:
    zero, one = (json.loads((worlds / f"reduced.2.{rank}.json").read_text()) for rank in range(2))
    both = {"mean": [1.5, 10.0], "sum": [3.0, 20.0], "all": [1.0, 10.0, 2.0, 10.0], "any": [False, True, True, True],
            "told": ["wörter", ""], "number": 7, "denormal": 0.0}  # fmt: skip
    assert zero == both | {"mine": [1.0, 10.0], "gathered": {"whole": ["-0.0", "0.0", "-0.0", "1.0"]}}
    assert one == both | {"mine": [2.0, 10.0], "gathered": {}}
