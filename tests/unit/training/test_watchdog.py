"""What one process can show of the watchdog; tests/distributed/test_watchdog.py has the rest."""

import queue
import threading

import pytest

from magvit_scale.training import watchdog as module
from magvit_scale.training.watchdog import AwakeClock, Watchdog


def alone(**limits: float) -> Watchdog:
    return Watchdog(0, 1, broadcast=lambda number: pytest.fail("a lone rank has nobody to tell"), **limits)


def test_a_lone_rank_runs_without_a_network_and_leaves_no_thread() -> None:
    before = threading.active_count()
    with alone() as watchdog:
        watchdog.progress(0, "step")
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_the_host_hears_of_the_last_to_leave_without_waiting_for_a_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    port: queue.Queue[int] = queue.Queue()
    host = Watchdog(0, 2, broadcast=lambda number: port.put(number) or number, dead_after_s=6000.0)
    guest = Watchdog(1, 2, broadcast=lambda _: port.get(), dead_after_s=6000.0)
    host.__enter__()
    guest.__enter__()
    leaving = threading.Thread(target=host.__exit__, args=(None, None, None), daemon=True)
    leaving.start()
    leaving.join(0.5)
    assert leaving.is_alive()
    guest.__exit__(None, None, None)
    leaving.join(50.0)  # a beat is 100 s
    assert not leaving.is_alive()


def test_an_error_inside_comes_out_as_it_was() -> None:
    error = RuntimeError("no gloo without nccl")
    with pytest.raises(RuntimeError) as caught, alone() as watchdog, watchdog.explains_lost_peers():
        raise error
    assert caught.value is error


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("gloo"), KeyboardInterrupt()])
def test_only_an_error_of_communication_waits_for_an_explanation(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda seconds: pytest.fail("it waits"))
    watchdog = Watchdog(0, 2, broadcast=lambda number: number)
    with pytest.raises(type(error)), watchdog.explains_lost_peers():
        raise error


def test_an_error_of_communication_waits_for_two_thirds_of_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waited.append)
    watchdog = Watchdog(0, 2, broadcast=lambda number: number, dead_after_s=60.0)
    with pytest.raises(RuntimeError, match="closed by peer"), watchdog.explains_lost_peers():
        raise RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    assert waited == [40.0]


def test_time_asleep_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 101.0, 5000.0, 5001.5])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(times))
    clock = AwakeClock(longest_tick_s=2.0)
    assert [clock.tick(), clock.tick(), clock.tick()] == [1.0, 3.0, 4.5]
