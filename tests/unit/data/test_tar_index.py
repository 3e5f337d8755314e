import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magvit_scale.config import ClipsConfig, Refusal
from magvit_scale.data.clips import held_out_clips, training_batches
from magvit_scale.data.shards import load_dataset
from magvit_scale.data.tar_index import index_tar, walk
from magvit_scale.video import VideoError
from tests.unit.data.conftest import mp4, npy, video, write_tar


def header(name: str, kind: bytes, **fields: object) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type = kind
    for key, value in fields.items():
        setattr(found, key, value)
    return found


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_walk_finds_what_tarfile_finds(tmp_path: Path, tar_format: int) -> None:
    names = ["a.mp4", "folder/b.npy", "x" * 90 + "/" + "y" * 60 + ".mp4", "ü.cls", "zero.txt"]
    names += ["long" * 60 + ".json"] if tar_format != tarfile.USTAR_FORMAT else []
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tar_format) as tar:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = 700 * (len(names) - 1 - number), 0.5 if tar_format == tarfile.PAX_FORMAT else 0
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    with tarfile.open(path) as tar, path.open("rb") as file:
        expected = [(member.name, member.offset_data, member.size) for member in tar]
        assert [(member.name, member.offset, member.size) for member in walk(file)] == expected


def test_foreign_tars_of_every_kind_are_read(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (64, 32), (200, 100, 0)).save(picture, "JPEG")
    members = [
        ("a/v1.mp4", mp4(1, tmp_path)), ("a/v1.cls", b"2"),
        ("a/v2.NPY", npy(2)), ("a/v2.json", json.dumps({"label": "x", "class_id": 0}).encode()),
        ("a/v3.seg.npy", npy(3, height=16, width=16)), ("a/v3.txt", b" a cat \n"),
        ("v4.jpg", picture.getvalue()),
    ]  # fmt: skip
    write_tar(tmp_path / "tars/train/00.tar", members)
    dataset = load_dataset(tmp_path / "tars")
    samples = dataset.samples("train")
    assert [(sample.key, sample.class_id, sample.encoding) for sample in samples] == [
        ("a/v1", 2, "video"), ("a/v2", 0, "npy"), ("a/v3", -1, "npy"), ("v4", -1, "image"),
    ]  # fmt: skip
    assert dataset.classes == ("x", "1", "2")
    assert [dataset.num_frames(sample) for sample in samples] == [12, 12, 12, 1]
    assert np.array_equal(dataset.read_video(samples[1], 2, 5), video(2)[2:5])
    found = dataset.read_video(samples[0], 3, 6)
    assert found.shape == (3, 16, 24, 3)
    assert np.abs(found.astype(int) - video(1)[3:6]).max() < 24
    assert dataset.read_video(samples[0], 3, 6, size_px=8).shape == (3, 8, 12, 3)
    assert dataset.read_video(samples[3], 0, 1, size_px=16).shape == (1, 16, 32, 3)
    batch = next(
        held_out_clips(ClipsConfig(shards=str(tmp_path / "tars"), size_px=16, num_frames=4, num_workers=0), 4, 4)
    )
    assert batch["clip"].shape == (4, 3, 4, 16, 16)
    assert np.array_equal(batch["clip"][1].permute(1, 2, 3, 0).numpy(), video(2)[4:8, :, 4:20])


def test_names_alone_number_the_classes_and_new_tars_are_seen(tmp_path: Path) -> None:
    write_tar(tmp_path / "000.tar", [("a.npy", npy(0)), ("a.cls", b"dog")])
    assert load_dataset(tmp_path).classes == ("dog",)
    write_tar(tmp_path / "001.tar", [("b.npy", npy(0)), ("b.cls", b"cat"), ("c.npy", npy(0))])
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert [sample.class_id for sample in dataset.samples("train")] == [1, 0, -1]


def test_an_index_is_made_once_and_again_when_the_tar_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "000.tar", [("a.npy", npy(0))])
    first = load_dataset(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("magvit_scale.data.tar_index.index_tar", lambda path: pytest.fail("indexed twice"))
        assert load_dataset(tmp_path).hash == first.hash
    write_tar(path, [("a.npy", npy(0)), ("b.npy", npy(0))])
    os.utime(path, ns=(1, 1))
    assert len(load_dataset(tmp_path).samples("train")) == 2


def test_patterns_splits_and_read_only_folders(tmp_path: Path) -> None:
    for name in ("train-00", "train-01", "val-00"):
        write_tar(tmp_path / f"tars/{name}.tar", [(f"{name}.npy", npy(0))])
    assert {split: len(shards) for split, shards in load_dataset(tmp_path / "tars").splits.items()} == {
        "train": 2, "test": 1,
    }  # fmt: skip
    pattern = f"{tmp_path}/tars/train-{{00..01}}.tar"
    dataset = load_dataset(pattern)
    assert [sample.key for sample in dataset.samples("train")] == ["train-00", "train-01"]
    with pytest.raises(Refusal, match="no split test, it has train"):
        dataset.shards("test")
    with pytest.raises(Refusal, match=r"no file .*train-02.tar"):
        load_dataset(f"{tmp_path}/tars/train-{{00..02}}.tar")
    with pytest.raises(Refusal, match="more than 1000000 tars"):
        load_dataset(f"{tmp_path}/tars/train-{{0..99999999}}.tar")


def test_a_folder_that_cannot_be_written_is_indexed_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "tars/000.tar", [("a.npy", npy(0))])
    monkeypatch.setattr("magvit_scale.data.tar_index.os.access", lambda path, mode: False)
    dataset = load_dataset(tmp_path / "tars", cache=str(tmp_path / "cache"))
    assert (tmp_path / "cache") in dataset.folder.parents
    assert [path.name for path in (tmp_path / "tars").iterdir()] == ["000.tar"]


GOOD = ("good.npy", npy(7))
DAMAGE = {
    "no video": ([("a.json", b"{}"), GOOD], "0 videos among json"),
    "two videos": ([("a.npy", npy(1)), ("a.mp4", b"x"), GOOD], "2 videos among npy, mp4"),
    "member twice": ([("a.npy", npy(1)), ("a.npy", npy(2)), GOOD], "a member is there twice"),
    "name leaves the folder": ([("../../a.npy", npy(1)), GOOD], "the name leaves its folder"),
    "absolute name": ([("/etc/a.npy", npy(1)), GOOD], "the name leaves its folder"),
    "symbolic link": ([header("a.npy", tarfile.SYMTYPE, linkname="/etc/passwd"), GOOD], "no plain file"),
    "hard link": ([header("a.npy", tarfile.LNKTYPE, linkname="good.npy"), GOOD], "no plain file"),
    "device": ([header("a.npy", tarfile.CHRTYPE), GOOD], "no plain file"),
    "json bomb": ([GOOD, ("good.json", b"[" * 60_000)], "unreadable metadata"),
    "metadata of a megabyte": ([GOOD, ("good.json", bytes(1 << 20))], "1048576 bytes of metadata"),
    "no text": ([GOOD, ("good.cls", b"\xff\xfe")], "unreadable metadata"),
    "number without end": ([GOOD, ("good.cls", b"9" * 5000)], "unreadable metadata"),
}


def test_a_key_that_comes_back_is_another_sample_and_left_out(tmp_path: Path) -> None:
    samples, rejects = index_tar(write_tar(tmp_path / "000.tar", [GOOD, ("b.npy", npy(1)), ("good.npy", npy(2))]))
    assert [sample["key"] for sample in samples] == ["good", "b"]
    assert rejects == [{"key": "good", "reason": "the key was there before"}]


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_listed_and_the_rest_is_read(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    members, reason = DAMAGE[kind]
    write_tar(tmp_path / "000.tar", members)
    dataset = load_dataset(tmp_path)
    (sample,) = dataset.samples("train")
    assert np.array_equal(dataset.read_video(sample, 0, 12), video(7))
    (reject,) = json.loads((dataset.folder / "000000.json").read_text())["rejects"]
    assert reason in reject["reason"]
    assert len(reject["reason"]) < 150
    assert "1 entries are no samples and left out" in capsys.readouterr().err


@pytest.mark.parametrize("size", [1 << 62, (1 << 33) + 5, 10_000])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_absurd_sizes_are_not_believed(tmp_path: Path, size: int, kind: bytes) -> None:
    path = write_tar(tmp_path / "000.tar", [GOOD])
    absurd = header("a.npy", kind, size=size).tobuf(tarfile.GNU_FORMAT)
    content = path.read_bytes()
    end = 512 + -(-len(GOOD[1]) // 512) * 512
    path.write_bytes(content[:end] + absurd + bytes(1024))
    samples, rejects = index_tar(path)
    assert [sample["key"] for sample in samples] == ["good"]
    assert "beyond the end" in rejects[0]["reason"]


def test_an_extended_header_of_a_megabyte_is_not_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "000.tar", [GOOD])
    end = 512 + -(-len(GOOD[1]) // 512) * 512
    bomb = header("x", tarfile.XHDTYPE, size=1 << 20).tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(path.read_bytes()[:end] + bomb + bytes(2 << 20))
    assert "extended header of 1048576 bytes" in index_tar(path)[1][0]["reason"]


def test_every_cut_and_flipped_header_ends_in_words(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "000.tar", [("a.npy", npy(1)), ("a.cls", b"0"), GOOD]).read_bytes()
    path = tmp_path / "cut.tar"
    for size in range(0, len(whole), 313):
        path.write_bytes(whole[:size])
        samples, rejects = index_tar(path)
        assert len(samples) <= 2
        assert len(samples) == 2 or rejects or size < 512
    rng = np.random.default_rng(0)
    for _ in range(200):
        bad = bytearray(whole)
        bad[rng.integers(512)] ^= 1 << rng.integers(8)
        path.write_bytes(bad)
        samples, rejects = index_tar(path)
        assert len(samples) < 2
        assert rejects


def test_damaged_videos_are_errors_of_the_video(tmp_path: Path) -> None:
    good = npy(1)
    bombs = {
        "a.npy": good[:-1], "b.npy": b"\x93NUMPY", "c.npy": good.replace(b"12, 16, 24, 3", b"99999999, 9,3"),
        "d.npy": npy_of(np.zeros((2, 4, 4, 3), np.float32)), "e.npy": b"", "f.mp4": bytes(4000), "g.mp4": b"",
        "h.jpg": b"\xff\xd8\xff\xe0" + bytes(100), "i.avi": b"RIFF" + bytes(100), "j.webm": b"\x1aE\xdf\xa3",
        "k.npy": npy_of(np.array([None])), "l.mp4": mp4(1, tmp_path)[:1000],
    }  # fmt: skip
    write_tar(tmp_path / "tars/000.tar", list(bombs.items()))
    dataset = load_dataset(tmp_path / "tars")
    samples = dataset.samples("train")
    assert len(samples) == len(bombs)
    for sample in samples:
        with pytest.raises(VideoError):
            dataset.read_video(sample, 0, dataset.num_frames(sample))


def npy_of(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_broken_foreign_videos_are_replaced_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "000.tar", [("a.npy", npy(1)), ("b.npy", npy(2)[:-5]), ("c.npy", npy(3))])
    config = ClipsConfig(shards=str(tmp_path), size_px=16, num_frames=4, num_workers=0, max_broken_fraction=0.5)
    batch = next(training_batches(config, seed=0, global_batch_size=9, rank=0, world_size=1, start_step=0, steps=1))
    assert set((batch["clip"][:, 0, 0, 0, 0] // 20).tolist()) == {1, 3}
    assert "video b does not decode: npy of uint8" in capsys.readouterr().err


def test_no_samples_and_no_tars_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "empty/000.tar", [("a.txt", b"x")])
    with pytest.raises(Refusal, match=r"no samples in 1 tars; expected members like KEY.mp4"):
        load_dataset(tmp_path / "empty")
    with pytest.raises(Refusal, match=r"no dataset\.json"):
        load_dataset(tmp_path / "nothing")
