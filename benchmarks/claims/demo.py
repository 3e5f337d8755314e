"""Settings of the claims' experiments, and the finished `make demo` that is their input."""

from dataclasses import dataclass
from pathlib import Path

from magvit_scale.config import Refusal, Task


@dataclass(frozen=True, kw_only=True)
class ClaimsConfig:
    """python -m benchmarks.claims.NAME: a finished `make demo` -> the figures of one claim of the paper."""

    root: str = "runs/demo"
    """Run folder of a finished `make demo`, which is only read."""
    output: str = "runs/claims"
    """Receives a JSON for every point, which is then not computed again, and the runs while they train."""
    results: str = "benchmarks/results/claims"
    """Folder that receives NAME.json."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """run.seed of the stage under test, and of the sampling; data and what comes before the stage are the same."""
    tasks: tuple[Task, ...] = ("FP", "OPC", "IPC", "CG")
    """Trained by a multi-task transformer and asked of every one: prediction, outpainting, inpainting, generation."""
    vqgan_steps: int = 200
    commit_steps: int = 180
    examine_every: int = 25
    """Steps of the 3D stage between two looks at held-out clips."""
    num_clips: int = 96
    """Held-out clips that are generated for a task."""
    decoding_steps: tuple[int, ...] = (1, 2, 4, 7, 12, 24)

    def __post_init__(self) -> None:
        """Refuses what gives no spread."""
        if len(set(self.seeds)) < 2:
            raise Refusal(f"seeds={list(self.seeds)}: a spread needs two different ones or more")


@dataclass(frozen=True)
class Demo:
    """Folders of a finished demo."""

    root: Path

    @property
    def shards(self) -> Path:
        """Clip shards."""
        return self.root / "shards"

    @property
    def frames_model(self) -> Path:
        """The 2D VQGAN."""
        return self.root / "vqgan_2d" / "export"

    @property
    def tokenizer(self) -> Path:
        """The 3D VQGAN."""
        return self.root / "vqgan_3d" / "export"

    @property
    def transformer(self) -> Path:
        """That of all ten tasks."""
        return self.root / "commit" / "export"

    def tokens(self, split: str) -> Path:
        """Token shards."""
        return self.root / "tokens" / split


def open_demo(root: str) -> Demo:
    """The demo in a folder.

    Raises:
        Refusal: it is not there or not finished.
    """
    demo = Demo(Path(root))
    files = [folder / "config.json" for folder in (demo.frames_model, demo.tokenizer, demo.transformer)]
    files += [folder / "dataset.json" for folder in (demo.shards, demo.tokens("train"), demo.tokens("test"))]
    for path in files:
        if not path.is_file():
            raise Refusal(f"{path}: not there; expected a finished demo in {root}, run `make demo ROOT={root}` first")
    return demo
