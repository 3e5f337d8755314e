"""Sharding under everything a cluster does to it: killed, no space, broken files, strange names, few videos."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import check_shards, list_videos, moving_shapes, write_shards
from magvit_scale.config import Refusal, refusals_end_the_program
from magvit_scale.video import encode_mp4
from tests.integration.conftest import bytes_of

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_KILLS = 50
Record = dict[str, Any]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen videos of eight frames, 16 px."""
    folder = tmp_path_factory.mktemp("faults")
    moving_shapes.main([f"output={folder / 'videos'}", "videos_per_class=2", "num_frames=8", "size_px=16"])
    list_videos.main([f"videos={folder / 'videos'}", f"output={folder}", "min_frames=8"])
    return folder / "manifest.jsonl"


def read_lines(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_manifest(path: Path, records: Sequence[Record]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {path.removeprefix(str(folder)): data for path, data in bytes_of(folder).items()}


def written(manifest: Path, output: Path, *arguments: str) -> dict[str, bytes]:
    write_shards.main([f"manifest={manifest}", f"output={output}", "size_px=16", *arguments])
    return content(output)


def said_at_the_end(*arguments: str) -> str:
    """The one line with which the program ends."""
    with pytest.raises(SystemExit) as ended, refusals_end_the_program("write_shards"):
        write_shards.main([*arguments, "size_px=16"])
    assert "\n" not in str(ended.value)
    return str(ended.value)


def test_fifty_kills_cost_the_shards_in_flight_and_no_byte(manifest: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.integration.killed_writer", "0", str(NUM_KILLS), str(tmp_path)]
    settings = [f"manifest={manifest}", "size_px=16", "encoding=raw", "videos_per_shard=2", "num_workers=2"]
    # Always in the same order, so that what is unfinished at a kill is of that start.
    one_of_one = os.environ | {
        f"SLURM_ARRAY_TASK_{name}": value for name, value in zip(("MIN", "COUNT", "ID"), "010", strict=True)
    }
    ended = subprocess.run(
        [*command, *settings], cwd=REPOSITORY, env=one_of_one, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    told = json.loads(ended.stdout)
    assert (told["kills"], told["redone"]) == (NUM_KILLS, 0)
    assert told["in_flight"] <= 2
    undisturbed = content(tmp_path / "whole")
    assert len([name for name in undisturbed if name.endswith(".tar")]) == 8
    for number in range(told["finished"]):
        assert content(tmp_path / f"cut_{number:04d}") == undisturbed


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder of 40 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root; the test with a file size limit runs everywhere")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("encoding", ["h264", "raw"])
def test_a_full_disk_loses_no_complete_shard(manifest: Path, tmp_path: Path, small_disk: Path, encoding: str) -> None:
    arguments = [f"manifest={manifest}", f"output={small_disk}", f"encoding={encoding}", "videos_per_shard=1"]
    assert "No space left on device" in said_at_the_end(*arguments)
    before = {path: path.stat().st_ino for path in small_disk.glob("*/*.tar") if path.with_suffix(".json").exists()}
    assert 0 < len(before) < 16
    assert all(json.loads(path.with_suffix(".json").read_text())["errors"] == [] for path in before)
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert written(manifest, small_disk, *arguments[2:]) == written(manifest, tmp_path / "whole", *arguments[2:])
    assert {path: path.stat().st_ino for path in before} == before


def test_a_file_size_limit_loses_no_complete_shard(manifest: Path, tmp_path: Path) -> None:
    encode_mp4(np.zeros((64, 16, 16, 3), np.uint8), tmp_path / "long.mp4", fps=8)
    records = read_lines(manifest)[:3]
    long = {**records[0], "folder": str(tmp_path), "path": "long.mp4", "num_frames": 64}
    altered = write_manifest(tmp_path / "manifest.jsonl", [*records, long])
    arguments = ["encoding=raw", "videos_per_shard=1", "num_workers=1"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        said = said_at_the_end(f"manifest={altered}", f"output={tmp_path / 'cut'}", *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "ffmpeg was ended by SIGXFSZ; run again to continue" in said  # its product grows in a file, too
    assert not (tmp_path / "cut/dataset.json").exists()
    assert written(altered, tmp_path / "cut", *arguments) == written(altered, tmp_path / "whole", *arguments)


@pytest.mark.skipif("MAGVIT_TEST_VIDEOS" not in os.environ, reason="MAGVIT_TEST_VIDEOS is not set")
@pytest.mark.parametrize("encoding", ["h264", "zstd"])
def test_every_broken_file_is_listed(manifest: Path, tmp_path: Path, encoding: str) -> None:
    good, folder = read_lines(manifest), Path(os.environ["MAGVIT_TEST_VIDEOS"]) / "broken"
    broken = [{**good[0], "folder": str(folder), "path": path.name} for path in sorted(folder.iterdir())]
    altered = write_manifest(tmp_path / "manifest.jsonl", [*good, *broken])
    written(altered, tmp_path / "shards", f"encoding={encoding}", "videos_per_shard=4")
    errors = read_lines(tmp_path / "shards/errors.jsonl")
    assert {error["source"]: error["message"].split(" @")[0] for error in errors}.keys() == {
        record["path"] for record in broken
    }
    assert all(error.keys() == {"key", "source", "stage", "message"} and error["message"] for error in errors)
    indexes = [json.loads(path.read_text()) for path in (tmp_path / "shards").glob("*/*.json")]
    assert sum(sum(index["stats"]["errors"].values()) for index in indexes) == len(broken) == 6
    assert sum(index["count"] for index in indexes) == len(good)
    check_shards.main([f"shards={tmp_path / 'shards'}"])


NAMES = [
    "-y.mp4",
    "a:b.mp4",
    "a%03d.mp4",
    "ünï cödé.mp4",
    "'q\".mp4",
    "two\nlines.mp4",
    "d.o.t.s.mp4",
    "#1.mp4",
    "\udcff.mp4",
]


@pytest.mark.parametrize("encoding", ["h264", "raw"])
def test_any_name_is_stored_under_a_plain_key(
    tmp_path: Path, encoding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    encode_mp4(np.zeros((4, 16, 16, 3), np.uint8), videos / NAMES[0], fps=8)
    for name in NAMES[1:]:
        shutil.copy(videos / NAMES[0], videos / name)
    list_videos.main([f"videos={videos}", f"output={tmp_path}", "min_frames=4"])
    written(tmp_path / "manifest.jsonl", tmp_path / "shards", f"encoding={encoding}")
    assert read_lines(tmp_path / "shards/errors.jsonl") == []
    capsys.readouterr()
    check_shards.main([f"shards={tmp_path / 'shards'}"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert sum(int(row[5]) for row in rows) == len(NAMES)


def test_fewer_videos_than_workers_and_one_shard_for_eight(manifest: Path, tmp_path: Path) -> None:
    altered = write_manifest(tmp_path / "manifest.jsonl", read_lines(manifest)[:3])
    for per_shard in (1, 64):
        arguments = ["encoding=raw", f"videos_per_shard={per_shard}"]
        many = written(altered, tmp_path / f"many_{per_shard}", *arguments, "num_workers=8")
        assert many == written(altered, tmp_path / f"one_{per_shard}", *arguments, "num_workers=1")


def test_zero_videos_are_refused(tmp_path: Path) -> None:
    said = said_at_the_end(f"manifest={write_manifest(tmp_path / 'manifest.jsonl', [])}", f"output={tmp_path}")
    assert "data_prep.list_videos" in said
    with pytest.raises(Refusal, match=r"no dataset\.json"):
        check_shards.main([f"shards={tmp_path}"])
