"""Requests to stop: what is remembered, who is asked to end the process, and what children make of signals."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from magvit_scale.training.signals import SIGNALS, StopRequest

REPOSITORY = Path(__file__).resolve().parents[3]


def start(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.unit.training.stopped", *arguments]
    return subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True, text=True, stdout=subprocess.PIPE)


def run(*arguments: str) -> tuple[list[str], int]:
    process = start(*arguments)
    said, _ = process.communicate(timeout=60)
    return said.splitlines(), process.returncode


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_remembered_and_nothing_else(number: signal.Signals) -> None:
    with StopRequest() as stop:
        assert not stop.is_requested
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.is_requested
        assert stop.received == [number, signal.SIGUSR1]
        assert stop.describe() == number.name


def test_afterwards_the_former_handlers_are_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    former = signal.signal(signal.SIGUSR2, lambda number, frame: calls.append(number))
    try:
        before = [signal.getsignal(number) for number in SIGNALS]
        with StopRequest():
            os.kill(os.getpid(), signal.SIGUSR2)
        assert calls == []
        assert [signal.getsignal(number) for number in SIGNALS] == before
        os.kill(os.getpid(), signal.SIGUSR2)
        assert calls == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, former)


def test_it_belongs_to_the_main_thread() -> None:
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            StopRequest().__enter__()
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])


@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_ends_with_75_after_it_has_saved(number: signal.Signals) -> None:
    process = start("alone")
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert (said, process.returncode) == (f"saved after {number.name}\n", 75)


@pytest.mark.parametrize("is_in_a_thread", [False, True])
def test_a_child_ignores_what_is_meant_for_its_parent_and_so_do_the_programs_it_starts(is_in_a_thread: bool) -> None:
    # In a process of its own: this one may have grown too large to be forked.
    assert run("forking", str(is_in_a_thread)) == (["child 0"], 0)


def test_signals_to_the_whole_group_leave_workers_at_work_and_only_the_parent_ends_them() -> None:
    process = start("with_workers")
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3
    for number in SIGNALS:
        os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=60)
    assert said.splitlines() == ["batches 999", "sleeper True", "sleeper False"]
    assert process.returncode == 75
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
