"""list_videos, killed with SIGKILL at 50 seeded moments, each time run again to its end."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import list_videos

RUNS = 50
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

random = random.Random(0)
*arguments, folder, number = sys.argv[1:]
killed = 0
for index in range(int(number)):
    output = [*arguments, f"output={folder}/{index}"]
    child = run(output)
    time.sleep(random.uniform(0, 0.12))
    os.kill(child, signal.SIGKILL)
    killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert os.waitstatus_to_exitcode(os.waitpid(run(output), 0)[1]) == 0
print(killed)
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four classes of twelve pictures, three of them damaged and two of them equal."""
    random_pixels = np.random.default_rng(0)
    for index in range(48):
        path = tmp_path / f"images/{index % 4}/{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_pixels.integers(0, 256, (96, 96, 3), np.uint8)).save(path)
    for index in random.Random(0).sample(range(2, 48), 3):
        path = tmp_path / f"images/{index % 4}/{index}.png"
        path.write_bytes(path.read_bytes()[:5000])
    (tmp_path / "images/1/1.png").write_bytes((tmp_path / "images/0/0.png").read_bytes())
    return tmp_path / "images"


def test_killed_at_any_moment_and_run_again_gives_the_same_bytes(images: Path, tmp_path: Path) -> None:
    arguments = ["source=images", f"videos={images}"]
    list_videos.main([*arguments, f"output={tmp_path / 'whole'}"])
    command = [sys.executable, "-c", KILLER, *arguments, str(tmp_path / "runs"), str(RUNS)]
    # Whether a child is hit or was done by then is the machine's affair; that its output is right is not.
    subprocess.run(command, check=True, capture_output=True, cwd=Path(list_videos.__file__).parents[1])
    names = ("manifest.jsonl", "rejects.jsonl", "duplicates.jsonl", "probes.jsonl")
    expected = {name: (tmp_path / "whole" / name).read_bytes() for name in names}
    assert [len(expected[name].splitlines()) for name in names] == [45, 3, 1, 48]
    for index in range(RUNS):
        assert {path.name: path.read_bytes() for path in (tmp_path / f"runs/{index}").iterdir()} == expected
