"""Commands of SLURM that answer from files, where there is no SLURM."""

from pathlib import Path

SCRIPTS = {
    "srun": "",
    "sbatch": 'n=$(cat ../next); echo $((n + 1)) > ../next; echo "Submitted batch job $n"',
    "squeue": """
[ -e ../down ] && { echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }
[ -s ../queue ] || { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }
cat ../queue""",
    "scancel": """
for id in "$@"; do
  case $id in
    --signal=*) asked=yes ;;
    *) [ "$asked" ] && sed -i "s/^$id|RUNNING/$id|COMPLETED/" ../queue || sed -i "/^$id|/d" ../queue ;;
  esac
done""",
    "scontrol": 'printf "node7\\nnode8\\n"',
}


class FakeSlurm:
    """Jobs are numbered from 41 on; what runs is what a test says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.parent
        folder.mkdir()
        (self.folder / "next").write_text("41")
        (self.folder / "queue").touch()
        for name, body in SCRIPTS.items():
            script = folder / name
            script.write_text(f'#!/bin/bash\ncd {folder}\necho "{name} $*" >> ../calls\n{body}\n')
            script.chmod(0o755)

    def queue(self, *lines: str) -> None:
        """What squeue says: id|state|reason|elapsed|limit|start|nodes."""
        (self.folder / "queue").write_text("".join(f"{line}\n" for line in lines))

    def go_down(self) -> None:
        (self.folder / "down").touch()

    def calls(self, name: str) -> list[str]:
        """Arguments of every call of a command."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} ")]
