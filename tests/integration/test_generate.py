"""`magvit generate`: what it writes, and that ranks, batches and restarts change nothing in it."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import GenerateConfig, TransformerConfig, load
from magvit_scale.data.shards import load_dataset
from magvit_scale.page.clips import read_samples
from magvit_scale.pipeline import MagvitPipeline
from magvit_scale.video_bytes import decode_mp4
from magvit_scale.vqgan.autoencoder import VQGAN
from tests import tiny_tokens
from tests.integration.conftest import bytes_of
from tests.integration.nursery import Nursery

pytestmark = pytest.mark.distributed
TASKS = ("FP", "OPD", "CG")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder, beside the clip shards in clips/."""
    folder = tmp_path_factory.mktemp("models")
    classes = load_dataset(tiny_tokens.write_clips(folder)).classes
    tiny_tokens.write_tokenizer(folder / "tokenizer")
    torch.manual_seed(0)
    config = TransformerConfig(num_layers=1, hidden_size=16, mlp_dim=16, num_heads=2, codebook_size=32, tasks=TASKS,
                               latent_shape=tiny_tokens.LATENT_SHAPE, num_classes=len(classes))  # fmt: skip
    transformer = CommitTransformer(config)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # else nearly uniform: nothing would depend on anything
    MagvitPipeline(VQGAN.from_pretrained(folder / "tokenizer"), transformer, classes).save_pretrained(folder)
    return folder


def arguments(models: Path, output: Path, *more: str) -> list[str]:
    sizes = [f"clips.num_frames={tiny_tokens.NUM_FRAMES}", f"clips.size_px={tiny_tokens.SIZE_PX}"]
    clips = [f"clips.shards={models}/clips", "clips.split=test", "clips.num_workers=0", *sizes]
    asked = [f"tasks=[{','.join(TASKS)}]", "decoding.num_steps=3", "seed=7", *more]
    return ["generate", f"model={models}", *clips, f"output={output}", *asked]


@pytest.fixture(scope="module")
def alone(models: Path, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """17 samples of every task, from one process."""
    output = tmp_path_factory.mktemp("alone")
    nursery.succeed(arguments(models, output, "samples_per_task=17", "formats=[mp4,webp,png]"), 1)
    return output


def test_every_sample_has_its_files(alone: Path) -> None:
    kinds = [f"_{kind}.{end}" for kind in ("condition", "generated", "real") for end in ("mp4", "webp")]
    samples = [f"{number:04d}{end}" for number in range(17) for end in (*kinds, ".png")]
    for task in TASKS:
        assert sorted(path.name for path in (alone / task).iterdir()) == sorted(
            [*samples, "0000_steps.png", "tokens.npz"]
        )
    assert {path.name for path in alone.iterdir()} == {*TASKS, "config.yaml", "samples.npz"}
    assert load(GenerateConfig, [alone / "config.yaml"]).samples_per_task == 17


def test_samples_for_the_report_are_the_first_sixteen(alone: Path) -> None:
    samples = read_samples(alone / "samples.npz")
    assert (list(samples.tasks), samples.fps) == (list(TASKS), 8)
    for task, shown in samples.tasks.items():
        assert shown.generated.shape == (16, 4, 16, 16, 3)
        assert samples.trajectories[task].clips.shape == (3, 4, 16, 16, 3)
        assert samples.trajectories[task].fixed[-1].all()
        # All steps of one sample are detokenized together, which may round another way.
        assert np.abs(samples.trajectories[task].clips[-1].astype(int) - shown.generated[0]).max() <= 1
        large = decode_mp4((alone / task / "0002_generated.mp4").read_bytes(), 0, 4).astype(int)
        assert np.abs(large[:, 4::8, 4::8] - shown.generated[2]).mean() < 12  # x264 blurs random colours
        grid = np.asarray(Image.open(io.BytesIO((alone / task / "0002.png").read_bytes())))
        pitch = 128 + 4
        for row, clips in enumerate((shown.condition, shown.generated, shown.real)):
            for frame in range(4):
                corner = grid[row * pitch : row * pitch + 128 : 8, frame * pitch : frame * pitch + 128 : 8]
                assert (corner == clips[2, frame]).all()
    assert (samples.tasks["CG"].condition == 128).all()
    assert (samples.tasks["FP"].condition[:, 0] == samples.tasks["FP"].real[:, 0]).all()


def test_tokens_of_all_samples_are_those_of_the_pipeline(models: Path, alone: Path) -> None:
    pipeline, samples = MagvitPipeline.from_pretrained(models), read_samples(alone / "samples.npz")
    for task in TASKS:
        with np.load(alone / task / "tokens.npz", allow_pickle=False) as arrays:
            tokens, seeds, labels = (arrays[name] for name in ("tokens", "seeds", "labels"))
        assert (tokens.shape, tokens.dtype, labels.dtype) == ((17, 2, 8, 8), np.int64, np.int64)
        assert seeds.tolist() == list(range(7, 24))
        assert [pipeline.classes[label] for label in labels[:16]] == samples.tasks[task].names
        clip = torch.from_numpy(samples.tasks[task].real[5]).permute(3, 0, 1, 2) / 255
        made = pipeline(task, condition=clip, label=int(labels[5]), num_steps=3, seed=12)
        assert (made.decoded.tokens[0].reshape(2, 8, 8).numpy() == tokens[5]).all()


def test_ranks_and_batches_change_no_token(models: Path, alone: Path, nursery: Nursery, tmp_path: Path) -> None:
    """Seventeen samples: one rank has nine, in batches of one, the other eight."""
    nursery.succeed(arguments(models, tmp_path, "samples_per_task=17", "batch_size=1"), 2)
    for task in TASKS:
        assert (tmp_path / task / "tokens.npz").read_bytes() == (alone / task / "tokens.npz").read_bytes()
        assert {path.name for path in (tmp_path / task).glob("*.mp4")} == {
            path.name for path in (alone / task).glob("*.mp4")
        }
    with np.load(tmp_path / "samples.npz") as found, np.load(alone / "samples.npz") as expected:
        assert found.files == expected.files
        for name in found.files:
            if found[name].dtype == np.uint8:  # products of another batch size: the last digit of a pixel
                assert np.abs(found[name].astype(int) - expected[name]).max() <= 1
            else:
                assert (found[name] == expected[name]).all()


def test_a_rank_without_samples_still_takes_part(models: Path, alone: Path, nursery: Nursery, tmp_path: Path) -> None:
    nursery.succeed(arguments(models, tmp_path, "samples_per_task=1", "tasks=[OPD]"), 2)
    with np.load(tmp_path / "OPD/tokens.npz") as found, np.load(alone / "OPD/tokens.npz") as expected:
        assert (found["tokens"] == expected["tokens"][:1]).all()


def test_started_again_it_leaves_the_same_bytes_and_no_half_file(
    models: Path, nursery: Nursery, tmp_path: Path
) -> None:
    told = arguments(models, tmp_path, "samples_per_task=2", "num_frames=7", "overlap_frames=2", "tasks=[FP,OPD]")
    nursery.succeed(told, 1)
    before = bytes_of(tmp_path)
    with np.load(tmp_path / "OPD/tokens.npz") as arrays:
        assert arrays["tokens"].shape == (2, 3 * 2, 8, 8)  # windows at 0, 2, 3
    (tmp_path / "OPD/tokens.npz").unlink()
    (tmp_path / "FP/0001_real.mp4").write_bytes(b"half")
    nursery.succeed(told, 1)
    assert bytes_of(tmp_path) == before
