"""Whether two runs ended alike: weights, moments, averages, curves; all to the bit, but for clocks and folders."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray


def timeless(run: Path, *, is_cut_short: bool = False) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock has measured; of a killed run, also without half a line at its end."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [_without_clock(json.loads(line)) for line in lines if not is_cut_short or line.endswith("}")]


def trained(run: Path) -> list[dict[str, Any]]:
    """The lines of `timeless` that training logged, without those of held-out clips."""
    return [line for line in timeless(run) if "optim/learning_rate" in line]


def points(run: Path) -> dict[str, list[tuple[int, Any]]]:
    """(step, value) of every tag, as TensorBoard shows them: of the clock's own only the steps, of text all but
    the run's name.
    """
    found = EventAccumulator(str(run / "tensorboard"), {"tensors": 0}).Reload()
    return {tag: [(event.step, None if _is_of_clock(tag) else _shown(event.tensor_proto))
                  for event in found.Tensors(tag)] for tag in found.Tags()["tensors"]}  # fmt: skip


def files(folder: Path) -> dict[str, Any]:
    """Contents by path: the bytes of a file; JSON and YAML without clocks, the run's name and what depends on them."""
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_ends_alike(run: Path, undisturbed: Path) -> None:
    assert timeless(run) == timeless(undisturbed)
    for part in ("export", "checkpoints"):
        found, expected = files(run / part), files(undisturbed / part)
        assert found.keys() == expected.keys()
        assert [name for name in expected if found[name] != expected[name]] == []
    shown, expected_points = points(run), points(undisturbed)
    assert shown.keys() == expected_points.keys()
    assert {tag: shown[tag] for tag in shown if shown[tag] != expected_points[tag]} == {}


def _shown(tensor: Any) -> Any:
    value = make_ndarray(tensor)
    return [re.sub(rb"\n  folder: .*", b"", item) for item in value.flat] if value.dtype == object else value.tolist()


def _content(path: Path) -> Any:
    if path.name == "state.json":
        state = json.loads(path.read_text())
        return state | {"metrics": _without_clock(state["metrics"])}
    if path.name == "config.yaml":
        config = yaml.safe_load(path.read_text())
        del config["run"]["folder"]
        return config
    if path.name == "COMPLETE":
        sizes: dict[str, int] = json.loads(path.read_text())["files"]
        return {name: size if name.endswith(".safetensors") else 0 for name, size in sizes.items()}
    return path.read_bytes()


def _without_clock(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if not _is_of_clock(name)}


def _is_of_clock(name: str) -> bool:
    return name == "time" or name.startswith("perf/")
