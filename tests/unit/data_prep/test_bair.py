"""TFRecords as BAIR publishes them, written by TensorBoard and protobuf, so that reader and writer share nothing."""

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from numpy.typing import NDArray
from PIL import Image
from tensorboard.summary.writer.record_writer import RecordWriter

from data_prep import list_videos, sources, write_shards
from data_prep.bair import count_records
from magvit_scale.config import Refusal
from magvit_scale.data.shards import load_dataset
from magvit_scale.video import VideoError

Video = NDArray[np.uint8]
Encode = Callable[[Video], bytes]


def schema() -> type:
    """tf.train.Example: features -> map of name to Feature, which holds bytes or floats."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="example", syntax="proto3")
    for name, members in {
        "Example": [("features", 1, "Features", False)],
        "Features": [("feature", 1, "Entry", True)],
        "Entry": [("key", 1, field.TYPE_STRING, False), ("value", 2, "Feature", False)],
        "Feature": [("bytes_list", 1, "BytesList", False), ("float_list", 2, "FloatList", False)],
        "BytesList": [("value", 1, field.TYPE_BYTES, True)],
        "FloatList": [("value", 1, field.TYPE_FLOAT, True)],
    }.items():
        message = file.message_type.add(name=name)
        for key, number, kind, is_repeated in members:
            label = field.LABEL_REPEATED if is_repeated else field.LABEL_OPTIONAL
            if isinstance(kind, str):
                kinds = {"type": field.TYPE_MESSAGE, "type_name": f".example.{kind}"}
            else:
                kinds = {"type": kind}
            message.field.add(name=key, number=number, label=label, **kinds)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("example.Example"))


EXAMPLE = schema()


def raw(frame: Video) -> bytes:
    return frame.tobytes()


def png(frame: Video) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def record(frames: Video, encode: Encode = raw, camera: str = "image_aux1") -> bytes:
    """One trajectory: both cameras and the actions, as published."""
    features = []
    for index, frame in enumerate(frames):
        features.append({"key": f"{index}/{camera}/encoded", "value": {"bytes_list": {"value": [encode(frame)]}}})
        other = {"bytes_list": {"value": [encode(255 - frame)]}}
        features.append({"key": f"{index}/image_main/encoded", "value": other})
        features.append({"key": f"{index}/action", "value": {"float_list": {"value": [0.5, -1, 0, 2]}}})
    return EXAMPLE(features={"feature": features}).SerializeToString()


def write(path: Path, *records: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        writer = RecordWriter(stream)
        for data in records:
            writer.write(data)
    return path


def video(seed: int, num_frames: int = 30) -> Video:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, 64, 64, 3), np.uint8)


@pytest.fixture
def bair(tmp_path: Path) -> Path:
    """Three files to train on, of which the first trajectories are 0, 256 and 10240; the fourth video repeats one."""
    folder = tmp_path / "softmotion30_44k"
    write(folder / "train/traj_0_to_255.tfrecords", record(video(0)), record(video(1)))
    write(folder / "train/traj_10240_to_10495.tfrecords", record(video(2)))
    write(folder / "train/traj_256_to_511.tfrecords", record(video(3), png))
    write(folder / "test/traj_0_to_255.tfrecords", record(video(4)), record(video(1)))
    return tmp_path


def listed(output: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (output / f"{name}.jsonl").read_text().splitlines()]


def test_from_tfrecords_to_shards(bair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["source=bair", f"videos={bair}", f"output={tmp_path / 'list'}"]
    with pytest.raises(Refusal, match="4 train and 2 test videos, expected 43264 and 256"):
        list_videos.main(arguments)
    list_videos.main([*arguments, "expect_counts=false"])
    manifest = listed(tmp_path / "list", "manifest")
    names = ("train/traj_0_to_255", "train/traj_256_to_511", "train/traj_10240_to_10495", "test/traj_0_to_255")
    paths = [f"softmotion30_44k/{name}.tfrecords" for name in names]
    expected = [f"{paths[0]}#0", f"{paths[0]}#1", f"{paths[1]}#0", f"{paths[2]}#0", f"{paths[3]}#0", f"{paths[3]}#1"]
    assert [line["path"] for line in manifest] == expected
    assert {
        (line["split"], line["class_id"], line["width"], line["height"], line["num_frames"]) for line in manifest
    } == {
        ("train", -1, 64, 64, 30),
        ("test", -1, 64, 64, 30),
    }
    (equal,) = listed(tmp_path / "list", "duplicates")
    assert (equal["splits"], equal["paths"]) == (["test", "train"], [expected[1], expected[5]])
    assert "1 files are copies of others, 1 videos ARE IN BOTH train and test" in capsys.readouterr().err
    # Every frame arrives in the shards as it was.
    shards = [f"manifest={tmp_path / 'list/manifest.jsonl'}", f"output={tmp_path / 'shards'}"]
    write_shards.main([*shards, "size_px=64", "encoding=raw"])
    dataset = load_dataset(tmp_path / "shards")
    assert dataset.classes == ()
    stored = [dataset.read_video(sample, 0, 30) for split in ("train", "test") for sample in dataset.samples(split)]
    sent = [video(seed) for seed in (0, 1, 2, 3, 4, 1)]
    assert sorted(frames.tobytes() for frames in stored) == sorted(frames.tobytes() for frames in sent)


def test_frames_of_other_sizes_and_fewer(bair: Path) -> None:
    path = bair / "softmotion30_44k/train/traj_0_to_255.tfrecords#1"
    frames = sources.decode(path, size_px=32, max_frames=5)
    assert (frames.shape, frames.dtype) == ((5, 32, 32, 3), np.uint8)
    assert abs(frames.astype(float).mean() - video(1)[:5].mean()) < 1
    assert np.array_equal(sources.decode(path, size_px=64), video(1))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (record(video(0), camera="image_aux2"), "no frame 0 of camera image_aux1"),
        (record(video(0, 29)), "no frame 29 of camera image_aux1"),
        (record(video(0)[:, :32]), "frame 0 is neither raw 64x64 RGB nor PNG or JPEG"),
        (record(video(0)[:, :32], png), "frame 0 has 64x32 pixels, not 64x64"),
        (b"", "no frame 0"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "not a tf.train.Example"),
        (b"\x0a\x05abc", "not a tf.train.Example"),
        (b"\x08\x01", "not a tf.train.Example"),
    ],
)
def test_records_that_hold_no_video_of_bair(tmp_path: Path, data: bytes, words: str) -> None:
    path = write(tmp_path / "a.tfrecords", data)
    with pytest.raises(VideoError, match=words):
        sources.probe(Path(f"{path}#0"))


def test_damaged_files_give_the_records_before_the_damage(bair: Path, tmp_path: Path) -> None:
    path = bair / "softmotion30_44k/train/traj_0_to_255.tfrecords"
    whole = path.read_bytes()
    second = 12 + struct.unpack("<Q", whole[:8])[0] + 4
    damages = {
        len(whole) - 1: "truncated inside a record",
        second + 40: "truncated inside a record",
        second + 5: "truncated inside a record's header",
    }
    for size, words in damages.items():
        path.write_bytes(whole[:size])
        assert count_records(path) == (1, words)
    path.write_bytes(whole[:second] + struct.pack("<QI", 1 << 62, 0) + whole[second + 12 :])
    assert count_records(path) == (1, "not a TFRecord, or a record's length is damaged")
    path.write_bytes(whole[: second + 5000] + b"\x00\x01\x02" + whole[second + 5003 :])
    assert count_records(path) == (2, None)
    with pytest.raises(VideoError, match="checksum of record 1 is wrong"):
        sources.probe(Path(f"{path}#1"))
    with pytest.raises(VideoError, match="no record 2"):
        sources.probe(Path(f"{path}#2"))
    with pytest.raises(VideoError, match="No such file"):
        sources.decode(path.parent / "none.tfrecords#0", size_px=64)
    (path.parent / "traj_256_to_511.tfrecords").write_bytes(b"no record" * 9)
    list_videos.main(["source=bair", f"videos={bair}", f"output={tmp_path / 'list'}", "expect_counts=false"])
    reasons = {reject["path"].rpartition("/")[2]: reject["reason"] for reject in listed(tmp_path / "list", "rejects")}
    assert reasons == {
        "traj_0_to_255.tfrecords#1": "checksum of record 1 is wrong",
        "traj_256_to_511.tfrecords#0": (
            "not a TFRecord, or a record's length is damaged; this record and the rest of the file are lost"
        ),
    }


def test_a_folder_without_tfrecords_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"no videos in it; expected train/\*.tfrecords"):
        list_videos.main(["source=bair", f"videos={tmp_path}", f"output={tmp_path}"])
