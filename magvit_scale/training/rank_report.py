"""What the examination of one rank found: as JSON, and all of them as a table. No torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from magvit_scale.files import write_json
from magvit_scale.progress import aligned


@dataclass(kw_only=True)
class RankReport:
    """Facts of one rank, null where they were not looked at, and what is wrong with them."""

    rank: int
    world_size: int
    host: str
    problems: list[str] = field(default_factory=list)
    """A run would stop or be wrong; each is one line that says what to do."""
    warnings: list[str] = field(default_factory=list)
    is_final: bool = False
    """False in what a rank writes before it speaks to any other."""
    device: str | None = None
    """Name of the GPU, or of the processor."""
    device_type: str | None = None
    """`cuda` or `cpu`."""
    memory_gb: float | None = None
    """Of the GPU, or of the host where there is none; 10^9 bytes."""
    has_bf16: bool | None = None
    """Whether the device has instructions for bfloat16."""
    versions: dict[str, str] = field(default_factory=dict)
    clock_offset_ms: float | None = None
    """How far this host's clock is ahead of rank 0's."""
    all_reduce_ms: float | None = None
    """Median."""
    all_reduce_gb_per_s: float | None = None
    """Size of the tensor by that time, 10^9 bytes."""
    num_shards: int | None = None

    @staticmethod
    def load(text: str) -> "RankReport":
        """From JSON."""
        return RankReport(**json.loads(text))

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    def keep(self, folder: str | None) -> None:
        """Writes the report into a folder, where one is given; a failure is a problem of the report."""
        if folder is None:
            return
        try:
            write_json(report_path(folder, self.rank), asdict(self))
        except OSError as error:
            problem = f"cannot write its report to {folder}: {error.strerror}; see owner, mode and quota"
            self.problems += [problem] if problem not in self.problems else []

    def compare(self, first: "RankReport") -> None:
        """Notes what is to be the same on all ranks and is not as on rank 0: another Python as a warning only."""
        if self.device_type != first.device_type:
            self.problems.append(
                f"works on a {self.device_type} device, rank 0 on {first.device_type}; see what nvidia-smi says here"
            )
        for name in sorted(self.versions.keys() | first.versions.keys()):
            if (here := self.versions.get(name)) != (there := first.versions.get(name)):
                found = self.warnings if name == "python" else self.problems
                found.append(f"{name} {here}, rank 0 has {there}; give all nodes one environment")

    def describe(self, what: str) -> str:
        """One line about this rank that names it."""
        if self.world_size == 1:
            return f"{self.host}: {what}"
        return f"{self.host} (rank {self.rank}): {what}" if self.host else f"rank {self.rank}: {what}"


def report_path(folder: str | Path, rank: int) -> Path:
    """Where a rank's report lies."""
    return Path(folder, f"rank{rank:05d}.json")


def assemble(
    arrived: Mapping[int, str], final: Mapping[int, str], world_size: int, patience_s: float, folder: str | None
) -> list[RankReport]:
    """The last that is known of every rank, in order of ranks; who did not come or finish has a problem.

    Args:
        arrived: first words by rank.
        final: last words by rank.
        world_size: number of ranks.
        patience_s: how long was waited, for the words.
        folder: of the reports: tells whether an absent rank was started at all, and where.
    """
    reports = {rank: RankReport.load(text) for rank, text in {**arrived, **final}.items()}
    for rank in sorted(set(range(world_size)) - set(final)):
        if rank in arrived:
            problem = f"did not finish in {patience_s:g} s; read its log, and see whether its folder and shards answer"
            reports[rank].problems.append(problem)
        else:
            reports[rank] = _absent(rank, world_size, patience_s, folder)
    return [reports[rank] for rank in range(world_size)]


def _absent(rank: int, world_size: int, patience_s: float, folder: str | None) -> RankReport:
    missed = f"did not come within {patience_s:g} s"
    if folder is not None and (path := report_path(folder, rank)).is_file():
        report = RankReport.load(path.read_text())
        report.problems.append(f"{missed}, though it was started; see whether it may connect to rank 0's node")
        return report
    hint = "" if folder is None else f" and has left no report in {folder}"
    return RankReport(
        rank=rank,
        world_size=world_size,
        host="",
        problems=[f"{missed}{hint}; see whether it was started, read its log"],
    )


def summarize(reports: Sequence[RankReport]) -> str:
    """A table with one line per rank, one line per warning and per problem, and how many there are."""
    versions = ", ".join(f"{name} {version}" for name, version in reports[0].versions.items())
    warnings = [f"warning: {report.describe(line)}" for report in reports for line in report.warnings]
    problems = [report.describe(line) for report in reports for line in report.problems]
    return "\n".join([versions, *_table(reports), *warnings, *problems, _verdict(problems, reports)])


def _verdict(problems: Sequence[str], reports: Sequence[RankReport]) -> str:
    if not problems:
        return "all well"
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    ill = sum(bool(report.problems) for report in reports)
    return count if len(reports) == 1 else f"{count}, on {ill} of {len(reports)} ranks"


def _table(reports: Sequence[RankReport]) -> list[str]:
    """Aligned columns, without those that say nothing of any rank."""
    columns = [column for column in zip(*map(_cells, reports), strict=True) if any(cell for _, cell in column)]
    lines = [[column[0][0] for column in columns]]
    lines += [[column[number][1] or "-" for column in columns] for number in range(len(reports))]
    return aligned(lines)


def _cells(report: RankReport) -> list[tuple[str, str]]:
    """Head and text of every column; empty where nothing is known."""
    return [
        ("rank", str(report.rank)),
        ("host", report.host),
        ("device", report.device or ""),
        ("memory", _text(report.memory_gb, "{:.0f} GB")),
        ("bf16", _text(report.has_bf16, "{}").replace("True", "yes").replace("False", "no")),
        ("clock", _text(report.clock_offset_ms, "{:+.1f} ms")),
        ("all-reduce", _text(report.all_reduce_ms, "{:.2f} ms")),
        ("rate", _text(report.all_reduce_gb_per_s, "{:.2f} GB/s")),
        ("shards", _text(report.num_shards, "{}")),
    ]


def _text(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
