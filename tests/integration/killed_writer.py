"""write_shards, killed again and again: `python -m tests.integration.killed_writer SEED KILLS FOLDER [key=value ...]`.

Writes FOLDER/whole undisturbed, then FOLDER/cut_0000, ... under SIGKILLs at random moments until enough of them have
struck. Forks from here, where everything is imported, so that a start costs nothing and no thread is lost. Prints one
line of JSON: the kills, the folders that were finished, shards that were written twice though they were complete,
and the most shards that were in flight at a kill.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from data_prep import write_shards


def main() -> None:
    seed, num_kills, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    generator, arguments, started = random.Random(seed), sys.argv[4:], time.monotonic()
    assert run([*arguments, f"output={folder / 'whole'}"], None) == 0
    duration = time.monotonic() - started
    kills, redone, in_flight, finished = 0, 0, 0, 0
    known: dict[str, int] = {}
    was_killed = False
    while kills < num_kills or was_killed:
        output = folder / f"cut_{finished:04d}"
        delay = generator.uniform(0, duration / 2) if kills < num_kills else None
        was_killed = run([*arguments, f"output={output}"], delay) == -signal.SIGKILL
        now = complete(output)
        redone += sum(now.get(name) != inode for name, inode in known.items())
        in_flight = max(in_flight, len(seen(output) - now.keys()))
        kills, finished = kills + was_killed, finished + (not was_killed)
        known = now if was_killed else {}
    sys.stdout.write(
        json.dumps({"kills": kills, "finished": finished, "redone": redone, "in_flight": in_flight}) + "\n"
    )


def run(arguments: list[str], delay_s: float | None) -> int:
    """The status of a writer that is killed after a while, unless it was faster; negative for a signal."""
    pid = os.fork()
    if pid == 0:
        write_shards.main(arguments)
        os._exit(0)
    if delay_s is not None:
        time.sleep(delay_s)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def complete(output: Path) -> dict[str, int]:
    """The inodes of the tars that have their index, by name; a tar that is written again gets another one."""
    tars = {index.with_suffix(".tar") for index in output.glob("*/*.json")}
    return {f"{tar.parent.name}/{tar.name}": tar.stat().st_ino for tar in tars}


def seen(output: Path) -> set[str]:
    """Every tar that was begun."""
    return {f"{tar.parent.name}/{tar.name.partition('.tar')[0]}.tar" for tar in output.glob("*/*.tar*")}


if __name__ == "__main__":
    main()
