"""The files of a cluster of SLURM 22.05, that of Debian 12: all on 127.0.0.1, short timers, jobs that are requeued."""

import os
import random
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FREEZER = Path("/sys/fs/cgroup/freezer")
PORTS = range(10_000, 20_000)
"""Below those that the system hands out and those at which ranks meet."""
JOBS_PER_CLUSTER = 1000
FOLDERS = ("etc", "run", "log", "state", "spool", "dev")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """What a cluster's files say.

    Args:
        folder: absolute, at most 60 characters (sockets lie in it), only this cluster's.
        nodes: names of the nodes.
        gpus_per_node: GPUs that jobs can ask for; devices without use.
        sends_user_signal: preemption sends a job the signal of its --signal at once, not only SIGTERM.
        first_job_id: job ids name cgroups, and ports follow from them; clusters on one machine must not share any.
    """

    folder: Path
    nodes: Sequence[str]
    gpus_per_node: int
    sends_user_signal: bool
    first_job_id: int

    @property
    def slurm_conf(self) -> Path:
        return self.folder / "etc/slurm.conf"

    @property
    def hosts(self) -> Path:
        return self.folder / "etc/hosts"

    @property
    def munge_socket(self) -> Path:
        return self.folder / "run/munge.sock"

    @property
    def munge_key(self) -> Path:
        return self.folder / "etc/munge.key"

    def write(self) -> None:
        """Writes all files; the folder must not have been written before."""
        for name in FOLDERS:
            (self.folder / name).mkdir(parents=True)
        self.munge_key.touch(mode=0o600)
        self.munge_key.write_bytes(os.urandom(1024))
        # Daemons listen on the address of their own name and answer to the address that a call came from. On loopback
        # that is always 127.0.0.1, so every machine has this one address.
        self.hosts.write_text(f"127.0.0.1 localhost controller login {' '.join(self.nodes)}\n")
        (self.folder / "etc/cgroup.conf").write_text("CgroupAutomount=no\nCgroupPlugin=cgroup/v1\n")
        (self.folder / "etc/gres.conf").write_text("\n".join(["AutoDetect=off", *self._make_devices(), ""]))
        settings = {**self._daemons(), **TIMERS, **self._scheduling()}
        lines = [f"{name}={value}" for name, value in settings.items()]
        self.slurm_conf.write_text("\n".join([*lines, *self._machines(), ""]))

    def _daemons(self) -> dict[str, str]:
        return {
            "ClusterName": "test",
            "SlurmctldHost": "controller(127.0.0.1)",
            "SlurmUser": "root",
            "CommunicationParameters": "NoInAddrAny,NoCtldInAddrAny",
            # cred_expire is also how long a requeued job waits; 120 s by default.
            "AuthInfo": f"socket={self.munge_socket},cred_expire=5",
            "StateSaveLocation": f"{self.folder}/state",
            "SlurmdSpoolDir": f"{self.folder}/spool/%n",
            "SlurmctldPidFile": f"{self.folder}/run/slurmctld.pid",
            "SlurmdPidFile": f"{self.folder}/run/%n.pid",
            # With times, which the same lines lack in what the daemons write to their .out files beside these.
            "SlurmctldLogFile": f"{self.folder}/log/controller.log",
            "SlurmdLogFile": f"{self.folder}/log/%n.log",
            # As on nearly all clusters only a job's tasks get its signals; without a freezer their children do, too.
            "ProctrackType": "proctrack/cgroup" if has_freezer() else "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "AccountingStorageType": "accounting_storage/none",
            "MpiDefault": "none",
            "MailProg": "/bin/true",
        }

    def _scheduling(self) -> dict[str, str]:
        signal = {"SlurmctldParameters": "preempt_send_user_signal"} if self.sends_user_signal else {}
        return {
            "SchedulerParameters": "batch_sched_delay=0,sched_interval=1,bf_interval=1,bf_resolution=1",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_CPU_Memory",
            "SlurmdParameters": "config_overrides",  # more processors and memory than there are
            "DefMemPerCPU": "16",
            "GresTypes": "gpu",
            "FirstJobId": str(self.first_job_id),
            "JobRequeue": "1",
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
            **signal,
        }

    def _machines(self) -> list[str]:
        controller, *ports = free_ports(1 + len(self.nodes))
        gpus = f" Gres=gpu:{self.gpus_per_node}" if self.gpus_per_node else ""
        nodes = [
            f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs=8 RealMemory=64000{gpus}"
            for name, port in zip(self.nodes, ports, strict=True)
        ]
        common = "Nodes=ALL MaxTime=INFINITE DefaultTime=30"
        return [
            f"SlurmctldPort={controller}",
            *nodes,
            f"PartitionName=batch {common} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=10",
            f"PartitionName=high {common} PriorityTier=100 PreemptMode=OFF",
        ]

    def _make_devices(self) -> list[str]:
        """SLURM numbers GPUs by device files, and takes any that is a device: copies of /dev/null."""
        devices = [self.folder / f"dev/nvidia{index}" for index in range(self.gpus_per_node)]
        for device in devices:
            os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        return [f"NodeName={','.join(self.nodes)} Name=gpu File={device}" for device in devices]


TIMERS = {
    "SlurmdTimeout": "10",  # a silent node is taken for dead after so long
    "SlurmctldTimeout": "10",
    "MessageTimeout": "5",
    "TCPTimeout": "2",
    "KillWait": "5",  # from SIGTERM to SIGKILL
    "BatchStartTimeout": "20",
    "InactiveLimit": "0",
    "WaitTime": "0",
    "MinJobAge": "300",  # so long a finished job can be asked about
    "ReturnToService": "2",  # a dead node is back as soon as it reports
}


def has_freezer() -> bool:
    """Whether SLURM can keep the processes of a job together in a cgroup of version 1."""
    return os.access(FREEZER / "cgroup.procs", os.W_OK)


def random_first_job_id() -> int:
    return random.SystemRandom().randrange(1, 60_000) * JOBS_PER_CLUSTER


def free_ports(number: int) -> list[int]:
    """TCP ports of 127.0.0.1 on which nobody listens now, each once."""
    return [port for port in random.SystemRandom().sample(PORTS, 20 * number + 100) if _is_free(port)][:number]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
