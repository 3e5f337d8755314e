"""The two ends of a process: imports without searches for garbage, an end without taking things apart."""

import gc
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest

from magvit_scale.lifetime import imported

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = """
import atexit, multiprocessing, sys, time
import slurm.job
from magvit_scale.lifetime import leaves_at_once

class Whole:
    def __del__(self):
        print("taken apart")

whole = Whole()
with leaves_at_once():
    atexit.register(print, "registered by the program")
    if "child" in sys.argv:
        multiprocessing.Process(target=time.sleep, args=(20,), daemon=True).start()
    if "refuse" in sys.argv:
        raise SystemExit("no videos")
sys.stdout.write("kept back ")
"""


def run(*arguments: str) -> tuple[int, Sequence[str], str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=15, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout.split("\n"), done.stderr


def test_a_process_that_has_done_its_work_says_all_and_is_not_taken_apart() -> None:
    assert run() == (0, ["kept back registered by the program", ""], "")


def test_its_children_end_with_it() -> None:
    # Or we would wait for the output that they have inherited, longer than `run` lets us.
    assert run("child") == (0, ["kept back registered by the program", ""], "")


def test_a_process_that_fails_ends_as_ever() -> None:
    assert run("refuse") == (1, ["registered by the program", "taken apart", ""], "no videos\n")


def test_what_an_import_makes_is_not_searched_while_its_program_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_program.py").write_text("import gc\nwas_searching = gc.isenabled()\n")
    monkeypatch.syspath_prepend(tmp_path)
    with imported("slow_program") as program:
        cycle = type("Engine", (), {})()
        cycle.itself, seen = cycle, weakref.ref(cycle)
        del cycle
        assert (program.was_searching, gc.isenabled()) == (False, True)
        assert gc.get_freeze_count() > 1000
    assert (gc.get_freeze_count(), seen()) == (0, None)
    with pytest.raises(ModuleNotFoundError), imported("no_such_program"):
        pass
    assert (gc.isenabled(), gc.get_freeze_count()) == (True, 0)
