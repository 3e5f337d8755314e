import json
import shutil
from pathlib import Path

import pytest

from data_prep import write_shards
from data_prep.list_videos import main
from magvit_scale.config import Refusal
from magvit_scale.data.shards import load_dataset
from magvit_scale.files import sha256
from tests.real_videos import VIDEOS, needs_videos


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_class_has_both_splits_and_a_rerun_changes_nothing(shapes: Path, tmp_path: Path) -> None:
    arguments = [f"videos={shapes}", f"output={tmp_path}"]
    main(arguments)
    manifest = lines(tmp_path / "manifest.jsonl")
    assert len(manifest) == 24
    for class_id, label in enumerate(sorted({record["label"] for record in manifest})):
        records = [record for record in manifest if record["label"] == label]
        assert sorted(record["split"] for record in records) == ["test", "train", "train"]
        assert {record["class_id"] for record in records} == {class_id}
    assert {(record["width"], record["num_frames"], record["fps"]) for record in manifest} == {(32, 20, 8.0)}
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    journal = tmp_path / "probes.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:7]) + '{"path": "half a li')
    main(arguments)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


BROKEN = {
    "audio_only.mp4": "no video stream",
    "corrupted.mp4": "Invalid NAL unit size",
    "empty.mp4": "moov atom not found",
    "flip.mp4": "cabac decode",
    "trunc.mp4": "Invalid NAL unit size",
    "trunc_head.mp4": "moov atom not found",
}


@needs_videos
def test_every_broken_file_is_listed_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(VIDEOS / "broken", tmp_path / "videos/broken")
    for name in ("k_demo.mp4", "mm_part0.mp4"):
        shutil.copy(VIDEOS / "people" / name, tmp_path / "videos" / name.upper())
    arguments = [f"videos={tmp_path / 'videos'}", f"output={tmp_path / 'out'}"]
    with pytest.raises(Refusal, match="6 of 8 videos were rejected"):
        main(arguments)
    main([*arguments, "max_reject_fraction=0.9"])
    reasons = {reject["path"]: reject["reason"] for reject in lines(tmp_path / "out/rejects.jsonl")}
    assert sorted(reasons) == sorted(f"broken/{path.name}" for path in (VIDEOS / "broken").iterdir())
    for name, reason in reasons.items():
        assert reason.startswith(BROKEN[Path(name).name])
    assert "rejected broken/empty.mp4: moov atom not found" in capsys.readouterr().err
    assert [record["label"] for record in lines(tmp_path / "out/manifest.jsonl")] == ["videos", "videos"]
    (tmp_path / "videos/K_DEMO.MP4").unlink()
    (tmp_path / "videos/MM_PART0.MP4").unlink()
    with pytest.raises(Refusal, match="all 6 videos were rejected"):
        main(arguments)


@needs_videos
def test_odd_files_are_listed_as_they_decode(tmp_path: Path) -> None:
    """Width and height after rotation, the first of two video streams, frames at the constant rate."""
    main([f"videos={VIDEOS}", f"output={tmp_path}", "min_frames=1"])
    facts = {
        record["path"]: tuple(record[key] for key in ("width", "height", "fps", "num_frames"))
        for record in lines(tmp_path / "manifest.jsonl")
    }
    assert len(facts) == 14
    assert facts["odd_formats/rot90.mov"] == (320, 568, 30.0, 3)
    assert facts["odd_formats/vfr.mp4"] == (340, 256, 28.0, 112)  # 68 pictures over 4 s
    assert facts["odd_formats/ts_offset.mp4"] == (340, 256, 28.0, 114)  # starts at 5 s
    assert facts["odd_formats/av1.mkv"] == (640, 360, 25.0, 125)
    assert facts["odd_formats/h264_10b.mp4"] == (200, 200, 30.0, 30)
    assert facts["odd_formats/h265.mp4"] == (128, 128, 10.0, 10)
    assert facts["people/mm_test.avi"] == (320, 240, 25.0, 164)  # XviD with B-frames
    assert facts["scenes/nasa.mp4"] == (320, 180, 25.0, 325)  # a second stream has 480x270
    assert facts["scenes/pancake.mkv"] == (426, 240, 30.0, 310)  # its header says nothing
    assert {reject["path"] for reject in lines(tmp_path / "rejects.jsonl")} == {f"broken/{name}" for name in BROKEN}


def test_copies_are_reported_within_and_between_splits(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "videos").mkdir()
    for name, source in {"a": "orbit_0000", "b": "orbit_0000", "c": "orbit_0001", "d": "orbit_0001"}.items():
        shutil.copy(shapes / f"orbit/{source}.mp4", tmp_path / f"videos/{name}.mp4")
    table = tmp_path / "table.csv"
    arguments = ["source=csv", f"annotations={table}", f"videos={tmp_path / 'videos'}", f"output={tmp_path}"]
    table.write_text("path,label,split\na.mp4,x,train\nb.mp4,y,train\nc.mp4,x,train\nd.mp4,x,test\n")
    main(arguments)
    assert "2 files are copies of others, 1 videos ARE IN BOTH train and test" in capsys.readouterr().err
    within, between = lines(tmp_path / "duplicates.jsonl")
    assert (within["paths"], within["splits"], within["labels"]) == (["a.mp4", "b.mp4"], ["train"], ["x", "y"])
    assert (between["paths"], between["splits"]) == (["c.mp4", "d.mp4"], ["test", "train"])
    assert between["sha256"] == sha256(tmp_path / "videos/c.mp4")
    table.write_text("path,split\na.mp4,train\nb.mp4,train\nc.mp4,test\n")
    main(arguments)
    assert "1 files are copies of others, none of them in both train and test" in capsys.readouterr().err
    table.write_text("path,split\na.mp4,train\nc.mp4,test\n")
    main(arguments)
    assert (tmp_path / "duplicates.jsonl").read_text() == ""
    assert "copies" not in capsys.readouterr().err


def test_refusals_say_what_to_do(shapes: Path, tmp_path: Path) -> None:
    output = f"output={tmp_path / 'out'}"
    with pytest.raises(Refusal, match="no such folder"):
        main([f"videos={tmp_path / 'none'}", output])
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/notes.txt").write_text("")
    with pytest.raises(Refusal, match=r"\.avi \.mkv \.mov \.mp4 \.webm"):
        main([f"videos={tmp_path / 'videos'}", output])
    shutil.copy(shapes / "orbit/orbit_0000.mp4", tmp_path / "videos/one.mp4")
    with pytest.raises(Refusal, match="at least 2"):
        main([f"videos={tmp_path / 'videos'}", output])
    with pytest.raises(Refusal, match="all 1 videos were rejected"):
        main([f"videos={tmp_path / 'videos'}", output, "min_frames=21"])


def test_max_videos_takes_the_same_part_at_every_run(shapes: Path, tmp_path: Path) -> None:
    taken = []
    for run in ("first", "second"):
        main([f"videos={shapes}", f"output={tmp_path / run}", "max_videos=10"])
        taken.append([record["path"] for record in lines(tmp_path / run / "manifest.jsonl")])
    assert len(taken[0]) == 10
    assert taken[0] == taken[1]


def test_a_folder_without_class_folders_has_no_classes(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "loose").mkdir()
    for path in sorted(shapes.glob("orbit/*.mp4")):
        shutil.copy(path, tmp_path / "loose")
    main([f"videos={tmp_path / 'loose'}", f"output={tmp_path}"])
    assert {(record["label"], record["class_id"]) for record in lines(tmp_path / "manifest.jsonl")} == {("videos", -1)}
    write_shards.main(
        [f"manifest={tmp_path / 'manifest.jsonl'}", f"output={tmp_path / 'shards'}", "size_px=16", "encoding=raw"]
    )
    dataset = load_dataset(tmp_path / "shards")
    assert (dataset.classes, {sample.class_id for sample in dataset.samples("train")}) == ((), {-1})
    # One class folder beside loose files makes two classes.
    shutil.copytree(shapes / "fall", tmp_path / "loose/fall")
    main([f"videos={tmp_path / 'loose'}", f"output={tmp_path}"])
    found = {(record["label"], record["class_id"]) for record in lines(tmp_path / "manifest.jsonl")}
    assert found == {("fall", 0), ("videos", 1)}
