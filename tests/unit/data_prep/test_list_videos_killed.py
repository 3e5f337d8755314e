"""list_videos, killed with SIGKILL at 50 seeded moments, each time run again to its end."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import list_videos

KILLS = 50
# The children are forked from a process of its own, which has neither torch nor threads: a start costs no import.
KILLER = """
import os, random, signal, sys, time
from data_prep import list_videos

def run(arguments):
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        list_videos.main(arguments)
        os._exit(0)
    return child

def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

random = random.Random(0)
*arguments, folder, number = sys.argv[1:]
start = time.monotonic()
assert wait(run([*arguments, f"output={folder}/whole"])) == 0
whole_s = time.monotonic() - start
killed = attempts = 0
while killed < int(number):
    # One that was done before the signal came does not count.
    output = [*arguments, f"output={folder}/{attempts}"]
    attempts += 1
    child = run(output)
    time.sleep(random.uniform(0, whole_s))
    os.kill(child, signal.SIGKILL)
    killed += wait(child) == -signal.SIGKILL
    assert wait(run(output)) == 0
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four classes of eight pictures, three of them damaged and two of them equal."""
    random_pixels = np.random.default_rng(0)
    for index in range(32):
        path = tmp_path / f"images/{index % 4}/{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_pixels.integers(0, 256, (160, 160, 3), np.uint8)).save(path)
    for index in random.Random(0).sample(range(2, 32), 3):
        path = tmp_path / f"images/{index % 4}/{index}.png"
        path.write_bytes(path.read_bytes()[:5000])
    (tmp_path / "images/1/1.png").write_bytes((tmp_path / "images/0/0.png").read_bytes())
    return tmp_path / "images"


def test_killed_at_any_moment_and_run_again_gives_the_same_bytes(images: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLER, "source=images", f"videos={images}", str(tmp_path / "runs"), str(KILLS)]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(list_videos.__file__).parents[1])
    names = ("manifest.jsonl", "rejects.jsonl", "duplicates.jsonl", "probes.jsonl")
    expected = {name: (tmp_path / "runs/whole" / name).read_bytes() for name in names}
    assert [len(expected[name].splitlines()) for name in names] == [29, 3, 1, 32]
    outputs = list((tmp_path / "runs").iterdir())
    assert len(outputs) > KILLS
    for output in outputs:
        assert {path.name: path.read_bytes() for path in output.iterdir()} == expected
