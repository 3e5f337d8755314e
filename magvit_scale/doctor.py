"""What would stop a run, before step 0: `magvit doctor [folder=DIR] [shards=DIR]`, alone or on every rank of a cluster.

Each rank looks at its device, the shared folder and the shards, all of them at the network; rank 0 prints the table.
The ranks meet in a store of their own first, so that one that never comes is named and nobody waits for ever.
"""

import sys
from collections.abc import Mapping, Sequence

from magvit_scale.config import DoctorConfig, Refusal, parse
from magvit_scale.data.first_sample import is_token_shards, read_first_sample, words_on_few_shards
from magvit_scale.training.examination import beacon, examine_folder, examine_group, examine_machine
from magvit_scale.training.meeting import Meeting
from magvit_scale.training.rank_report import RankReport, assemble, summarize


def main(argv: Sequence[str] | None = None) -> None:
    """Examines; ends with status 1 on every rank where any rank has a problem. Every rank must call."""
    config = parse(DoctorConfig, argv)
    report = examine_machine()
    report.keep(config.reports)
    try:
        is_well = examine_together(config, report)
    except Refusal as refusal:
        report.problems.append(str(refusal))
        report.keep(config.reports)
        sys.stderr.write(f"magvit doctor: {report.describe(str(refusal))}\n")
        is_well = False
    if not is_well:
        raise SystemExit(1)


def examine_together(config: DoctorConfig, report: RankReport) -> bool:
    """Every rank must call: completes the report, prints those of all on rank 0; True where no rank has a problem.

    Raises:
        Refusal: rank 0 cannot be reached, or is gone.
    """
    meeting = Meeting(report.rank, report.world_size, config.patience_s)
    report.compare(RankReport.load(meeting.tell("first", report.dump())))
    arrived = meeting.gather("arrived", report.dump(), range(report.world_size))
    if meeting.tell("group", "possible" if are_fit(arrived, report.world_size) else "impossible") == "possible":
        examine_group(report, meeting)
    elif meeting.is_host:
        report.warnings.append("all-reduce and clocks were not tried: that takes all ranks, and none with a problem")
    with beacon(config.folder, meeting) as name:
        examine_storage(config, report, name)
        report.is_final = True
        report.keep(config.reports)
        final = meeting.gather("final", report.dump(), arrived)
    return conclude(config, meeting, arrived, final)


def are_fit(arrived: Mapping[int, str], world_size: int) -> bool:
    """Whether all ranks have come, and without a problem: a group would wait for the others, or for their devices."""
    return len(arrived) == world_size and not any(RankReport.load(text).problems for text in arrived.values())


def examine_storage(config: DoctorConfig, report: RankReport, beacon_name: str) -> None:
    """The shared folder and the shards, where they are given, and what rank 0 has to say about the run to come."""
    if config.folder is not None:
        examine_folder(report, config.folder, beacon_name)
    if config.shards is not None:
        examine_shards(config, report, config.shards)
    between, limit = config.minutes_between_checkpoints, config.time_limit_minutes
    if report.rank == 0 and between is not None and limit is not None and between > limit:
        report.warnings.append(
            f"{between:g} minutes between checkpoints, but jobs end after {limit:g}: one that is killed without a "
            "warning loses all; lower run.checkpoint_every or raise resources.time_limit_minutes"
        )


def examine_shards(config: DoctorConfig, report: RankReport, shards: str) -> None:
    """Whether this rank can read them; rank 0 also looks at their number."""
    try:
        report.num_shards = read_first_sample(shards, report.rank)
    except (Refusal, OSError) as error:
        report.problems.append(str(error))
        return
    if report.rank == 0 and not is_token_shards(shards):
        report.warnings += words_on_few_shards(report.num_shards, report.world_size, config.num_workers)


def conclude(config: DoctorConfig, meeting: Meeting, arrived: Mapping[int, str], final: Mapping[int, str]) -> bool:
    """Every rank must call: rank 0 prints all reports and says whether all is well."""
    reports: list[RankReport] = []
    if meeting.is_host:
        reports = assemble(arrived, final, meeting.world_size, config.patience_s, config.reports)
        sys.stdout.write(summarize(reports) + "\n")
    verdict = meeting.tell("verdict", "problems" if any(report.problems for report in reports) else "all well")
    # The host of the store leaves last.
    meeting.gather("left", "", final)
    return verdict == "all well"
