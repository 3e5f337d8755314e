"""What is looked at on every rank before step 0. Findings go into the rank's report; none of them ends the program."""

import os
import platform
import re
import statistics
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from magvit_scale.training import distributed, engines
from magvit_scale.training.launched import complete_environment, node_name
from magvit_scale.training.meeting import Meeting
from magvit_scale.training.rank_report import RankReport
from magvit_scale.training.ranks import Ranks

NUM_REPEATS = 5
NUM_ELEMENTS = 1 << 20
"""Of the float32 tensor that is summed over the ranks: 4 MB, a usual bucket of gradients."""
MAX_CLOCK_OFFSET_MS = 1000.0
NUM_PROBE_BYTES = 1 << 12
MAX_REASON_CHARACTERS = 200


def examine_machine() -> RankReport:
    """This rank's host, device and versions, without a word to any other rank."""
    complete_environment()
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    report = RankReport(rank=rank, world_size=world_size, host=node_name(), versions=_versions())
    if torch.cuda.is_available():
        _examine_gpu(report, int(os.environ["LOCAL_RANK"]))
    else:
        _examine_cpu(report)
    return report


def examine_group(report: RankReport, meeting: Meeting) -> None:
    """Collective over all ranks, which must have met: sums a tensor, compares clocks. Where that fails or takes longer
    than the meeting's patience, the report has a problem.
    """
    # A collective that takes too long is an error here; NCCL's own thread would end the process, and with it the table.
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    try:
        ranks = distributed.start(meeting.store, timedelta(seconds=meeting.patience_s))
        engines.connect()
        _examine_sum(report, ranks)
        _examine_clock(report, ranks)
        # Only a group that works is left: one that does not may wait for ever.
        distributed.stop()
    except RuntimeError as error:
        report.problems.append(
            f"all-reduce failed: {_first_line(error)}; see the other ranks and the network; NCCL_DEBUG=INFO tells more"
        )


@contextmanager
def beacon(folder: str | None, meeting: Meeting) -> Iterator[str]:
    """Every rank must enter: rank 0 keeps a file of a new name in the folder while its block runs.

    Yields:
        the file's name, which is its text too; empty where there is no folder, or rank 0 cannot write there.
    """
    path = Path(folder or "", f".doctor-{uuid.uuid4().hex}")
    is_lit = meeting.is_host and folder is not None and _is_written(path)
    name = meeting.tell("beacon", path.name if is_lit else "")
    try:
        yield name
    finally:
        if is_lit:
            path.unlink(missing_ok=True)


def _is_written(path: Path) -> bool:
    try:
        path.write_text(path.name)
    except OSError:
        return False
    return True


def examine_folder(report: RankReport, folder: str, beacon_name: str) -> None:
    """Whether a folder is the one that rank 0 has, and a file can be written, read back and removed in it."""
    path = Path(folder, f".doctor-{uuid.uuid4().hex}")
    try:
        if beacon_name and Path(folder, beacon_name).read_text() != beacon_name:
            raise OSError(0, "another text")
    except OSError as error:
        report.problems.append(
            f"does not see in {folder} what rank 0 has just written there: {error.strerror}; mount the same file "
            "system at the same path on every node"
        )
        return
    try:
        _write_and_read_back(path)
    except OSError as error:
        report.problems.append(
            f"cannot write to {folder}: {error.strerror}; see that it exists here, its owner and mode, and the quota"
        )


def _write_and_read_back(path: Path) -> None:
    data = os.urandom(NUM_PROBE_BYTES)
    try:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.read_bytes() != data:
            raise OSError(0, "read back other bytes than were written")
    finally:
        path.unlink(missing_ok=True)


def _first_line(error: RuntimeError) -> str:
    """For any terminal: gloo's errors come with pictures."""
    line, *_ = [*str(error).splitlines(), ""]
    return line.encode("ascii", "ignore").decode().strip()[:MAX_REASON_CHARACTERS]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), **{name: _version(name) for name in ("magvit_scale", "torch",
                                                                                      "deepspeed")}}  # fmt: skip
    if torch.cuda.is_available():
        found |= {"cuda": str(torch.version.cuda), "nccl": ".".join(map(str, torch.cuda.nccl.version()))}
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"


def _examine_gpu(report: RankReport, local_rank: int) -> None:
    report.device_type = "cuda"
    if local_rank >= torch.cuda.device_count():
        report.problems.append(
            f"LOCAL_RANK={local_rank}, but this rank sees {torch.cuda.device_count()} GPUs; let every rank see as many "
            "as its node has ranks"
        )
        return
    try:
        facts = torch.cuda.get_device_properties(local_rank)
        with torch.cuda.device(local_rank):
            report.has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    except RuntimeError as error:
        report.problems.append(f"GPU {local_rank} does not answer: {_first_line(error)}; see nvidia-smi here")
        return
    report.device, report.memory_gb = facts.name, facts.total_memory / 1e9
    if not report.has_bf16:
        report.warnings.append("this GPU has no bfloat16; train with run.precision=fp16 or fp32")


def _examine_cpu(report: RankReport) -> None:
    report.device_type = "cpu"
    listing = Path("/proc/cpuinfo")
    facts = listing.read_text() if listing.is_file() else ""
    name = re.search(r"^model name\s*: (.+)$", facts, re.MULTILINE)
    # On a cluster a job has only some of the host's.
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    report.device = f"{name[1] if name else platform.machine()}, {num_cores} cores"
    report.memory_gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    report.has_bf16 = "bf16" in facts if facts else None


def _examine_sum(report: RankReport, ranks: Ranks) -> None:
    own = torch.full((NUM_ELEMENTS,), ranks.rank + 1.0, device=ranks.device)
    expected = ranks.world_size * (ranks.world_size + 1) / 2
    total = distributed.sum_over_ranks(own)
    if not bool((total == expected).all()):
        wrong = int((total != expected).sum())
        report.problems.append(f"all-reduce gave {wrong} wrong sums of {NUM_ELEMENTS}, expected {expected:g}; replace "
                               "this node, or its network card")  # fmt: skip
    if ranks.world_size > 1:
        seconds = statistics.median(_seconds_of_sum(own) for _ in range(NUM_REPEATS))
        report.all_reduce_ms, report.all_reduce_gb_per_s = 1e3 * seconds, own.nbytes / seconds / 1e9


def _seconds_of_sum(own: torch.Tensor) -> float:
    distributed.barrier()
    start = time.perf_counter()
    # Its value is read, so that a GPU has ended.
    float(distributed.sum_over_ranks(own)[0])
    return time.perf_counter() - start


def _examine_clock(report: RankReport, ranks: Ranks) -> None:
    if ranks.world_size == 1:
        return
    offset_ms = 1e3 * statistics.median(_clock_offset_s(ranks) for _ in range(NUM_REPEATS))
    report.clock_offset_ms = offset_ms
    if abs(offset_ms) > MAX_CLOCK_OFFSET_MS:
        report.warnings.append(
            f"its clock is {offset_ms / 1e3:+.1f} s from rank 0's: times in logs and of files mislead; start chrony or "
            "ntpd"
        )


def _clock_offset_s(ranks: Ranks) -> float:
    """How far this rank's clock is ahead of rank 0's, to about the time that a barrier takes."""
    distributed.barrier()
    now = torch.tensor([time.time()], dtype=torch.float64, device=ranks.device)
    times = distributed.all_of(now).tolist()
    return float(times[ranks.rank] - times[0])
