"""An ImageNet-style folder -> manifest -> JPEG shards -> one-frame clips."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from data_prep import list_videos, write_shards
from data_prep.images import decode_image, is_image, probe_image
from magvit_scale.config import ClipsConfig, Refusal
from magvit_scale.data.clips import training_batches
from magvit_scale.data.shards import load_dataset
from magvit_scale.video import VideoError

ORIENTATION = 0x0112
NAMES = ("n01/a.JPEG", "n01/b.png", "n01/c.webp", "n02/d.jpg", "n02/e.jpeg", "n02/grey.jpg")


def gradient(height: int, width: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([255 * x // (width - 1), 255 * y // (height - 1), 0 * x + 60], -1).astype(np.uint8))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name in NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        image = gradient(24, 40).convert("L") if "grey" in name else gradient(24, 40)
        image.save(folder / name, quality=95)
    (folder / "n02/broken.jpg").write_bytes((folder / "n02/d.jpg").read_bytes()[:300])
    (folder / "n02/ignored.gif").write_bytes(b"GIF89a")
    return folder


def shards(images: Path, folder: Path, **settings: object) -> Path:
    list_videos.main([f"videos={images}", f"output={folder}", "source=images"])
    arguments = [f"manifest={folder / 'manifest.jsonl'}", f"output={folder / 'shards'}", "size_px=16"]
    write_shards.main([*arguments, *(f"{key}={value}" for key, value in settings.items())])
    return folder / "shards"


def test_images_are_videos_of_one_frame(images: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="no videos in it"):
        list_videos.main([f"videos={images}", f"output={tmp_path}"])
    list_videos.main([f"videos={images}", f"output={tmp_path}", "source=images"])
    manifest = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert {record["path"]: record["label"] for record in manifest} == {name: name[:3] for name in NAMES}
    facts = {(record["width"], record["height"], record["num_frames"], record["fps"]) for record in manifest}
    assert facts == {(40, 24, 1, 1.0)}
    (reject,) = (json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines())
    assert (reject["path"], reject["reason"][:16]) == ("n02/broken.jpg", "unreadable image")


def test_jpeg_shards_hold_an_image_per_sample(images: Path, tmp_path: Path) -> None:
    dataset = load_dataset(shards(images, tmp_path, encoding="jpeg"))
    assert (dataset.encoding, dataset.classes) == ("jpeg", ("n01", "n02"))
    samples = dataset.samples("train")
    streamed = list(webdataset.WebDataset([str(s.path) for s in dataset.shards("train")], shardshuffle=False))
    assert [item["__key__"] for item in streamed] == [sample.key for sample in samples]
    for item, sample in zip(streamed, samples, strict=True):
        frames = dataset.read_video(sample, 0, 1)
        assert (frames.shape, frames.dtype) == ((1, 16, 16, 3), np.uint8)
        with Image.open(io.BytesIO(item["jpg"])) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (16, 16))
            # Quantisation of quality 95, and no chroma subsampling.
            assert image.quantization[0][0] <= 2
            assert {layer[1:3] for layer in image.layer} == {(1, 1)}
        source = decode_image(images / json.loads(item["json"])["source"], size_px=16)
        assert np.abs(source.astype(int) - frames).max() < 8
    (batch,) = training_batches(
        ClipsConfig(shards=str(dataset.folder), num_frames=1, size_px=16, num_workers=0),
        seed=0, global_batch_size=3, rank=0, world_size=1, start_step=0, steps=1,
    )  # fmt: skip
    assert (batch["clip"].shape, batch["clip"].dtype) == ((3, 3, 1, 16, 16), torch.uint8)


def test_raw_shards_take_images_too(images: Path, tmp_path: Path) -> None:
    dataset = load_dataset(shards(images, tmp_path, encoding="raw"))
    for sample in dataset.samples("train"):
        (source,) = (name for name in NAMES if Path(name).stem.lower() == sample.key.split("-")[0])
        assert np.array_equal(dataset.read_video(sample, 0, 1), decode_image(images / source, size_px=16))


def test_the_centre_is_kept_and_exif_turns(tmp_path: Path) -> None:
    gradient(24, 40).save(tmp_path / "plain.png")
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # stored lying on its side: to be turned a quarter clockwise
    gradient(24, 40).save(tmp_path / "turned.jpg", quality=100, subsampling=0, exif=exif)
    plain, turned = (decode_image(tmp_path / name, size_px=24) for name in ("plain.png", "turned.jpg"))
    whole = np.asarray(gradient(24, 40))
    assert np.array_equal(plain[0], whole[:, 8:32])
    assert np.abs(turned[0].astype(int) - np.rot90(whole, -1)[8:32]).max() < 6
    assert (probe_image(tmp_path / "turned.jpg").width, probe_image(tmp_path / "plain.png").width) == (24, 40)
    assert [is_image(Path(name)) for name in ("a.JPEG", "a.mp4", "jpeg")] == [True, False, False]


def test_what_is_no_image_is_refused(images: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    for path in (tmp_path / "text.png", tmp_path / "none.png", images / "n02/broken.jpg"):
        with pytest.raises(VideoError, match="unreadable image"):
            probe_image(path)


def test_damaged_jpeg_samples_do_not_decode(images: Path, tmp_path: Path) -> None:
    dataset = load_dataset(shards(images, tmp_path, encoding="jpeg"))
    sample = dataset.samples("train")[0]
    with sample.shard.open("r+b") as file:
        file.seek(sample.offset)
        file.write(bytes(sample.size))
    with pytest.raises(VideoError, match="damaged bytes"):
        dataset.read_video(sample, 0, 1)


def test_videos_cannot_be_stored_as_jpeg(shapes: Path, tmp_path: Path) -> None:
    list_videos.main([f"videos={shapes}", f"output={tmp_path}"])
    with pytest.raises(Refusal, match="has 20 frames, expected images only; use encoding=h264 or raw"):
        write_shards.main([f"manifest={tmp_path / 'manifest.jsonl'}", f"output={tmp_path / 's'}", "encoding=jpeg"])
