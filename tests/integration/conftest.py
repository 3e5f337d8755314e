"""The whole road at toy size, through `main([...])` of every program, once per session and in one process."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep import list_videos, moving_shapes, write_shards
from magvit_scale import generate, inflate, judge, precompute_tokens, report, train_commit, train_vqgan
from magvit_scale.training import distributed
from tests.integration.nursery import Nursery
from tests.integration.tiny_runs import TinyRuns, write_data

LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
STEPS_2D, STEPS_3D, STEPS_COMMIT = 3, 6, 6
ADVERSARIAL_START = 3
NUM_TRAIN, NUM_TEST, NUM_CLASSES = 8, 8, 8

MODEL = ["base_channels=4", "channel_multipliers=[1,1,2]", "num_res_blocks=1", "temporal_downsample=[true,false]",
         "embedding_dim=4", "codebook_size=32", "num_groups=2"]  # fmt: skip
CLIPS = ["clips.size_px=32", "clips.num_workers=0"]


class Road:
    """Arguments of every program for one folder; a stage's folder has the stage's name."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __getattr__(self, stage: str) -> Path:
        return self.root / stage

    def vqgan_2d(self, folder: Path | None = None) -> list[str]:
        return [*self._vqgan(folder or self.root / "run_2d", 2, STEPS_2D), "clips.num_frames=4", "loss.perceptual=none",
                "loss.adversarial_start=1"]  # fmt: skip

    def vqgan_3d(self, folder: Path | None = None) -> list[str]:
        return [*self._vqgan(folder or self.root / "run_3d", 3, STEPS_3D), "clips.num_frames=8",
                "loss.perceptual=random", f"loss.adversarial_start={ADVERSARIAL_START}",
                f"init={self.inflated}"]  # fmt: skip

    def _vqgan(self, folder: Path, ndim: int, steps: int) -> list[str]:
        run = [f"run.folder={folder}", f"run.steps={steps}", "run.global_batch_size=2", "run.sample_every=3"]
        model = [f"model.{item}" for item in [f"ndim={ndim}", *MODEL]]
        judge = ["discriminator.base_channels=4", "discriminator.channel_multipliers=[2,2,2]"]
        optim = ["optim.learning_rate=1e-3", "optim.warmup_steps=1", "loss.ema_decay=0.5"]
        return [*run, *EVERY, *model, *judge, *optim, *CLIPS, f"clips.shards={self.shards}"]

    def inflate(self) -> list[str]:
        return [f"source={self.run_2d}/export", f"output={self.inflated}", "temporal_downsample=[true,false]",
                "num_frames=8", "size_px=32"]  # fmt: skip

    def tokens(self, split: str) -> list[str]:
        return [f"tokenizer={self.run_3d}/export", f"output={self.root}/tokens/{split}", f"clips.shards={self.shards}",
                f"clips.split={split}", "clips.num_frames=8", "views=2", *CLIPS]  # fmt: skip

    def commit(self, folder: Path | None = None) -> list[str]:
        run = [f"run.folder={folder or self.run_commit}", f"run.steps={STEPS_COMMIT}", "run.global_batch_size=4"]
        data = [f"tokens={self.root}/tokens/train", f"validation_tokens={self.root}/tokens/test"]
        model = ["model.num_layers=1", "model.hidden_size=8", "model.mlp_dim=16", "model.num_heads=2"]
        more = ["model.dropout=0.1", "optim.warmup_steps=1", "run.sample_every=3", f"tokenizer={self.run_3d}/export"]
        return [*run, *EVERY, *data, *model, *more]

    def generate(self) -> list[str]:
        return [*self._models(), f"output={self.generated}", "samples_per_task=1", "clips.num_frames=8",
                f"clips.shards={self.shards}", "clips.split=test", "decoding.num_steps=3", *CLIPS]  # fmt: skip

    def judge(self) -> list[str]:
        tokens = [f"{split}_tokens={self.root}/tokens/{split}" for split in ("train", "test")]
        clips = ["clips.num_frames=8", f"clips.shards={self.shards}", "clips.split=test", *CLIPS, "num_clips=4"]
        return [*self._models(), f"inflated={self.inflated}", *tokens, *clips, f"output={self.judgement}"]

    def _models(self) -> list[str]:
        return [f"tokenizer={self.run_3d}/export", f"transformer={self.run_commit}/export"]

    def report(self, gate: str = "warn") -> list[str]:
        return [str(self.root), f"gate={gate}"]


EVERY = ["run.log_every=1", "run.checkpoint_every=2", "run.keep_checkpoints=2"]


def run_all(road: Road) -> None:
    """Every program of the road, in order, in this process."""
    moving_shapes.main([f"output={road.videos}", "videos_per_class=2", "num_frames=16", "size_px=32"])
    list_videos.main([f"videos={road.videos}", f"output={road.manifest}", "min_frames=8"])
    source = f"manifest={road.manifest}/manifest.jsonl"
    write_shards.main([source, f"output={road.shards}", "size_px=32", "encoding=raw", "videos_per_shard=5"])
    train_vqgan.main(road.vqgan_2d())
    inflate.main(road.inflate())
    train_vqgan.main(road.vqgan_3d())
    for split in ("train", "test"):
        precompute_tokens.main(road.tokens(split))
    train_commit.main(road.commit())
    generate.main(road.generate())
    judge.main(road.judge())
    report.main(road.report())


@pytest.fixture(scope="session")
def road(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Road]:
    """All stages have run."""
    before = {name: os.environ.get(name) for name in LAUNCHER_VARIABLES}
    road = Road(tmp_path_factory.mktemp("road"))
    run_all(road)
    yield road
    distributed.stop()
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Starts runs of several ranks."""
    with Nursery(tmp_path_factory.mktemp("nursery")) as nursery:
        yield nursery


@pytest.fixture(scope="session")
def tiny_runs(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> TinyRuns:
    """Data of both stages, and arguments of runs over them."""
    return write_data(tmp_path_factory.mktemp("tiny"), nursery)


def bytes_of(*folders: Path, without: tuple[str, ...] = ("log.txt", "tensorboard")) -> dict[str, bytes]:
    """Content of all files by path, without what every start adds to."""
    return {str(path): path.read_bytes() for folder in folders for path in sorted(folder.rglob("*"))
            if path.is_file() and not set(without) & set(path.relative_to(folder).parts)}  # fmt: skip
