"""Published data sets in miniature: what each source finds, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep import list_videos, sources
from data_prep.sources import annotations as annotation_files
from data_prep.sources.listing import Listing
from magvit_scale.config import ListVideosConfig, Refusal


def touch(folder: Path, *names: str) -> Path:
    """Empty files: a listing reads none of them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def find(source: str, videos: Path, annotations: Path | None = None, **settings: object) -> Listing:
    given = None if annotations is None else str(annotations)
    config = ListVideosConfig(source=source, videos=str(videos), output="unused", annotations=given, **settings)
    return sources.find(config, videos)


def found(listing: Listing) -> set[tuple[str, str | None, str | None]]:
    return {(item.path, item.label, item.split) for item in listing.items}


@pytest.fixture
def table(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "table.csv"
        path.write_text(text)
        return path

    return write


def test_csv(tmp_path: Path, table: Callable[[str], Path]) -> None:
    videos = touch(tmp_path / "videos", "a.mp4", "deep/b, c.webm", "v.mp4", "t.mp4")
    text = (
        '\ufefflabel, path,split,more\nrun,a.mp4,train,1\n"to, go","deep/./b, c.webm",VAL,2\n\nrun,gone.mp4,train,3\n'
    )
    listing = find("csv", videos, table(text))
    assert found(listing) == {("a.mp4", "run", "train"), ("deep/b, c.webm", "to, go", "test")}
    assert listing.missing == {"gone.mp4": "not on disk"}
    assert found(find("csv", videos, table("path\na.mp4\nt.mp4"))) == {("a.mp4", None, None), ("t.mp4", None, None)}
    # Of two held out splits, validation is the one.
    both = find("csv", videos, table("path,split\na.mp4,train\nv.mp4,validate\nt.mp4,test\n"))
    assert found(both) == {("a.mp4", None, "train"), ("v.mp4", None, "test")}
    assert both.notes == ["1 videos of split test left out, split validation is held out"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column path; expected the columns path, label, split, found nothing"),
        ("file,label\na.mp4,x\n", "no column path; .* found file, label"),
        ("path,label\n", "no videos in it"),
        ("path,split\na.mp4,trian\n", "row 2: no such split 'trian'; expected train, val"),
        ("path,label\na.mp4,\n", "row 2: an empty label"),
        ("path,label\na.mp4\n", "row 2: 1 values, expected 2"),
        ("path\na.mp4\n./a.mp4\n", "row 3: a.mp4 comes twice"),
        ("path\n../a.mp4\n", r"path '\.\./a\.mp4'; expected one below"),
        ("path\nx/../../a.mp4\n", "path 'x/../../a.mp4'; expected one below"),
        ("path\n/etc/passwd\n", "path '/etc/passwd'; expected one below"),
        ('path\n"a\nb.mp4"\n', r"path 'a\\nb.mp4'; expected one below"),
        ('path\n"a.mp4\n', "not CSV"),
        ('"pa\nth"\na.mp4\n', "no column path; .* found pa th"),
    ],
)
def test_bad_tables_are_refused_in_one_line(
    tmp_path: Path, table: Callable[[str], Path], text: str, words: str
) -> None:
    with pytest.raises(Refusal, match=words) as refusal:
        find("csv", touch(tmp_path / "videos", "a.mp4"), table(text))
    assert "\n" not in str(refusal.value)


def test_annotations_are_asked_for_and_not_ignored(tmp_path: Path) -> None:
    videos = touch(tmp_path / "videos", "a.mp4")
    with pytest.raises(Refusal, match=r"source=csv: no annotations; expected annotations=FILE.csv with the columns"):
        find("csv", videos)
    with pytest.raises(Refusal, match="source=folder has none"):
        find("folder", videos, tmp_path / "table.csv")
    with pytest.raises(Refusal, match="No such file"):
        find("csv", videos, tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes(b"path\n\xe9.mp4\n")
    with pytest.raises(Refusal, match="not UTF-8"):
        find("csv", videos, tmp_path / "latin.csv")


def ucf_lists(folder: Path, train: str, test: str, classes: str = "1 Apply\r\n2 HandstandPushups\r\n") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "classInd.txt").write_text(classes)
    (folder / "trainlist01.txt").write_text(train)
    (folder / "testlist01.txt").write_text(test)
    return folder


def test_ucf101(tmp_path: Path) -> None:
    train = "HandstandPushups/v_HandStandPushups_g08_c01.avi 2\r\nApply/v_Apply_g08_c01.avi 1\r\n"
    lists = ucf_lists(tmp_path / "lists", train, "Apply/v_Apply_g01_c01.avi\r\nApply/v_Apply_g01_c02.avi\r\n")
    # One folder spelt as in the lists, the other file without its folder, as `unrar e` leaves it.
    videos = touch(tmp_path / "v", "HandstandPushups/v_HandstandPushups_g08_c01.avi", "v_Apply_g08_c01.avi")
    touch(videos, "Apply/v_Apply_g01_c01.avi")
    listing = find("ucf101", videos, lists, expect_counts=False)
    assert found(listing) == {
        ("HandstandPushups/v_HandstandPushups_g08_c01.avi", "HandstandPushups", "train"),
        ("v_Apply_g08_c01.avi", "Apply", "train"),
        ("Apply/v_Apply_g01_c01.avi", "Apply", "test"),
    }
    assert listing.missing == {"Apply/v_Apply_g01_c02.avi": "not on disk"}
    assert listing.classes == ["Apply", "HandstandPushups"]
    with pytest.raises(
        Refusal, match=r"2 train and 1 test and 1 missing videos, expected 9537 and 3783; .*\.avi: not on"
    ):
        find("ucf101", videos, lists)
    with pytest.raises(Refusal, match=r"trainlist02.txt: No such file"):
        find("ucf101", videos, lists, split_number=2)


def test_ucf101_takes_the_published_numbers_only(tmp_path: Path) -> None:
    videos = touch(tmp_path / "videos", "Apply/0.avi")
    for number, train, test in ((1, 9537, 3783), (2, 9586, 3734), (3, 9624, 3696)):
        lists = ucf_lists(tmp_path / "lists", "", "")
        names = [f"Apply/{index}.avi" for index in range(13_320)]
        (lists / f"trainlist{number:02d}.txt").write_text("".join(f"{name} 1\n" for name in names[:train]))
        (lists / f"testlist{number:02d}.txt").write_text("".join(f"{name}\n" for name in names[train:]))
        listing = find("ucf101", videos, lists, split_number=number)
        assert (len(listing.items), len(listing.missing)) == (1, 13_319)
        (lists / f"testlist{number:02d}.txt").write_text("".join(f"{name}\n" for name in names[train:-1]))
        with pytest.raises(Refusal, match=f"13318 missing videos, expected {train} and {test}"):
            find("ucf101", videos, lists, split_number=number)


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"train": "Jump/a.avi 1\n"}, "line 1: 'Jump/a.avi 1'; expected"),
        ({"train": "Apply/a.avi 2\n"}, "line 1: 'Apply/a.avi 2'; expected"),
        ({"train": "\n../Apply/a.avi 1\n"}, "line 2: path '../Apply/a.avi'"),
        ({"test": "Apply/a.avi\n"}, "testlist01.txt line 1: Apply/a.avi comes twice"),
        ({"classes": "1 Apply\n3 Jump\n"}, "counting up"),
    ],
)
def test_ucf101_lists_must_agree(tmp_path: Path, lists: dict[str, str], words: str) -> None:
    folder = ucf_lists(tmp_path / "lists", **{"train": "Apply/a.avi 1\n", "test": "", **lists})
    with pytest.raises(Refusal, match=words):
        find("ucf101", touch(tmp_path / "videos", "Apply/a.avi"), folder)


COLUMNS = "label,youtube_id,time_start,time_end,split"


def test_kinetics(tmp_path: Path) -> None:
    folder = tmp_path / "annotations"
    folder.mkdir()
    rows = (
        'tap dance,-abcdefghi0,5,15,train\n"eat, drink",ab_defghij1,10.0,20.0,train\nzip,gone0000000,1,11,train\n'
        "tap dance,-abcdefghi0,5,15,train\n"
    )
    (folder / "train.csv").write_text(f"{COLUMNS},is_cc\n" + rows.replace("train\n", "train,0\n"))
    (folder / "validate.csv").write_text(f"{COLUMNS}\ntap dance,same0000000,0,10,validate\n")
    (folder / "test.csv").write_text("youtube_id,time_start,time_end,split\nxxxxxxxxxxx,0,10,test\n")
    videos = touch(
        tmp_path / "videos",
        "train/tap dance/-abcdefghi0_000005_000015.mp4",
        "ab_defghij1.mkv",
        "eat/same0000000_000000_000010.mp4",
        "val/tap_dance/same0000000_000000_000010.mp4",
    )
    listing = find("kinetics", videos, folder)
    assert found(listing) == {
        ("train/tap dance/-abcdefghi0_000005_000015.mp4", "tap dance", "train"),
        ("ab_defghij1.mkv", "eat, drink", "train"),
        ("val/tap_dance/same0000000_000000_000010.mp4", "tap dance", "test"),
    }
    earlier = "its file train/tap dance/-abcdefghi0_000005_000015.mp4 belongs to an earlier row"
    assert listing.missing == {"gone0000000_000001_000011": "not on disk", "-abcdefghi0_000005_000015": earlier}
    assert listing.classes == ["eat, drink", "tap dance", "zip"]
    assert listing.notes == ["1 videos of split test left out, split validation is held out"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("label,youtube_id,split\n", "no column time_start, time_end; expected the columns youtube_id, time_start"),
        (f"{COLUMNS}\nzip,aaa,x,15,train\n", "row 2: time 'x' to '15'; expected seconds"),
        (f"{COLUMNS}\nzip,aaa,nan,15,train\n", "row 2: time 'nan' to '15'; expected seconds"),
        (f"{COLUMNS}\nzip,aaa,1e999,15,train\n", "row 2: time '1e999' to '15'; expected seconds"),
        (f"{COLUMNS}\n,aaa,5,15,test\n", "row 2: no label, expected the class of 'aaa'"),
        (f"{COLUMNS}\nzip,aaa,5,15,holdout\n", "row 2: no such split 'holdout'"),
        (f"{COLUMNS}\n", "no videos in it"),
    ],
)
def test_kinetics_refusals(tmp_path: Path, table: Callable[[str], Path], text: str, words: str) -> None:
    with pytest.raises(Refusal, match=words):
        find("kinetics", touch(tmp_path / "videos", "aaa.mp4"), table(text))
    with pytest.raises(Refusal, match=r"no .csv in it"):
        find("kinetics", tmp_path / "videos", tmp_path / "videos")


def ssv2_lists(folder: Path, prefix: str = "something-something-v2-", **lists: object) -> Path:
    folder.mkdir(exist_ok=True)
    published = {
        "labels": {"Pushing something": "1", "Holding something next to something": "0"},
        "train": [
            {"id": "78687", "label": "pushing a cup", "template": "Pushing [something]", "placeholders": ["a cup"]}
        ],
        "validation": [
            {"id": "74225", "template": "Holding [something] next to [something]"},
            {"id": "5", "template": "Pushing [something]"},
        ],
    }
    for name, content in {**published, **lists}.items():
        (folder / f"{prefix}{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize("prefix", ["something-something-v2-", ""])
def test_ssv2(tmp_path: Path, prefix: str) -> None:
    videos = touch(tmp_path / "videos", "20bn/78687.webm", "74225.webm", "999.webm")
    listing = find("ssv2", videos, ssv2_lists(tmp_path / "lists", prefix), expect_counts=False)
    assert found(listing) == {
        ("20bn/78687.webm", "Pushing something", "train"),
        ("74225.webm", "Holding something next to something", "test"),
    }
    assert listing.classes == ["Holding something next to something", "Pushing something"]
    assert listing.missing == {"5.webm": "not on disk"}
    with pytest.raises(Refusal, match="1 train and 1 test and 1 missing videos, expected 168913 and 24777"):
        find("ssv2", videos, tmp_path / "lists")


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"labels": {"Pushing something": "1", "x": "1"}}, "expected template -> id, counting from 0"),
        ({"labels": []}, "expected template -> id, counting from 0"),
        ({"train": {"id": "1"}}, "train.json entry 0: expected an object with id and template"),
        ({"train": [{"id": 1, "template": "x"}]}, "train.json entry 0: expected an object with id and template"),
        ({"train": [{"id": "1", "template": "Eating [something]"}]}, "template 'Eating .* has no label"),
        ({"validation": [{"id": "78687", "template": "Pushing [something]"}]}, "id 78687 comes twice"),
        ({"train": "[" * 200_000}, "JSON nested too deep"),
        ({"train": '[{"a":' * 100_000}, "JSON nested too deep"),
        ({"train": "[" + "9" * 5000 + "]"}, "entry 0: expected an object|integer string conversion"),
        ({"train": "[1, 2"}, "not JSON"),
        ({"train": " " * 2_000_001}, "larger than 1 MiB"),
    ],
)
def test_ssv2_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lists: dict[str, object], words: str) -> None:
    monkeypatch.setattr(annotation_files, "MAX_JSON_BYTES", 1 << 20)
    with pytest.raises(Refusal, match=words) as refusal:
        find("ssv2", touch(tmp_path / "videos", "78687.webm"), ssv2_lists(tmp_path / "lists", **lists))
    assert len(str(refusal.value)) < 500


def test_images_with_train_and_val_folders(tmp_path: Path) -> None:
    videos = touch(tmp_path / "videos", "train/n1/a.JPEG", "train/n2/b.png", "val/n1/c.webp", "test/d.jpg", "e.jpg")
    assert found(find("images", videos)) == {
        ("train/n1/a.JPEG", "n1", "train"),
        ("train/n2/b.png", "n2", "train"),
        ("val/n1/c.webp", "n1", "test"),
    }
    with pytest.raises(Refusal, match=r"val/f.jpg is in no class folder; sort the images"):
        find("images", touch(videos, "val/f.jpg"))
    # A lone train folder is what has to be split.
    assert found(find("images", videos / "train")) == {("n1/a.JPEG", "n1", None), ("n2/b.png", "n2", None)}


def test_every_video_source_from_annotations_to_manifest(shapes: Path, tmp_path: Path) -> None:
    """Class ids follow the annotations' order, without holes; splits and rejects are theirs too."""
    videos = tmp_path / "videos"
    videos.mkdir()
    names = {"orbit/orbit_0000.mp4": "1.webm", "orbit/orbit_0001.mp4": "2.webm", "fall/fall_0000.mp4": "3.webm"}
    for source, name in names.items():
        (videos / name).write_bytes((shapes / source).read_bytes())
    (videos / "4.webm").write_bytes((shapes / "fall/fall_0001.mp4").read_bytes()[:900])
    entries = [{"id": str(index), "template": "[Z]" if index < 3 else "A"} for index in range(1, 6)]
    lists = ssv2_lists(
        tmp_path / "lists", labels={"Z": 0, "unseen": 1, "A": 2}, train=entries[::2], validation=entries[1::2]
    )
    arguments = ["source=ssv2", f"annotations={lists}", f"videos={videos}", f"output={tmp_path}"]
    with pytest.raises(Refusal, match="2 train and 2 test and 1 missing videos, expected 168913"):
        list_videos.main(arguments)
    list_videos.main([*arguments, "expect_counts=false"])
    manifest, rejects = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("manifest", "rejects")
    )
    facts = [tuple(record[key] for key in ("path", "split", "label", "class_id", "num_frames")) for record in manifest]
    assert facts == [("1.webm", "train", "Z", 0, 20), ("3.webm", "train", "A", 1, 20), ("2.webm", "test", "Z", 0, 20)]
    assert rejects[0] == {"path": "5.webm", "reason": "not on disk"}
    assert (rejects[1]["path"], len(rejects)) == ("4.webm", 2)
    # What is missing does not count against a part of what is there.
    list_videos.main([*arguments, "expect_counts=false", "max_videos=3", "max_reject_fraction=0.4"])
    assert "5.webm" not in (tmp_path / "rejects.jsonl").read_text()
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) >= 2
