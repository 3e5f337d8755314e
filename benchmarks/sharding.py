"""Video files -> 128-px H.264 three ways: the bare ffmpeg command, write_shards, and the calls of video2dataset."""

import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import Measured, compare
from data_prep import list_videos, moving_shapes, write_shards
from magvit_scale.ffmpeg_process import ffmpeg_executable

SIZE_PX, FPS, NUM_VIDEOS = 128, 25, 12
REAL_VIDEOS = ("k_demo.mp4", "mm_part0.mp4", "mm_test.avi")
SCALE = f"scale={SIZE_PX}:{SIZE_PX}:force_original_aspect_ratio=increase,crop={SIZE_PX}:{SIZE_PX}"
# Two of the real videos have pixels that are not square: the same frames as write_shards', and the same work, only with
# their shape applied. video2dataset's calls leave it out.
_SHORT = f"{SIZE_PX}/min(iw*sar,ih)"
SQUARE = f"scale='max({SIZE_PX},round(iw*sar*{_SHORT}))':'max({SIZE_PX},round(ih*{_SHORT}))',crop={SIZE_PX}:{SIZE_PX}"
X264 = ["-c:v", "libx264", "-preset", "veryfast", "-tune", "fastdecode", "-crf", "18", "-g", "16", "-bf", "0"]
X264 += ["-threads", "1", "-pix_fmt", "yuv420p"]


def measure_sharding(folder: Path) -> dict[str, Measured]:
    """CPU time per video; on one core, since ffmpeg on two busy ones varies by a tenth."""
    manifest = _list(folder)
    records = [json.loads(line) for line in manifest.read_text().splitlines()]
    paths = [Path(record["folder"]) / record["path"] for record in records]
    numbers = itertools.count()

    def into_new_folder(way: Callable[[Path], None]) -> Callable[[], int]:
        def work() -> int:
            output = folder / f"out_{next(numbers)}"
            output.mkdir()
            way(output)
            shutil.rmtree(output)
            return len(paths)

        return work

    ways = {
        "bare ffmpeg": lambda output: _bare(paths, output),
        "write_shards": lambda output: _ours(manifest, output),
        "video2dataset's calls": lambda output: _video2dataset(paths, output),
    }
    with _on_one_core():
        return compare({name: into_new_folder(way) for name, way in ways.items()}, rounds=11)


def _list(folder: Path) -> Path:
    videos = folder / "videos" / "all"
    if real := os.environ.get("MAGVIT_TEST_VIDEOS"):
        videos.mkdir(parents=True)
        for number in range(NUM_VIDEOS):
            name = REAL_VIDEOS[number % len(REAL_VIDEOS)]
            shutil.copy(next(Path(real).rglob(name)), videos / f"{number}_{name}")
    else:
        moving_shapes.main([f"output={videos.parent}", "videos_per_class=2", "size_px=320", "fps=25"])
    list_videos.main([f"videos={videos.parent}", f"output={folder}", "num_workers=1"])
    return folder / "manifest.jsonl"


def _bare(paths: list[Path], output: Path) -> None:
    for number, path in enumerate(paths):
        read = ["-v", "error", "-nostdin", "-threads", "1", "-i", f"file:{path}", "-map", "0:v:0", "-an"]
        convert = ["-vf", f"fps={FPS},{SQUARE}", "-filter_threads", "1", *X264]
        subprocess.run([ffmpeg_executable(), *read, *convert, f"{output / str(number)}.mp4"], check=True)


def _ours(manifest: Path, output: Path) -> None:
    settings = [f"size_px={SIZE_PX}", f"fps={FPS}", "max_frames=100000", "num_workers=1"]
    write_shards.main([f"manifest={manifest}", f"output={output}", *settings])


def _video2dataset(paths: list[Path], output: Path) -> None:
    """What its ResolutionSubsampler runs: a copy, a probe, x264 as it comes; the package itself pins an old torch."""
    for path in paths:
        with tempfile.TemporaryDirectory(dir=output) as folder:
            copy = Path(folder) / "input.mp4"
            copy.write_bytes(path.read_bytes())
            subprocess.run([ffmpeg_executable(), "-hide_banner", "-i", str(copy)], capture_output=True, check=False)
            convert = ["-v", "error", "-nostdin", "-y", "-i", str(copy), "-vf", f"fps={FPS},{SCALE}"]
            subprocess.run([ffmpeg_executable(), *convert, f"{folder}/output.mp4"], check=True)


@contextmanager
def _on_one_core() -> Iterator[None]:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
