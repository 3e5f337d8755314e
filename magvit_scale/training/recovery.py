"""The ways back of a run: to its newest checkpoint after a restart, to an older one after trouble."""

import shutil
from collections.abc import Sequence

from magvit_scale.config import Refusal
from magvit_scale.files import write_text
from magvit_scale.training import checkpoint, distributed, rollback
from magvit_scale.training.health import Finding, Health
from magvit_scale.training.retention import Retention, is_complete, latest, newest_first, prune
from magvit_scale.training.run import End, Run
from magvit_scale.training.tracking import Tracker


def resume(run: Run) -> int:
    """Fills the state from the newest complete checkpoint; returns the steps completed. Collective."""
    newest = latest(run.folder / "checkpoints")
    step = distributed.tell_number(checkpoint.step_of(newest) if newest else 0)
    if newest is None or checkpoint.step_of(newest) != step:
        if step:
            raise Refusal(f"{run.folder}: rank 0 sees a checkpoint of step {step}, this rank none; share the folder")
        return 0
    about = checkpoint.about(newest)
    if about["data"] != run.work.data:
        raise Refusal(
            f"{newest} was trained on other data ({about['data'][:12]}, now {run.work.data[:12]}); give back the data "
            "set as it was, or another run.folder"
        )
    checkpoint.load(newest, run.work.state)
    if run.ranks.is_main:
        # A kill may have come between the newest one and the end of those that it replaces.
        prune(run.folder / "checkpoints", Retention.of(run.config.run))
    return step


def history(run: Run, tracker: Tracker | None, start: int) -> tuple[Health, int]:
    """What was logged and found before this start; and how many batches were left out. Collective."""
    health = Health(run.config.health)
    health.replay(distributed.tell(tracker.text() if tracker else "").splitlines(), until=start)
    rollbacks = rollback.parse(distributed.tell(rollback.text(run.folder) if tracker else ""))
    return health, rollback.skipped_batches(rollbacks)


def act(run: Run, found: Sequence[Finding], tracker: Tracker | None) -> End:
    """Does what the rules say: a line in the log, the end, or the way back. Collective.

    Raises:
        Refusal: a rule stops the run, or there is no way back.
    """
    if tracker and found:
        tracker.note(*(finding.words for finding in found))
    if stops := [finding for finding in found if finding.action == "stop"]:
        raise Refusal(stops[0].words)
    back = [finding for finding in found if finding.action == "rollback"]
    if not back:
        return "done"
    run.writer.wait()
    distributed.barrier()
    if obstacle := distributed.tell(_roll_back(run, back[0]) if tracker else ""):
        raise Refusal(f"{back[0].words}; {obstacle}")
    return "rolled back"


def _roll_back(run: Run, finding: Finding) -> str:
    """Forgets everything since the newest checkpoint older than the trouble; returns what is in the way of it. Main
    rank only.
    """
    whole = {checkpoint.step_of(p): p for p in newest_first(run.folder / "checkpoints") if is_complete(p)}
    target = rollback.choose_checkpoint(list(whole), finding.since)
    made = len(rollback.parse(rollback.text(run.folder)))
    if target is None:
        return "no checkpoint is older than the trouble"
    if made >= run.config.health.max_rollbacks:
        return f"{made} rollbacks were made, and health.max_rollbacks allows no more"
    for step, path in whole.items():
        if step > target:
            shutil.rmtree(path)
    write_text(run.folder / "checkpoints" / "latest", whole[target].name)
    rollback.record(run.folder, rollback.Rollback(finding.rule, finding.step, target))
    return ""
