"""Every kind of damage to a shard is one clear line; where a checksum would tell it first, the shard is sealed anew."""

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep import list_videos, write_shards
from data_prep.check_shards import main
from data_prep.shard_plan import content_hash
from magvit_scale.config import Refusal

Members = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture(scope="session")
def written(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Shards of each encoding: five train videos in shards of three, one test video."""
    folder = tmp_path_factory.mktemp("check")
    list_videos.main([f"videos={shapes}", f"output={folder}", "max_videos=12"])
    lines = (folder / "manifest.jsonl").read_text().splitlines(keepends=True)
    train, test = ([line for line in lines if json.loads(line)["split"] == split] for split in ("train", "test"))
    (folder / "manifest.jsonl").write_text("".join([*train[:5], *test[:1]]))
    for encoding in ("raw", "zstd", "h264"):
        arguments = [f"manifest={folder}/manifest.jsonl", "size_px=16", "max_frames=6", "videos_per_shard=3"]
        write_shards.main([*arguments, f"output={folder / encoding}", f"encoding={encoding}"])
    return {encoding: folder / encoding for encoding in ("raw", "zstd", "h264")}


@pytest.fixture
def shards(written: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(written["raw"], tmp_path / "shards"))


def seal(folder: Path) -> None:
    """Writes the checksums of what is there now into the index of the first train shard and into dataset.json."""
    tar = folder / "train/clips-000000.tar"
    facts = {"bytes": tar.stat().st_size, "sha256": hashlib.sha256(tar.read_bytes()).hexdigest()}
    index = json.loads(tar.with_suffix(".json").read_text())
    tar.with_suffix(".json").write_text(json.dumps({**index, **facts}))
    content = json.loads((folder / "dataset.json").read_text())
    content["splits"]["train"][0].update(facts)
    write_dataset(folder, content)


def write_dataset(folder: Path, content: dict) -> None:
    content["total"] = sum(line["count"] for lines in content["splits"].values() for line in lines)
    hashed = {name: value for name, value in content.items() if name not in ("total", "hash")}
    (folder / "dataset.json").write_text(json.dumps({**content, "hash": content_hash(hashed)}))


def repack(folder: Path, change: Callable[[Members], None]) -> None:
    path = folder / "train/clips-000000.tar"
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    change(members)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, data in members:
            member.size = len(data) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(data))


def fault(folder: Path, *arguments: str) -> str:
    with pytest.raises(Refusal) as caught:
        main([f"shards={folder}", *arguments])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("encoding", ["raw", "zstd", "h264"])
def test_whole_shards_pass_with_a_table(
    written: dict[str, Path], encoding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main([f"shards={written[encoding]}"])
    num_bytes = [sum(path.stat().st_size for path in written[encoding].glob(f"{s}/*.tar")) for s in ("test", "train")]
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["split", "shards", "videos", "seconds", "bytes", "checked", "errors"],
        ["test", "1", "1", "1", f"{num_bytes[0]:,}", "1", "0"],
        ["train", "2", "5", "4", f"{num_bytes[1]:,}", "5", "0"],
    ]


def test_a_sample_reads_a_share_of_each_split(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([f"shards={shards}", "sample=0.5"])
    checked = {line.split()[0]: line.split()[5] for line in capsys.readouterr().out.splitlines()}
    assert (checked["test"], checked["train"] in ("2", "3")) == ("1", True)
    for tar in shards.glob("train/*.tar"):
        data = bytearray(tar.read_bytes())
        data[900] ^= 1
        tar.write_bytes(data)
    assert "sha256" in fault(shards, "sample=0.5")
    assert capsys.readouterr().out.splitlines()[2].split()[-1] == "2"  # the tar's checksum and the video's


def truncate(folder: Path) -> None:
    os.truncate(folder / "train/clips-000000.tar", 5000)


def flip(folder: Path) -> None:
    path = folder / "train/clips-000000.tar"
    data = bytearray(path.read_bytes())
    data[512 + 300] ^= 1
    path.write_bytes(data)


def remove(folder: Path) -> None:
    (folder / "train/clips-000000.tar").unlink()


def swap_index(folder: Path) -> None:
    shutil.copy(folder / "train/clips-000001.json", folder / "train/clips-000000.json")


def remove_index(folder: Path) -> None:
    (folder / "train/clips-000000.json").unlink()


def bomb_index(folder: Path) -> None:
    (folder / "train/clips-000000.json").write_text("[" * 100_000)


def swell_index(folder: Path) -> None:
    (folder / "train/clips-000000.json").write_text(" " * (5 << 20))


def spoil_index(folder: Path) -> None:
    path = folder / "train/clips-000000.json"
    index = json.loads(path.read_text())
    index["samples"][1]["key"] = "../../etc/passwd"
    path.write_text(json.dumps(index))


def shift_index(folder: Path) -> None:
    path = folder / "train/clips-000000.json"
    index = json.loads(path.read_text())
    index["samples"][1]["offset"] += 512
    path.write_text(json.dumps(index))


def spoil_dataset(folder: Path) -> None:
    path = folder / "dataset.json"
    path.write_text(path.read_text().replace('"fps": null', '"fps": 8'))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate, "clips-000000.tar: 5000 bytes, expected "),
        (flip, "the tar was changed after it was written"),
        (remove, "clips-000000.tar: 0 bytes, expected "),
        (swap_index, "its index clips-000000.json describes another tar: 2 videos"),
        (remove_index, "its index clips-000000.json is missing"),
        (bomb_index, "its index clips-000000.json is not JSON"),
        (swell_index, "5242880 bytes, too many for 3 videos"),
        (spoil_index, "impossible key"),
        (shift_index, "the index says bytes"),
        (spoil_dataset, "its hash is not that of its content"),
    ],
)
def test_damage_after_writing(shards: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(shards)
    assert said in fault(shards)


def drop_member(members: Members) -> None:
    members.pop()


def double_member(members: Members) -> None:
    members.append(members[0])


def leave_folder(members: Members) -> None:
    members[2][0].name = "../evil.npy"


def link(members: Members) -> None:
    members[2][0].type, members[2][0].linkname = tarfile.SYMTYPE, "/etc/passwd"


def add_stranger(members: Members) -> None:
    members.append((tarfile.TarInfo("stranger.json"), b"{}"))


def reorder(members: Members) -> None:
    members[-2:] = members[:-3:-1]


def nest(members: Members) -> None:
    members[-1] = (members[-1][0], b"[" * 100_000)


def swell(members: Members) -> None:
    members[-1] = (members[-1][0], b" " * (2 << 20))


def lie(members: Members) -> None:
    members[-1] = (members[-1][0], members[-1][1].replace(b'"class_id": ', b'"class_id": 1'))


def shorten(members: Members) -> None:
    member, data = members[0]
    members[0] = (member, data[:-1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop_member, ".json' is missing"),
        (double_member, "two members are named"),
        (leave_folder, "'../evil.npy' leaves its folder"),
        (link, "is a link to '/etc/passwd'"),
        (add_stranger, "'stranger.json' is not in the index"),
        (reorder, "not in the order of the index"),
        (nest, "its metadata is not JSON"),
        (swell, "2097152 bytes of metadata"),
        (lie, "its metadata and its line in the index differ"),
        (shorten, "the index says bytes"),
    ],
)
def test_a_sealed_tar_with_wrong_members(shards: Path, change: Callable[[Members], None], said: str) -> None:
    repack(shards, change)
    seal(shards)
    assert said in fault(shards)


def test_a_sealed_tar_that_ends_early(shards: Path) -> None:
    truncate(shards)
    seal(shards)
    assert re.search(r"claims \d+ bytes where \d+ are left", fault(shards))
    os.truncate(shards / "train/clips-000000.tar", 0)
    seal(shards)
    assert "truncated: the tar ends at byte 0" in fault(shards)


def test_an_absurd_size_in_a_header_reserves_no_memory(shards: Path) -> None:
    path = shards / "train/clips-000000.tar"
    with tarfile.open(path) as tar:
        second = tar.getmembers()[1]
    data = bytearray(path.read_bytes())
    second.size = 0o77777777777
    data[second.offset : second.offset + 512] = second.tobuf(tarfile.USTAR_FORMAT)
    path.write_bytes(data)
    seal(shards)
    assert "claims 8589934591 bytes where" in fault(shards)


@pytest.mark.parametrize(("encoding", "said"), [("zstd", "unreadable zstd"), ("h264", "does not decode")])
def test_sealed_damage_in_a_video_is_found_by_decoding(
    written: dict[str, Path], tmp_path: Path, encoding: str, said: str
) -> None:
    folder = Path(shutil.copytree(written[encoding], tmp_path / "shards"))
    path = folder / "train/clips-000000.tar"
    data = bytearray(path.read_bytes())
    sample = json.loads((folder / "train/clips-000000.json").read_text())["samples"][0]
    end = sample["offset"] + sample["size"]
    data[end - 40 : end] = bytes(40)
    path.write_bytes(data)
    seal(folder)
    assert said in fault(folder)


def test_a_shard_in_both_splits_leaks(shards: Path) -> None:
    for suffix in ("tar", "json"):
        shutil.copy(shards / f"train/clips-000000.{suffix}", shards / f"test/clips-000001.{suffix}")
    content = json.loads((shards / "dataset.json").read_text())
    content["splits"]["test"].append({**content["splits"]["train"][0], "name": "clips-000001.tar"})
    write_dataset(shards, content)
    said = fault(shards)
    assert said.startswith("key ")
    assert "test/clips-000001.tar" in said
    assert "train/clips-000000.tar" in said
    assert "5 more are listed above" in said  # three keys and three sources


def test_refusals_say_what_to_do(shards: Path) -> None:
    with pytest.raises(Refusal, match="expected a share above 0"):
        main([f"shards={shards}", "sample=0"])
    with pytest.raises(Refusal, match=r"data_prep\.write_shards"):
        main([f"shards={shards / 'none'}"])
