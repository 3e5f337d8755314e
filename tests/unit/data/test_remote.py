import hashlib
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from magvit_scale.config import ClipsConfig, Refusal
from magvit_scale.data import remote as module
from magvit_scale.data.clips import training_batches
from magvit_scale.data.remote import RemoteFolder, is_remote
from magvit_scale.data.shards import load_dataset
from tests.file_server import servers_of_handlers
from tests.unit.data.conftest import Clips


class Handler(SimpleHTTPRequestHandler):
    """A file server whose answers about files of one kind go wrong, in the order of `troubles`, before they go well."""

    troubles: list[str]
    asked: list[str]
    ending: str

    def do_GET(self) -> None:
        self.asked.append(self.path)
        is_struck = self.path.endswith(self.ending) and self.troubles
        trouble = self.troubles.pop(0) if is_struck else ""
        if not trouble:
            return super().do_GET()
        data = Path(self.translate_path(self.path)).read_bytes()
        if trouble.isdecimal():
            return self.send_error(int(trouble))
        if trouble == "flips":
            data = data[:1000] + bytes([data[1000] ^ 4]) + data[1001:]
        self.send_response(200)
        told = {"truncates": len(data) // 2, "grows": len(data) + 10}.get(trouble, len(data))
        self.send_header("Content-Length", str(told))
        self.end_headers()
        self.wfile.write({"grows": data + bytes(10), "flips": data}.get(trouble, data[: len(data) // 2]))
        if trouble == "stalls":
            time.sleep(0.3)
        return None

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(module, "STALLED_AFTER_S", 0.1)

    def start(folder: Path, *troubles: str, asked: list[str] | None = None, ending: str = ".tar") -> str:
        facts = {"troubles": list(troubles), "asked": [] if asked is None else asked, "ending": ending}
        return start_server(partial(type("_", (Handler,), facts), directory=str(folder)))

    with servers_of_handlers() as start_server:
        yield start


def batches(config: ClipsConfig, steps: int = 2) -> torch.Tensor:
    found = training_batches(config, seed=1, global_batch_size=8, rank=0, world_size=1, start_step=0, steps=steps)
    return torch.cat([batch["clip"] for batch in found])


def test_a_remote_data_set_gives_the_clips_of_the_local_one(
    serve: Callable[..., str], shards: Path, clips: Clips, tmp_path: Path
) -> None:
    asked: list[str] = []
    url = serve(shards / "h264", asked=asked)
    for window in (1, None):
        config = clips("h264", cache=str(tmp_path), shuffle_window=window)
        assert torch.equal(batches(ClipsConfig(**{**vars(config), "shards": url})), batches(config))
    # A second run asks for the description only.
    assert sum(path.endswith(".tar") for path in asked) == 3
    assert sum(path.endswith("dataset.json") for path in asked) == 2


@pytest.mark.parametrize("trouble", ["drops", "truncates", "stalls", "flips", "grows", "500", "503", "429"])
def test_what_goes_wrong_is_tried_again(
    serve: Callable[..., str], shards: Path, clips: Clips, tmp_path: Path, trouble: str
) -> None:
    url = serve(shards / "h264", trouble, trouble)
    found = batches(clips(shards=url, cache=str(tmp_path)), steps=1)
    assert torch.equal(found, batches(clips("h264"), steps=1))


def test_descriptions_that_break_off_are_asked_for_again(
    serve: Callable[..., str], shards: Path, clips: Clips, tmp_path: Path
) -> None:
    url = serve(shards / "h264", "drops", "drops", "500", ending=".json")
    assert torch.equal(batches(clips(shards=url, cache=str(tmp_path)), steps=1), batches(clips("h264"), steps=1))


def test_shards_that_were_written_again_are_not_taken_from_the_cache(
    serve: Callable[..., str], shards: Path, clips: Clips, tmp_path: Path
) -> None:
    shutil.copytree(shards / "raw", tmp_path / "served")
    config = clips(shards=serve(tmp_path / "served"), cache=str(tmp_path / "cache"))
    batches(config, steps=1)
    shutil.rmtree(tmp_path / "served")
    shutil.copytree(shards / "h264", tmp_path / "served")
    assert torch.equal(batches(config, steps=1), batches(clips("h264"), steps=1))


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("drops", "bytes, expected"), ("truncates", "bytes, expected"), ("stalls", "timed out"), ("grows", "expected"),
        ("flips", "sha256 .*, expected"), ("500", "HTTP Error 500"),
    ],
)  # fmt: skip
def test_what_stays_wrong_ends_in_one_line_and_leaves_no_shard(
    serve: Callable[..., str], shards: Path, clips: Clips, tmp_path: Path, trouble: str, reason: str
) -> None:
    url = serve(shards / "h264", *[trouble] * 100)
    with pytest.raises(Refusal, match=rf"clips-00000\d.tar: .*{reason}.* 5 times; check the server") as refusal:
        batches(clips(shards=url, cache=str(tmp_path)))
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.rglob("*.tar")) == []


def test_what_is_not_there_is_not_asked_for_again(serve: Callable[..., str], shards: Path, tmp_path: Path) -> None:
    asked: list[str] = []
    url = serve(shards, asked=asked)
    with pytest.raises(Refusal, match=r"dataset.json: HTTP Error 404: .* expected a file of data_prep.write_shards"):
        load_dataset(url, cache=str(tmp_path))
    assert asked == ["/dataset.json"]


def remote_folder(url: str, source: Path, cache: Path, max_bytes: int) -> tuple[RemoteFolder, list[Path]]:
    remote = RemoteFolder(url, str(cache), max_bytes / 10**9)
    files = sorted(source.glob("*/*.tar"))
    paths = [remote.folder / file.relative_to(source) for file in files]
    facts = [(file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]
    remote.expect(dict(zip(paths, facts, strict=True)))
    return remote, paths


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for number in range(6):
        path = tmp_path / f"files/train/{number}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * 10_000)
    return tmp_path / "files"


def test_the_disk_is_bounded_and_the_oldest_files_go(serve: Callable[..., str], files: Path, tmp_path: Path) -> None:
    remote, paths = remote_folder(serve(files), files, tmp_path / "cache", 35_000)
    for number, path in enumerate(paths):
        assert remote.reading(path, path.read_bytes) == bytes([number]) * 10_000
        os.utime(path, (number, number))
        if number == 2:
            remote.reading(paths[0], paths[0].read_bytes)
        assert sum(file.stat().st_size for file in remote.root.rglob("*.tar*")) <= 35_000
    assert [path.exists() for path in paths] == [True, False, False, False, True, True]
    with pytest.raises(Refusal, match=r"clips.cache_gb=3.5e-05: 4 shards of up to 10000 bytes are in use at a time"):
        remote.refuse_small_cache(4)


def test_files_are_fetched_ahead_in_order(serve: Callable[..., str], files: Path, tmp_path: Path) -> None:
    asked: list[str] = []
    remote, paths = remote_folder(serve(files, asked=asked), files, tmp_path / "cache", 10**6)
    remote.fetch_ahead([paths[number] for number in (4, 1, 3)])
    assert remote._fetcher is not None
    remote._fetcher.join(10)
    assert asked == ["/train/4.tar", "/train/1.tar", "/train/3.tar"]


def read_all(url: str, files: Path, cache: Path, seed: int, results: Any) -> None:
    remote, paths = remote_folder(url, files, cache, 45_000)
    order = [(number * seed) % 6 for number in range(1, 19)]
    results.put(all(remote.reading(paths[n], paths[n].read_bytes) == bytes([n]) * 10_000 for n in order))


def test_two_processes_share_a_cache_that_holds_too_little_for_both(
    serve: Callable[..., str], files: Path, tmp_path: Path
) -> None:
    url, context = serve(files, "drops", "flips"), multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    readers = [
        context.Process(target=read_all, args=(url, files, tmp_path / "cache", seed, results)) for seed in (1, 5)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(60)
    assert [results.get(), results.get()] == [True, True]


def test_a_file_left_half_by_a_killed_reader_is_fetched_again(
    serve: Callable[..., str], files: Path, tmp_path: Path
) -> None:
    remote, paths = remote_folder(serve(files), files, tmp_path / "cache", 10**6)
    paths[0].parent.mkdir(parents=True)
    paths[0].with_name("0.tar.tmp").write_bytes(b"half")
    remote.fetch(paths[0])
    assert paths[0].read_bytes() == bytes(10_000)
    assert not paths[0].with_name("0.tar.tmp").exists()


def test_what_fsspec_reads_is_read(shards: Path, clips: Clips, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in (shards / "raw").rglob("*"):
        if path.is_file():
            memory.pipe(f"/clips/{path.relative_to(shards / 'raw')}", path.read_bytes())
    found = batches(clips(shards="memory://clips", cache=str(tmp_path)), steps=1)
    assert torch.equal(found, batches(clips("raw"), steps=1))
    memory.rm("/clips", recursive=True)
    with pytest.raises(Refusal, match="FileNotFoundError"):
        load_dataset("memory://clips", cache=str(tmp_path / "other"))
    with pytest.raises(Refusal, match=r"nonsense://x/dataset.json: ValueError: Protocol not known"):
        load_dataset("nonsense://x", cache=str(tmp_path))


def test_local_files_are_not_copied(shards: Path, clips: Clips, tmp_path: Path) -> None:
    shutil.copytree(shards / "raw", tmp_path / "raw")
    batches(clips(shards=str(tmp_path / "raw"), cache=str(tmp_path / "cache")), steps=1)
    assert not (tmp_path / "cache").exists()
    assert not is_remote("folder")
    assert not is_remote("pipe:curl http://host/a.tar")
    assert is_remote("s3://bucket/clips")
