"""BAIR robot pushing, small: softmotion30_44k/{train,test}/traj_A_to_B.tfrecords. No classes."""

import re
from pathlib import Path

from data_prep.bair import count_records
from data_prep.sources.listing import Item, Listing
from magvit_scale.config import ListVideosConfig, Refusal

COUNTS = {"train": 43_264, "test": 256}


def list_bair(config: ListVideosConfig, folder: Path) -> Listing:
    """Every record of every file, in the order of the trajectories; where a file is damaged, the records before.

    Raises:
        Refusal: no TFRecord file.
    """
    unpacked = folder / "softmotion30_44k"
    root = unpacked if unpacked.is_dir() else folder
    items: list[Item] = []
    missing: dict[str, str] = {}
    for split in ("train", "test"):
        for file in sorted((root / split).glob("*.tfrecords"), key=_first_trajectory):
            path = file.relative_to(folder).as_posix()
            num_records, damage = count_records(file)
            items += [Item(f"{path}#{number}", split=split) for number in range(num_records)]
            missing |= (
                {f"{path}#{num_records}": f"{damage}; this record and the rest of the file are lost"} if damage else {}
            )
    if not items:
        raise Refusal(f"videos={folder}: no videos in it; expected train/*.tfrecords and test/*.tfrecords of BAIR")
    return Listing(items, missing, counts=COUNTS)


def _first_trajectory(file: Path) -> tuple[int, str]:
    """By number: traj_256_to_511 comes before traj_10240_to_10495."""
    return int(next(iter(re.findall(r"\d+", file.name)), 0)), file.name
