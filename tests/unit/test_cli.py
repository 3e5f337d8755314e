"""The `magvit` command."""

import subprocess
import sys
from importlib.util import find_spec
from types import ModuleType

import pytest

from magvit_scale import cli
from magvit_scale.config import Refusal


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("magvit_scale.inflate")
    monkeypatch.setitem(sys.modules, "magvit_scale.inflate", module)
    return module


def test_a_verb_gets_the_remaining_arguments(program: ModuleType) -> None:
    seen: list[list[str]] = []
    program.main = seen.append  # type: ignore[attr-defined]
    cli.main(["inflate", "a.yaml", "mode=average"])
    assert seen == [["a.yaml", "mode=average"]]


def test_bad_input_is_one_line_with_the_verb_in_front(program: ModuleType) -> None:
    def refuse(argv: list[str]) -> None:
        raise Refusal(f"found {argv[0]}, expected b.yaml; give it")

    program.main = refuse  # type: ignore[attr-defined]
    with pytest.raises(SystemExit) as end:
        cli.main(["inflate", "a.yaml"])
    assert end.value.code == "magvit inflate: found a.yaml, expected b.yaml; give it"


def test_a_defect_keeps_its_traceback(program: ModuleType) -> None:
    program.main = lambda argv: [][0]  # type: ignore[attr-defined]
    with pytest.raises(IndexError):
        cli.main(["inflate"])


@pytest.mark.parametrize(
    ("verb", "hint"),
    [
        ("train_vqgan", "did you mean train-vqgan"),
        ("evalute", "did you mean evaluate?"),
        (
            "xyz",
            f"the verbs are {', '.join(cli.VERBS)}",
        ),
    ],
)
def test_an_unknown_verb_is_one_line_and_status_2(verb: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([verb])
    err = capsys.readouterr().err
    assert end.value.code == 2
    assert err.startswith(f"magvit: no verb {verb!r}; {hint}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_lists_every_verb(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(argv)
    out = capsys.readouterr().out
    assert all(f"\n  {verb} " in out for verb in cli.VERBS)


def test_every_verb_has_its_program() -> None:
    assert [verb for verb, (module, _) in cli.VERBS.items() if find_spec(module) is None] == []


def test_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "version", lambda name: {"magvit_scale": "1.2.3"}[name])
    cli.main(["--version"])
    assert capsys.readouterr().out == "magvit_scale 1.2.3\n"


RANK = """
import subprocess
import sys
from magvit_scale import cli

class Held:
    def __del__(self):
        print("taken apart")

held = Held()
cli.main = lambda: sys.exit("no videos") if "refuse" in sys.argv else print("done")
cli.command()
"""


@pytest.mark.parametrize(("argument", "said", "status"), [("", "done\n", 0), ("refuse", "taken apart\n", 1)])
def test_a_program_that_has_done_its_work_is_not_taken_apart(argument: str, said: str, status: int) -> None:
    """Python's end has aborted finished ranks, see `magvit_scale.lifetime`."""
    ended = subprocess.run([sys.executable, "-c", RANK, argument], capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.returncode) == (said, status)
