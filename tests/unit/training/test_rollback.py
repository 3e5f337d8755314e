"""Rollbacks of a run folder: which checkpoint, which data, and what a kill leaves."""

from pathlib import Path

from magvit_scale.training.rollback import Rollback, choose_checkpoint, parse, record, skipped_batches, text


def test_rollbacks_are_kept_in_their_order(tmp_path: Path) -> None:
    assert parse(text(tmp_path)) == []
    first, second = Rollback("loss_spike", 1020, 500), Rollback("non_finite", 601, 500)
    record(tmp_path, first)
    (tmp_path / "rollbacks.jsonl.tmp").write_text('{"rule": "half')
    record(tmp_path, second)
    assert parse(text(tmp_path)) == [first, second]
    assert [path.name for path in tmp_path.iterdir()] == ["rollbacks.jsonl"]


def test_no_batch_that_met_trouble_is_met_again() -> None:
    """Steps 0 to 1019, back to 500, on to 600 where step 601 is not finite, back to 500 again."""
    attempts = [(0, 1020), (500, 601), (500, 700)]
    rollbacks: list[Rollback] = []
    seen: list[int] = []
    for (start, end), (resumed, _) in zip(attempts, [*attempts[1:], (0, 0)], strict=True):
        seen += [step + skipped_batches(rollbacks) for step in range(start, end)]
        rollbacks.append(Rollback("r", found=end, resumed=resumed))
    assert seen == list(range(1020 + 101 + 200))


def test_the_newest_checkpoint_older_than_the_trouble_is_chosen() -> None:
    assert choose_checkpoint([500, 1500, 1000], since=1020) == 1000
    assert choose_checkpoint([500, 1000], since=1000) == 500
    assert choose_checkpoint([500, 1000], since=500) is None
    assert choose_checkpoint([], since=500) is None
