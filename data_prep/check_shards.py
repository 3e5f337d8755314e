"""Re-reads clip shards and proves what training relies on; ends with status 1 and the first fault, or with a table.

    python -m data_prep.check_shards shards=FOLDER
    python -m data_prep.check_shards shards=FOLDER sample=0.05     # a twentieth of the shards, for very large sets

Of every shard: index, counts, size, no key and no source video in two splits or twice in one. Of the sampled ones all
bytes: the checksum, each member against the index, and each video decoded from its first frame to its last.
"""

import hashlib
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from data_prep.list_videos import Record
from data_prep.shard_faults import read_index, tar_faults
from data_prep.shard_plan import content_hash
from data_prep.tar_members import ShardFault
from magvit_scale.config import CheckShardsConfig, Refusal, parse, refusals_end_the_program
from magvit_scale.data.shards import Dataset, Shard, load_dataset
from magvit_scale.progress import progress

COLUMNS = ("split", "shards", "videos", "seconds", "bytes", "checked", "errors")


@dataclass(frozen=True)
class _Report:
    """What was found in one shard.

    Attributes:
        split: of the shard.
        shard: as dataset.json describes it.
        samples: lines of the index; none where it cannot be read.
        checked: videos that were decoded.
        faults: each in one line.
    """

    split: str
    shard: Shard
    samples: Sequence[Record]
    checked: int
    faults: Sequence[str]


def main(argv: Sequence[str] | None = None) -> None:
    """Checks every shard of a folder and prints one table.

    Raises:
        Refusal: no dataset.json, an impossible key, or the first fault.
    """
    config = parse(CheckShardsConfig, argv)
    _check(config)
    dataset = load_dataset(config.shards)
    reports = _check_all(config, dataset)
    across = [*_dataset_faults(dataset.folder / "dataset.json"), *_twins(reports)]
    _tell(across)
    faults = [*(fault for report in reports for fault in report.faults), *across]
    sys.stdout.write(_table(reports))
    if faults:
        rest = f"; {len(faults) - 1} more are listed above" if len(faults) > 1 else ""
        again = "run data_prep.write_shards again"
        advice = f"{again} into another folder" if faults[0] in across else f"delete its .json and {again}"
        raise Refusal(f"{faults[0]}{rest}; {advice}")


def _check(config: CheckShardsConfig) -> None:
    if not 0 < config.sample <= 1:
        raise Refusal(f"sample={config.sample}: expected a share above 0, up to 1")
    if config.num_workers < 1:
        raise Refusal(f"num_workers={config.num_workers}: expected at least 1")


def _check_all(config: CheckShardsConfig, dataset: Dataset) -> list[_Report]:
    shards = [(split, shard) for split, part in dataset.splits.items() for shard in part]
    sampled = {shard.path for part in dataset.splits.values() for shard in _sample(config, part)}
    with ThreadPoolExecutor(config.num_workers) as pool:
        checked = pool.map(lambda item: _check_shard(dataset, *item, is_read=item[1].path in sampled), shards)
        return list(_told(progress(checked, "check_shards", len(shards), unit="shard")))


def _sample(config: CheckShardsConfig, shards: Sequence[Shard]) -> list[Shard]:
    luck = {shard.path: hashlib.sha256(f"{config.seed}/{shard.path.name}".encode()).digest() for shard in shards}
    return sorted(shards, key=lambda shard: luck[shard.path])[: math.ceil(config.sample * len(shards))]


def _check_shard(dataset: Dataset, split: str, shard: Shard, *, is_read: bool) -> _Report:
    try:
        samples = read_index(shard)
    except ShardFault as fault:
        return _Report(split, shard, [], 0, [f"{shard.path}: {fault}"])
    faults = list(tar_faults(shard, samples, dataset.encoding, dataset.size_px)) if is_read else []
    return _Report(split, shard, samples, len(samples) * is_read, [f"{shard.path}: {fault}" for fault in faults])


def _told(reports: Iterable[_Report]) -> Iterator[_Report]:
    for report in reports:
        _tell(report.faults)
        yield report


def _tell(faults: Iterable[str]) -> None:
    for fault in faults:
        tqdm.write(fault.encode(errors="backslashreplace").decode(), file=sys.stderr)


def _dataset_faults(path: Path) -> Iterator[str]:
    content = json.loads(path.read_text())
    hashed = {name: value for name, value in content.items() if name not in ("total", "hash")}
    if content_hash(hashed) != content["hash"]:
        yield f"{path}: its hash is not that of its content"
    count = sum(shard["count"] for shards in content["splits"].values() for shard in shards)
    if content.get("total") != count:
        yield f"{path}: total {content.get('total')}, expected {count}"


def _twins(reports: Sequence[_Report]) -> Iterator[str]:
    """Keys and source videos that come twice: training data in the test split, or a video that counts double."""
    for name in ("key", "source"):
        homes: defaultdict[str, list[Path]] = defaultdict(list)
        for report in reports:
            for sample in report.samples:
                homes[sample[name]].append(report.shard.path)
        for value, paths in homes.items():
            if len(paths) > 1:
                yield f"{name} {value!r} is in {paths[0]} and in {paths[1]}, expected in one shard"


def _table(reports: Sequence[_Report]) -> str:
    rows = [COLUMNS, *(_row(split, reports) for split in dict.fromkeys(report.split for report in reports))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line}\n" for line in lines)


def _row(split: str, reports: Sequence[_Report]) -> tuple[str, ...]:
    of_split = [report for report in reports if report.split == split]
    samples = [sample for report in of_split for sample in report.samples]
    seconds = sum(sample["num_frames"] / sample["fps"] for sample in samples)
    num_bytes, checked = sum(item.shard.num_bytes for item in of_split), sum(item.checked for item in of_split)
    counts = (len(samples), round(seconds), num_bytes, checked, sum(len(item.faults) for item in of_split))
    return split, str(len(of_split)), *(f"{count:,}" for count in counts)


if __name__ == "__main__":
    with refusals_end_the_program("check_shards"):
        main()
