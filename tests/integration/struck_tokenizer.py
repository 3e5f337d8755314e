"""Kills `magvit precompute-tokens` again and again: `python -m tests.integration.struck_tokenizer FOLDER KILLS SEED`.

Every start is a fork of this process, which has imported everything, so it costs a tenth of a second. A moment is a
number of Python calls, drawn by the seed, after which the program kills itself: any of them, or, every other time, one
of the calls in which files are written. Prints what happened as JSON.
"""

import json
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from magvit_scale import precompute_tokens
from tests.tiny_tokens import arguments, write_clips, write_tokenizer

WRITING = ("token_writer.py", "token_tar.py", "files.py")


def main() -> None:
    # tqdm's own lock is shared between forks: one that is killed while it holds it would stop all that come after.
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0  # its thread may hold the lock at a fork
    folder, num_kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    clips, tokenizer, draw = write_clips(folder), write_tokenizer(folder / "tokenizer"), random.Random(seed)
    undisturbed = folder / "undisturbed"
    lengths = [count_calls(arguments(clips, tokenizer, folder / f"counted-{only}"), only) for only in (False, True)]
    assert start(arguments(clips, tokenizer, undisturbed), None, False) == 0
    kills = rounds = 0
    while kills < num_kills:
        rounds += 1
        output = folder / f"round-{rounds}"
        told = arguments(clips, tokenizer, output)
        while True:
            is_writing = bool((kills + rounds) % 2)
            ended = start(told, draw.randrange(lengths[is_writing]), is_writing)
            assert ended in (0, -signal.SIGKILL), f"round {rounds}, kill {kills}: ended with {ended}"
            if ended == 0:
                break
            kills += 1
        assert contents(output) == contents(undisturbed), f"round {rounds} differs"
    told = arguments(clips, tokenizer, folder / "together")
    processes = [begin(told, None, False) for _ in range(3)]
    assert [end(process) for process in processes] == [0, 0, 0]
    assert contents(folder / "together") == contents(undisturbed), "three launches at once differ from one"
    print(json.dumps({"kills": kills, "rounds": rounds, "calls": lengths}))  # noqa: T201


def contents(folder: Path) -> dict[str, bytes]:
    """All files, by their path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def count_calls(told: list[str], is_writing: bool) -> int:
    """How many moments an undisturbed run has."""
    source, sink = os.pipe()

    def report(count: int) -> None:
        os.write(sink, b"%d" % count)

    assert start(told, None, is_writing, report) == 0
    return int(os.read(source, 32))


def start(told: list[str], moment: int | None, is_writing: bool, report: Callable[[int], None] | None = None) -> int:
    """Runs the program; returns its exit status, negative where a signal ended it."""
    return end(begin(told, moment, is_writing, report))


def end(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def begin(told: list[str], moment: int | None, is_writing: bool, report: Callable[[int], None] | None = None) -> int:
    """Starts the program in a fork; returns its number."""
    if process := os.fork():
        return process
    status, calls = 1, 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        if not is_writing or frame.f_code.co_filename.endswith(WRITING):
            calls += 1
            if calls - 1 == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.setprofile(count)
        precompute_tokens.main(told)
        sys.setprofile(None)
        if report:
            report(calls)
        status = 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
