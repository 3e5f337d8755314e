"""Data sets of many shards that take no room: true indexes and headers, holes where videos and tokens would be."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np

from magvit_scale.data.token_facts import TokenFacts, hash_of, token_shard_name
from magvit_scale.files import write_json

VIDEO_BYTES = 300_000
"""Of a stored video: ten seconds of H.264 at 128 px, assumed."""
LATENT_SHAPE = (4, 16, 16)


def write_stub_clips(folder: Path, num_shards: int, num_samples: int) -> None:
    """Clip shards of `num_samples` videos each, as write_shards leaves them; every shard has the same index."""
    split = folder / "train"
    split.mkdir(parents=True)
    num_bytes = (num_samples * (VIDEO_BYTES + 1024) // tarfile.RECORDSIZE + 1) * tarfile.RECORDSIZE
    facts = {"count": num_samples, "bytes": num_bytes, "sha256": 64 * "0"}
    shards = [{"name": f"clips-{number:06d}.tar", **facts} for number in range(num_shards)]
    index = folder / "index.json"
    write_json(index, {**facts, "samples": [_video(number) for number in range(num_samples)]})
    for shard in shards:
        path = split / str(shard["name"])
        path.touch()
        os.truncate(path, num_bytes)
        os.link(index, path.with_suffix(".json"))
    content = {"classes": ["all"], "size_px": 128, "fps": 25.0, "encoding": "h264", "hash": "none"}
    write_json(folder / "dataset.json", content | {"splits": {"train": shards}})


def _video(number: int) -> dict[str, object]:
    return {
        "key": f"video_{number:06d}-0123456789ab", "label": "all", "class_id": 0, "num_frames": 250, "fps": 25.0,
        "height": 128, "width": 170, "source": f"all/video_{number:06d}.mp4", "crc32": 1234567890 + number,
        "offset": 512 + number * (VIDEO_BYTES + 1024), "size": VIDEO_BYTES,
    }  # fmt: skip


def write_stub_tokens(folder: Path, num_shards: int, num_clips: int, canvases: tuple[str, ...]) -> None:
    """Token shards of `num_clips` clips each, as precompute-tokens leaves them; every token is 0."""
    folder.mkdir(parents=True)
    facts = TokenFacts(
        tokenizer_hash="none", tokenizer={}, clips_hash="none", clips={"split": "train"}, canvases=canvases, rules={},
        views=1, seed=0, latent_shape=LATENT_SHAPE, codebook_size=1024, classes=("all",), num_shards=num_shards,
    )  # fmt: skip
    names = [token_shard_name(number) for number in range(num_shards)]
    sizes = [_write_token_tar(folder / name, (num_clips, *facts.clip_shape)) for name in names]
    shards = [{"name": name, "count": num_clips, "bytes": size, "sha256": ""} for name, size in
              zip(names, sizes, strict=True)]  # fmt: skip
    content = {**facts.as_json(), "num_clips": num_clips * num_shards, "codebook": {}, "shards": shards}
    write_json(folder / "dataset.json", content | {"hash": hash_of(content)})


def _write_token_tar(path: Path, shape: tuple[int, ...]) -> int:
    """The tar of token_tar.py with a hole for its tokens; gives its size."""
    labels, keys = _npy(np.zeros(shape[0], np.int64)), json.dumps([str(number) for number in range(shape[0])]).encode()
    header = _npy_header(shape)
    with path.open("wb") as file:
        for name, data, hole in (
            ("tokens.npy", header, 2 * int(np.prod(shape))), ("labels.npy", labels, 0), ("keys.json", keys, 0)
        ):  # fmt: skip
            member = tarfile.TarInfo(f"{path.stem}.{name}")
            member.size = len(data) + hole
            file.write(member.tobuf(tarfile.USTAR_FORMAT) + data)
            file.seek(hole + -member.size % tarfile.BLOCKSIZE, io.SEEK_CUR)
        end = file.tell() + 2 * tarfile.BLOCKSIZE
        file.truncate(end + -end % tarfile.RECORDSIZE)
    return path.stat().st_size


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _npy_header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<u2", "fortran_order": False, "shape": shape})
    return buffer.getvalue()
