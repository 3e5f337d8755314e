import json
import os
import shutil
from pathlib import Path

import pytest

from data_prep import write_shards
from data_prep.list_videos import main
from magvit_scale.config import Refusal
from magvit_scale.data.shards import load_dataset

VIDEOS = Path(os.environ.get("MAGVIT_TEST_VIDEOS", "unset"))


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


@pytest.mark.skipif("MAGVIT_TEST_VIDEOS" not in os.environ, reason="MAGVIT_TEST_VIDEOS is not set")
def test_broken_files_are_listed_with_their_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(VIDEOS / "broken", tmp_path / "videos/broken")
    for name in ("k_demo.mp4", "mm_part0.mp4"):
        shutil.copy(VIDEOS / "people" / name, tmp_path / "videos" / name.upper())
    arguments = [f"videos={tmp_path / 'videos'}", f"output={tmp_path / 'out'}"]
    with pytest.raises(Refusal, match="6 of 8 videos were rejected"):
        main(arguments)
    main([*arguments, "max_reject_fraction=0.9"])
    rejects = lines(tmp_path / "out/rejects.jsonl")
    assert len(rejects) == 6
    assert all(reject["reason"] for reject in rejects)
    assert "rejected broken/empty.mp4: moov atom not found" in capsys.readouterr().err
    assert [record["label"] for record in lines(tmp_path / "out/manifest.jsonl")] == ["videos", "videos"]
    (tmp_path / "videos/K_DEMO.MP4").unlink()
    (tmp_path / "videos/MM_PART0.MP4").unlink()
    with pytest.raises(Refusal, match="all 6 videos were rejected"):
        main(arguments)


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
