"""A SLURM cluster of several nodes on this machine, whose power the tests can cut."""

import os
import re
import subprocess
from collections.abc import Collection
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.debian import SEARCH_PATH
from tests.slurm.cluster_config import FREEZER, JOBS_PER_CLUSTER, ClusterConfig, random_first_job_id
from tests.slurm.processes import Daemon, Machine, wait_until

BECOME = 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec "$@"'
IN_SERVICE = {"idle", "mixed", "allocated", "completing"}
MAX_PATH = 60


class Cluster:
    """munged, slurmctld and one slurmd per node, all as root; `node1` and so on, 8 CPUs and 64000 MB each.

    A node has a name, an /etc/hosts and processes of its own; it shares the files of this machine. There is no
    accounting: `squeue` and `scontrol` know a job until five minutes after its end, `sacct` knows none.
    Partition `high` preempts `batch`, the default, whose jobs are requeued.

    Args:
        folder: a new or empty folder, at most 60 characters.
        num_nodes: at least 1.
        gpus_per_node: GPUs that jobs can ask for; there is nothing behind them.
        sends_user_signal: preemption sends a job the signal of its --signal at once, not only SIGTERM.
    """

    def __init__(self, folder: Path, num_nodes: int, *, gpus_per_node: int = 0, sends_user_signal: bool = True) -> None:
        if len(str(folder)) > MAX_PATH:
            raise ValueError(f"found {folder}, expected at most {MAX_PATH} characters: sockets lie in it")
        self.folder = folder
        self.nodes = [f"node{number}" for number in range(1, num_nodes + 1)]
        self.config = ClusterConfig(
            folder=folder,
            nodes=self.nodes,
            gpus_per_node=gpus_per_node,
            sends_user_signal=sends_user_signal,
            first_job_id=random_first_job_id(),
        )
        self._daemons: dict[str, Daemon] = {}

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which SLURM's commands find this cluster."""
        return {"SLURM_CONF": str(self.config.slurm_conf)}

    def start(self) -> None:
        """Returns when every node takes jobs; on an error nothing is left running.

        Raises:
            TimeoutError: a daemon or a node does not come up; with the end of its log.
        """
        self.config.write()
        with ExitStack() as on_an_error:
            on_an_error.callback(self.stop)
            self._start_munge()
            self._start_controller()
            for name in self.nodes:
                self._start_node(name)
            self._wait_for_nodes(self.nodes)
            on_an_error.pop_all()

    def stop(self) -> None:
        """Ends every process of the cluster, jobs included; the folder with the logs stays."""
        while self._daemons:
            self._daemons.popitem()[1].kill()
        self._remove_cgroups()

    def kill_node(self, name: str) -> None:
        """Power failure of a node: slurmd, slurmstepd and all tasks are gone at once; SLURM is not told."""
        self._daemons.pop(name).kill()

    def restore_node(self, name: str) -> None:
        """Switches a dead node on again; returns when it takes jobs. Nothing happens to a living one."""
        if self._is_on(name):
            return
        # A node that SLURM still believes in would count as back before it is.
        self.run("scontrol", "update", f"nodename={name}", "state=down", "reason=no power")
        self._start_node(name)
        self._wait_for_nodes([name])

    def restart_controller(self) -> None:
        """SIGKILL of slurmctld, which then is started again; returns when it answers.

        What changed in the last seconds may be forgotten, see `settle`.
        """
        self._daemons.pop("controller").kill()
        self._start_controller()

    def settle(self, job_id: str) -> None:
        """Returns when the controller has saved the job's present state, so that a restart does not forget it."""
        mark = f"settled {os.urandom(8).hex()}"
        self.run("scontrol", "update", f"jobid={job_id}", f"admincomment={mark}")
        saved = self.folder / "state/job_state"
        is_saved = lambda: saved.exists() and mark.encode() in saved.read_bytes()  # noqa: E731
        wait_until(f"job {job_id} in {saved}", is_saved, 30, self._log("controller"))

    def reset(self) -> None:
        """The cluster as after `start`: everything runs, no job is left."""
        if not self._is_on("controller"):
            self._start_controller()
        for name in self.nodes:
            self.restore_node(name)
        for job_id in self.jobs():
            # At once, where a mere scancel would give the job its KillWait.
            self.run("scancel", "--full", "--signal=KILL", job_id, check=False)
            self.run("scancel", job_id, check=False)
        wait_until("the end of all jobs", lambda: not self.jobs(), 60, self._log("controller"))
        self._wait_for_nodes(self.nodes)

    def run(self, *command: str, check: bool = True) -> str:
        """Runs a command as on a login node.

        Returns:
            What it wrote on stdout, without blanks at the ends.

        Raises:
            RuntimeError: it ended otherwise than with 0, and `check`; with what it wrote.
            subprocess.TimeoutExpired: it took more than two minutes, and is killed.
        """
        answer = subprocess.run(
            self._on("login", *command), env=self._variables(), capture_output=True, text=True, timeout=120
        )
        if check and answer.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {answer.returncode}: {answer.stdout}{answer.stderr}")
        return answer.stdout.strip()

    def run_on(self, name: str, *command: str) -> None:
        """Runs a command with a node's own mounts."""
        machine = self._daemons[name]
        assert isinstance(machine, Machine)
        subprocess.run(["nsenter", f"--target={machine.pid}", "--mount", *command], check=True)

    def jobs(self) -> list[str]:
        """Ids of all jobs that wait, run or are being ended."""
        return self.run("squeue", "--noheader", "--format=%A").split()

    def show(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` says, by its own names: JobState, Restarts, NodeList, StdOut...

        Args:
            job_id: one job; of an array one task, as ARRAY_INDEX.
        """
        text = self.run("scontrol", "--oneliner", "show", "job", job_id)
        # A value may have blanks in it; a name begins with a capital letter and ends at the first `=`.
        return dict(re.findall(r"(?:^| )([A-Z][\w:/]*)=(.*?)(?= [A-Z][\w:/]*=|$)", text))

    def wait(self, job_id: str, states: Collection[str], seconds: float = 60) -> dict[str, str]:
        """Waits until the job is in one of the states, and returns what `show` said then.

        Raises:
            TimeoutError: it is not in time; with the state that it is in.
        """
        seen: dict[str, str] = {}

        def is_there() -> bool:
            seen.update(self.show(job_id))
            return seen["JobState"] in states

        try:
            wait_until(f"job {job_id} in {states}", is_there, seconds, self._log("controller"))
        except TimeoutError as error:
            raise TimeoutError(f"job {job_id} is {seen['JobState']} ({seen['Reason']}): {error}") from None
        return seen

    def _is_on(self, name: str) -> bool:
        return name in self._daemons and self._daemons[name].is_alive()

    def _start_munge(self) -> None:
        socket, log = self.config.munge_socket, self._log("munged")
        files = [f"--socket={socket}", f"--key-file={self.config.munge_key}", f"--log-file={log}"]
        files += [f"--pid-file={self.folder}/run/munged.pid", f"--seed-file={self.folder}/run/munged.seed"]
        # Forced, as it would refuse a folder under /tmp, where everybody may write.
        self._daemons["munged"] = Daemon(["munged", "--foreground", "--force", *files], log, self._variables())
        wait_until("munged", socket.exists, 10, log)

    def _start_controller(self) -> None:
        self._start_machine("controller", "slurmctld", "-D")
        is_up = lambda: " is UP" in self.run("scontrol", "ping", check=False)  # noqa: E731
        wait_until("slurmctld", is_up, 30, self._log("controller"))

    def _start_node(self, name: str) -> None:
        (self.folder / "spool" / name).mkdir(exist_ok=True)
        self._start_machine(name, "slurmd", "-D", "-N", name)

    def _start_machine(self, name: str, *command: str) -> None:
        own_processes = ["--pid", "--fork", "--mount-proc", "--kill-child"]
        # The first process of a machine must collect orphans, which SLURM's daemons do not; tini ends with its daemon.
        machine = self._on(name, "tini", "--", *command, options=own_processes)
        self._daemons[name] = Machine(machine, self._log(name), self._variables())

    def _wait_for_nodes(self, names: Collection[str]) -> None:
        def are_in_service() -> bool:
            # A star behind a state: the node does not answer.
            lines = self.run("sinfo", "--noheader", "--Node", f"--nodes={','.join(names)}", "--format=%T").split()
            return bool(lines) and set(lines) <= IN_SERVICE

        wait_until(f"{', '.join(names)} in service", are_in_service, 60, self._log("controller"))

    def _on(self, machine: str, *command: str, options: Collection[str] = ()) -> list[str]:
        """The command that runs a command with a machine's name and the cluster's /etc/hosts."""
        own = ["unshare", "--mount", "--uts", *options]
        return [*own, "sh", "-c", BECOME, machine, str(self.config.hosts), *command]

    def _variables(self) -> dict[str, str]:
        return os.environ | self.environment | {"PATH": SEARCH_PATH}

    def _log(self, name: str) -> Path:
        return self.folder / "log" / f"{name}.out"

    def _remove_cgroups(self) -> None:
        """Removes what SLURM made for our jobs, and the folders above where no other cluster has anything in them."""
        first = self.config.first_job_id
        ours = {f"job_{job_id}" for job_id in range(first, first + JOBS_PER_CLUSTER)}
        for node in [FREEZER / f"slurm_{name}" for name in self.nodes]:
            for user in node.glob("uid_*"):
                for job in [folder for folder in user.iterdir() if folder.name in ours]:
                    for path, _, _ in os.walk(job, topdown=False):
                        os.rmdir(path)
                with suppress(OSError):
                    user.rmdir()
            with suppress(OSError):
                node.rmdir()
