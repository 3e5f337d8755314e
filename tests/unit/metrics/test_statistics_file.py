"""Cached statistics: the same bits, or a refusal."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from magvit_scale.config import Refusal
from magvit_scale.metrics.frechet import FeatureStatistics, frechet_distance
from magvit_scale.metrics.statistics_file import Provenance, load_statistics, save_statistics

MADE_OF = Provenance(protocol="a1", weights="b2", clips="c3")


@pytest.fixture
def statistics() -> FeatureStatistics:
    statistics = FeatureStatistics(6)
    statistics.update(torch.from_numpy(np.random.default_rng(0).standard_normal((9, 6))))
    return statistics


@pytest.fixture
def path(tmp_path: Path, statistics: FeatureStatistics) -> Path:
    save_statistics(tmp_path / "cache" / "real.npz", statistics, MADE_OF)
    return tmp_path / "cache" / "real.npz"


def test_they_come_back_bit_by_bit_and_go_on(path: Path, statistics: FeatureStatistics) -> None:
    loaded = load_statistics(path, MADE_OF)
    assert loaded.count == 9
    assert torch.equal(loaded.mean, statistics.mean)
    assert torch.equal(loaded.scatter, statistics.scatter)
    assert frechet_distance(loaded, statistics) < 1e-12
    loaded.merge(statistics)
    assert loaded.count == 18


@pytest.mark.parametrize("name", ["protocol", "weights", "clips"])
def test_a_stale_file_is_refused_with_both_values(path: Path, name: str) -> None:
    with pytest.raises(Refusal, match=rf"real.npz: made with {name} {getattr(MADE_OF, name)}, expected other; remove"):
        load_statistics(path, replace(MADE_OF, **{name: "other"}))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no archive"])
def test_a_damaged_file_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(Refusal, match=r"real.npz: .*expected feature statistics"):
        load_statistics(path, MADE_OF)


def test_a_missing_file_and_another_archive_are_refused(path: Path) -> None:
    with pytest.raises(Refusal, match=r"none\.npz"):
        load_statistics(path.with_name("none.npz"), MADE_OF)
    np.savez(path, count=np.array(3))
    with pytest.raises(Refusal, match="protocol"):
        load_statistics(path, MADE_OF)
