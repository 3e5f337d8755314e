"""Every training run of configs/ takes two real steps, with the overlays that go on top."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep import list_videos, moving_shapes, write_shards
from magvit_scale import generate, inflate, precompute_tokens, train_commit, train_vqgan
from magvit_scale.config import (
    InflateConfig,
    TrainCommitConfig,
    TrainVQGANConfig,
    TransformerConfig,
    load,
)
from magvit_scale.page.clips import read_samples
from magvit_scale.pretrained import load_config
from magvit_scale.training import distributed
from magvit_scale.video import decode
from magvit_scale.vqgan.autoencoder import VQGAN
from tests.integration.conftest import LAUNCHER_VARIABLES
from tests.integration.paper_configs import (
    ROOT,
    commit_config,
    runs,
    vqgan_config,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Clip shards of 16 frames of 32 px, shards of the same without classes, and shards of their frames as images."""
    before = {name: os.environ.get(name) for name in LAUNCHER_VARIABLES}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("paper")
    moving_shapes.main([f"output={folder}/videos", "videos_per_class=2", "num_frames=16", "size_px=32"])
    for path in sorted((folder / "videos").rglob("*.mp4")):
        image = folder / "pictures" / path.parent.name / f"{path.stem}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(decode(path, size_px=32, max_frames=1)[0]).save(image)
        (folder / "loose").mkdir(exist_ok=True)
        shutil.copy(path, folder / "loose")
    for name, source, encoding in (
        ("videos", "folder", "raw"),
        ("loose", "folder", "raw"),
        ("pictures", "images", "jpeg"),
    ):
        listed = folder / f"{name}_list"
        list_videos.main([f"source={source}", f"videos={folder / name}", f"output={listed}"])
        output = [f"output={folder / name}_shards", "size_px=32", f"encoding={encoding}"]
        write_shards.main([f"manifest={listed}/manifest.jsonl", *output])
    yield folder
    distributed.stop()
    torch.set_num_threads(threads)
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def clip_shards(folder: Path, dataset: str) -> Path:
    """Stand-ins for the paper's data: images for ImageNet, videos without classes for BAIR."""
    return folder / {"imagenet": "pictures_shards", "bair": "loose_shards"}.get(dataset, "videos_shards")


def train_tokenizer(folder: Path, run: str, *overlays: str, init: Path | None = None) -> Path:
    """Two steps of a run under configs/vqgan with the debug overlay; its export."""
    output = folder / "-".join([run, *(Path(overlay).stem for overlay in overlays), *(["inflated"] if init else [])])
    if not output.exists():
        shards = clip_shards(folder, run.split("_")[0])
        files = [str(ROOT / file) for file in (f"vqgan/{run}.yaml", *overlays, "vqgan/debug.yaml")]
        changes = [f"run.folder={output}", f"clips.shards={shards}", *([f"init={init}"] if init else [])]
        train_vqgan.main([*files, *changes])
    return output / "export"


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Path:
    return train_tokenizer(folder, "ucf101_3d_base")


@pytest.fixture(scope="module")
def tokens(folder: Path, tokenizer: Path) -> Callable[[str], Path]:
    @cache
    def write(dataset: str) -> Path:
        output = folder / f"{dataset}_tokens"
        files = [str(ROOT / f"precompute/{name}.yaml") for name in (f"{dataset}_base", "debug")]
        clips = f"clips.shards={clip_shards(folder, dataset)}"
        precompute_tokens.main([*files, f"tokenizer={tokenizer}", f"output={output}", clips])
        return output

    return write


def assert_two_steps(export: Path) -> None:
    run = export.parent
    assert (run / "checkpoints/latest").read_text() == "step_00000002"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "optim/learning_rate" in line] == [1, 2]
    assert all(np.isfinite(value) for line in lines for value in line.values())


@pytest.mark.parametrize("run", runs("vqgan"))
def test_two_steps_of_every_tokenizer(folder: Path, run: str) -> None:
    export = train_tokenizer(folder, run)
    assert_two_steps(export)
    paper, found = vqgan_config(run).model, VQGAN.from_pretrained(export).config
    decisions = ("ndim", "channel_multipliers", "temporal_downsample", "padding")
    assert all(getattr(found, key) == getattr(paper, key) for key in decisions)


@pytest.mark.parametrize("run", ["ucf101_3d_base", "bair_2d_large"])
def test_two_steps_with_the_released_codes_choices(folder: Path, run: str) -> None:
    config = load(TrainVQGANConfig, [ROOT / f"vqgan/{run}.yaml", ROOT / "vqgan/official.yaml"])
    assert (config.model.padding, config.loss.lecam_weight, config.loss.perceptual) == ("zeros", 0, "resnet50_logits")
    export = train_tokenizer(folder, run, "vqgan/official.yaml")
    assert_two_steps(export)
    assert VQGAN.from_pretrained(export).config.padding == "zeros"


@pytest.mark.parametrize("mode", ["central", "average"])
def test_two_steps_from_an_inflated_tokenizer(folder: Path, mode: str) -> None:
    source = train_tokenizer(folder, "imagenet_2d_base")
    files = [ROOT / "inflate/imagenet_base.yaml", ROOT / "inflate/average_base.yaml"][: 1 + (mode == "average")]
    inflated = folder / f"inflated_{mode}"
    inflate.main([*map(str, files), f"source={source}", f"output={inflated}", "num_frames=16", "size_px=32"])
    ablation = ["vqgan/ablation/average_base.yaml"] if mode == "average" else []
    paper = load(TrainVQGANConfig, [ROOT / "vqgan/ucf101_3d_base.yaml", *(ROOT / file for file in ablation)])
    assert paper.init == load(InflateConfig, files).output
    export = train_tokenizer(folder, "ucf101_3d_base", *ablation, init=inflated)
    assert_two_steps(export)
    before, after = (VQGAN.from_pretrained(path).encoder.conv_in.weight for path in (inflated, export))
    is_centre_only = bool((before[:, :, [0, 2]] == 0).all())
    assert is_centre_only == (mode == "central")
    # The first update has rate 0; the second moves a weight by at most about the rate, 1e-4.
    assert 0 < (after - before).abs().max() < 3e-4


def test_scratch_is_without_inflation() -> None:
    files = [ROOT / "vqgan/ucf101_3d_base.yaml", ROOT / "vqgan/ablation/scratch.yaml"]
    assert load(TrainVQGANConfig, files).init is None


def train_transformer(folder: Path, tokens: Path, tokenizer: Path, run: str, *overlays: str) -> Path:
    """Two steps of a run under configs/commit with the debug overlay; its export."""
    output = folder / "-".join([run, *(Path(overlay).stem for overlay in overlays)])
    files = [f"commit/{run}.yaml", *overlays, "commit/debug.yaml"]
    given = [f"run.folder={output}", f"tokens={tokens}", f"tokenizer={tokenizer}"]
    if not output.exists():
        train_commit.main([*(str(ROOT / file) for file in files), *given])
    assert_two_steps(output / "export")
    return output / "export"


@pytest.mark.parametrize("run", runs("commit"))
def test_two_steps_of_every_transformer(folder: Path, tokenizer: Path, tokens: Callable[[str], Path], run: str) -> None:
    export = train_transformer(folder, tokens(run.split("_")[0]), tokenizer, run)
    config = load_config(TransformerConfig, export, "CommitTransformer")
    assert (config.multi_task, config.conditioning) == (commit_config(run).model.multi_task, "commit")
    num_classes = 0 if "bair" in run else len(moving_shapes.CLASSES)
    assert (config.latent_shape, config.codebook_size, config.num_classes) == ((4, 4, 4), 32, num_classes)


ABLATIONS = {"latent": ("latent", 1, 1, 1), "prefix": ("prefix", 1, 1, 1), "mask": ("commit", 0, 1, 0),
             "mask_reconstruct": ("commit", 0, 1, 1)}  # fmt: skip
"""Conditioning, and the weights of refine, mask and reconstruct."""


@pytest.mark.parametrize("run", ["bair_fp_base", "bair_mt8_base"])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_two_steps_of_commits_ablations(
    folder: Path, tokenizer: Path, tokens: Callable[[str], Path], ablation: str, run: str
) -> None:
    overlay = f"commit/ablation/{ablation}.yaml"
    config = load(TrainCommitConfig, [ROOT / f"commit/{run}.yaml", ROOT / overlay])
    weights = (config.loss.refine_weight, config.loss.mask_weight, config.loss.reconstruct_weight)
    assert (config.model.conditioning, *weights) == ABLATIONS[ablation]
    train_transformer(folder, tokens("bair"), tokenizer, run, overlay)


def test_two_steps_of_a_transformer_with_the_released_codes_choices(
    folder: Path, tokenizer: Path, tokens: Callable[[str], Path]
) -> None:
    export = train_transformer(folder, tokens("bair"), tokenizer, "bair_mt8_base", "commit/official.yaml")
    config = load_config(TransformerConfig, export, "CommitTransformer")
    assert (config.inpainting_token, config.dynamic_condition) == ("outpainting", "code")


@pytest.mark.parametrize("run", ["k600_fp5_large", "bair_mt8_base", "ssv2_mt10_base"])
def test_samples_of_a_run(folder: Path, tokenizer: Path, tokens: Callable[[str], Path], run: str) -> None:
    dataset, output = run.split("_")[0], folder / f"{run}_generated"
    export = train_transformer(folder, tokens(dataset), tokenizer, run)
    files = [str(ROOT / f"generate/{name}.yaml") for name in (run, "debug")]
    models = [f"tokenizer={tokenizer}", f"transformer={export}", f"clips.shards={clip_shards(folder, dataset)}"]
    generate.main([*files, *models, f"output={output}"])
    samples = read_samples(output / "samples.npz")
    assert list(samples.tasks) == list(commit_config(run).tasks)
    for made in samples.tasks.values():
        assert made.generated.shape == (1, 16, 32, 32, 3)
        assert set(made.names) <= ({""} if dataset == "bair" else set(moving_shapes.CLASSES))
