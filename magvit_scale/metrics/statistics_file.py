"""Feature statistics of a real set as a file, so that they are computed once; what they were made of is in the file.

A file that was made of anything else than is asked for is refused, never silently taken.
"""

import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from magvit_scale.config import Refusal
from magvit_scale.files import write_npz
from magvit_scale.metrics.frechet import FeatureStatistics


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What statistics follow from; three checksums, or words where there is none."""

    protocol: str
    """`Protocol.hash`."""
    weights: str
    """sha256 of the feature network's file, or `random`."""
    clips: str
    """Checksum of the data set's shards, with the seed and the fold that chose its clips."""


def save_statistics(path: Path, statistics: FeatureStatistics, provenance: Provenance) -> None:
    """Writes an npz, aside and then renamed. One rank, after the merge."""
    arrays = {"count": np.array(statistics.count)}
    arrays |= {"mean": statistics.mean.numpy(), "scatter": statistics.scatter.numpy()}
    write_npz(path, arrays | {name: np.array(value) for name, value in asdict(provenance).items()})


def load_statistics(path: Path, provenance: Provenance) -> FeatureStatistics:
    """Reads what `save_statistics` wrote, bit by bit.

    Raises:
        Refusal: the file is missing or damaged, or was made of something else than `provenance`.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = Provenance(**{name: str(arrays[name]) for name in asdict(provenance)})
            count, mean, scatter = (arrays[name] for name in ("count", "mean", "scatter"))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise Refusal(f"{path}: {error}; expected feature statistics, remove the file to compute them anew") from error
    _refuse_stale(path, found, provenance)
    statistics = FeatureStatistics(len(mean))
    statistics.count = int(count)
    statistics.mean, statistics.scatter = torch.from_numpy(mean), torch.from_numpy(scatter)
    return statistics


def _refuse_stale(path: Path, found: Provenance, expected: Provenance) -> None:
    for name, value in asdict(expected).items():
        if (other := getattr(found, name)) != value:
            raise Refusal(f"{path}: made with {name} {other}, expected {value}; remove the file to compute it anew")
