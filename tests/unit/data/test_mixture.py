from pathlib import Path

import pytest
import torch

from magvit_scale.config import ClipsConfig, Refusal, SourceConfig, load
from magvit_scale.data.clips import held_out_clips, training_batches
from magvit_scale.data.mixture import PERIOD, Mixture
from tests.unit.data.conftest import npy, write_tar


@pytest.mark.parametrize("weights", [[1], [1, 1], [3, 1], [0.7, 0.2, 0.1], [1000, 1, 1e-9], [1 / 3] * 7])
def test_every_source_has_its_share_at_every_moment(weights: list[float]) -> None:
    mixture, counts = Mixture(weights), [0] * len(weights)
    for position in range(2 * PERIOD + 50):
        source, place = mixture.at(position)
        assert place == counts[source]
        counts[source] += 1
        for weight, count in zip(weights, counts, strict=True):
            share = max(weight / sum(weights), 1 / PERIOD)
            assert abs(count - share * (position + 1)) < 1 + len(weights) / 2 + 0.002 * position
    assert mixture.at(10**12 + 7)[1] == pytest.approx((10**12 + 7) * mixture.shares[mixture.at(7)[0]] / PERIOD, abs=2)


def test_the_schedule_never_changes() -> None:
    assert [Mixture([3, 1]).at(position) for position in range(6)] == [(0, 0), (0, 1), (1, 0), (0, 2), (0, 3), (0, 4)]


def test_weights_are_positive() -> None:
    for weights in ([], [1, 0], [-1], [float("inf")], [float("nan")]):
        with pytest.raises(ValueError, match="expected positive numbers"):
            Mixture(weights)


@pytest.fixture
def mixed(tmp_path: Path) -> ClipsConfig:
    """Six videos of classes cat and dog, two of dog and eel: each tells its source by its brightness."""
    for name, numbers, labels in (("a", range(6), ["cat", "dog"]), ("b", (10, 11), ["dog", "eel"])):
        members = []
        for number in numbers:
            members += [(f"v{number}.npy", npy(number)), (f"v{number}.cls", labels[number % 2].encode())]
        write_tar(tmp_path / name / "train-000.tar", members)
    sources = {name: SourceConfig(shards=str(tmp_path / name), weight=weight) for name, weight in (("a", 3), ("b", 1))}
    return ClipsConfig(sources=sources, size_px=16, num_frames=4, num_workers=0)


def numbers_and_labels(config: ClipsConfig, world_size: int, start_step: int, steps: int) -> list[tuple[int, int]]:
    ranks = [
        training_batches(
            config, seed=5, global_batch_size=8, rank=rank, world_size=world_size, start_step=start_step, steps=steps
        )
        for rank in range(world_size)
    ]
    found = []
    for parts in zip(*ranks, strict=True):
        clip, label = (torch.cat([part[name] for part in parts]) for name in ("clip", "label"))
        found += list(zip((clip[:, 0, 0, 0, 0] // 20).tolist(), label.tolist(), strict=True))
    return found


def test_sources_are_mixed_by_weight_and_their_classes_by_name(mixed: ClipsConfig) -> None:
    found = numbers_and_labels(mixed, 1, 0, 10)
    assert sum(number >= 10 for number, _ in found) == 20
    # Every source goes through its own passes.
    from_a = [number for number, _ in found if number < 10]
    assert [sorted(from_a[start : start + 6]) for start in range(0, 60, 6)] == [list(range(6))] * 10
    names = ["cat", "dog", "eel"]
    assert {(number, names[label]) for number, label in found} == {
        *((number, names[number % 2]) for number in range(6)), (10, "dog"), (11, "eel"),
    }  # fmt: skip


@pytest.mark.parametrize(("world_size", "start_step"), [(2, 0), (4, 3)])
def test_a_mixture_resumes_anywhere_on_any_machines(mixed: ClipsConfig, world_size: int, start_step: int) -> None:
    assert numbers_and_labels(mixed, world_size, start_step, 3) == numbers_and_labels(mixed, 1, 0, 6)[
        8 * start_step : 8 * start_step + 24
    ]  # fmt: skip


def test_held_out_clips_of_a_mixture_come_source_by_source(mixed: ClipsConfig) -> None:
    batches = list(held_out_clips(mixed, 8, 3))
    assert [key for batch in batches for key in batch["key"]] == ["v0", "v1", "v2", "v3", "v4", "v5", "v10", "v11"]


def test_sources_are_read_from_the_command_line() -> None:
    config = load(ClipsConfig, [], ["sources.a.shards=x", "sources.b.shards=y", "sources.b.weight=2"])
    assert config.sources == {"a": SourceConfig(shards="x"), "b": SourceConfig(shards="y", weight=2)}


def test_impossible_mixtures_are_refused(mixed: ClipsConfig) -> None:
    def refuse(match: str, **fields: object) -> None:
        with pytest.raises(Refusal, match=match):
            next(held_out_clips(ClipsConfig(**{"num_workers": 0, **fields}), 1, 1))

    refuse("either clips.shards=FOLDER or clips.sources")
    refuse("and not both", shards="x", sources=mixed.sources)
    refuse("clips.sources.a.weight=0: expected a positive number", sources={"a": SourceConfig(shards="x", weight=0)})
    refuse("one data set twice", sources={"a": SourceConfig(shards="x"), "b": SourceConfig(shards="x")})
    refuse("a stream cannot be mixed", sources={"a": SourceConfig(shards="pipe:cat x.tar")})
