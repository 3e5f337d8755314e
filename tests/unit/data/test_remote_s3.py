"""Shards behind a real S3 server, on loopback: what s3fs and the cache make of it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import s3fs
import torch
from moto.server import ThreadedMotoServer

from magvit_scale.config import ClipsConfig, Refusal
from magvit_scale.data import remote as module
from magvit_scale.data.clips import training_batches
from magvit_scale.data.shards import load_dataset
from tests.unit.data.conftest import Clips

BUCKET = "s3://magvit/clips"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def store(endpoint: str, shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket with the h264 shards; the account is told as anybody tells it, by the environment."""
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.001)
    for name, value in {"ENDPOINT_URL": endpoint, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = boto3.resource("s3", endpoint_url=endpoint).Bucket("magvit")
    bucket.create()
    for path in sorted((shards / "h264").rglob("*.*")):
        bucket.upload_file(str(path), f"clips/{path.relative_to(shards / 'h264')}")
    yield bucket
    bucket.objects.delete()
    bucket.delete()
    s3fs.S3FileSystem.clear_instance_cache()


def batches(config: ClipsConfig) -> torch.Tensor:
    found = training_batches(config, seed=1, global_batch_size=8, rank=0, world_size=1, start_step=0, steps=2)
    return torch.cat([batch["clip"] for batch in found])


def test_clips_come_out_of_a_bucket_and_then_out_of_the_cache(store: Any, clips: Clips, tmp_path: Path) -> None:
    remote = clips(shards=BUCKET, cache=str(tmp_path))
    assert torch.equal(batches(remote), batches(clips("h264", shuffle_window=8)))
    # Processes that are forked from one with a connection open one of their own.
    apart = clips(shards=BUCKET, cache=str(tmp_path / "apart"), num_workers=2)
    assert torch.equal(batches(apart), batches(clips("h264", shuffle_window=8)))
    tars = [item for item in store.objects.all() if item.key.endswith(".tar")]
    assert {path.name for path in tmp_path.rglob("*.tar")} <= {item.key.rpartition("/")[2] for item in tars}
    for item in tars:
        item.delete()
    assert torch.equal(batches(remote), batches(clips("h264", shuffle_window=8)))


def truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    return data[:1000] + bytes([data[1000] ^ 4]) + data[1001:]


@pytest.mark.parametrize(("damage", "reason"), [(truncate, "bytes, expected"), (flip, "sha256 .*, expected")])
def test_a_damaged_object_is_one_line_and_no_shard(
    store: Any, clips: Clips, tmp_path: Path, damage: Callable[[bytes], bytes], reason: str
) -> None:
    for item in store.objects.filter(Prefix="clips/train"):
        if item.key.endswith(".tar"):
            item.put(Body=damage(item.get()["Body"].read()))
    with pytest.raises(Refusal, match=rf"^s3://magvit/clips/train/\S+.tar: .*{reason}.*5 times; check the") as refusal:
        batches(clips(shards=BUCKET, cache=str(tmp_path)))
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.rglob("*.tar")) == []


def test_what_is_not_in_the_bucket_is_told_at_once(store: Any, clips: Clips, tmp_path: Path) -> None:
    missing = r"^s3://magvit/clips/train/\S+.tar: FileNotFoundError: .*; expected a file of data_prep.write_shards"
    for item in store.objects.filter(Prefix="clips/train"):
        if item.key.endswith(".tar"):
            item.delete()
    with pytest.raises(Refusal, match=missing):
        batches(clips(shards=BUCKET, cache=str(tmp_path)))
    for url in ("s3://magvit/other", "s3://no-such-bucket/clips"):
        with pytest.raises(Refusal, match=rf"^{url}/dataset.json: FileNotFoundError: "):
            load_dataset(url, cache=str(tmp_path))


def test_a_bucket_that_was_written_again_is_not_taken_from_the_cache(
    store: Any, shards: Path, clips: Clips, tmp_path: Path
) -> None:
    remote = clips(shards=BUCKET, cache=str(tmp_path))
    batches(remote)
    for path in sorted((shards / "raw").rglob("*.*")):
        store.upload_file(str(path), f"clips/{path.relative_to(shards / 'raw')}")
    assert torch.equal(batches(remote), batches(clips("raw", shuffle_window=8)))
