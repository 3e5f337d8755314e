"""Every file of configs/ loads and says what the paper says."""

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import (
    GenerateConfig,
    InflateConfig,
    PrecomputeTokensConfig,
    load,
)
from magvit_scale.training.schedule import learning_rate
from magvit_scale.vqgan_training import build_models
from tests.integration.paper_configs import (
    FILES,
    GIVEN,
    ROOT,
    SCHEMAS,
    VERBS,
    commit_config,
    is_of_the_paper,
    runs,
    vqgan_config,
)


@pytest.mark.parametrize("name", FILES)
def test_every_file_loads_under_its_folders_schema(name: str) -> None:
    stage = name.split("/")[0]
    load(SCHEMAS[stage], [GIVEN[stage], ROOT / name])


@pytest.mark.parametrize("name", [name for name in FILES if is_of_the_paper(name)])
def test_every_file_begins_with_the_command_that_uses_it(name: str) -> None:
    first = (ROOT / name).read_text().splitlines()[0]
    program, verb, *arguments = shlex.split(first.removeprefix("# "))
    assert (program, VERBS[verb]) == ("magvit", name.split("/")[0])
    files = [argument for argument in arguments if "=" not in argument]
    assert files[-1] == f"configs/{name}"
    example = runs(VERBS[verb])[0]
    sources = [ROOT.parent / file.replace("RUN.yaml", f"{example}.yaml") for file in files]
    load(SCHEMAS[VERBS[verb]], sources, [argument for argument in arguments if "=" in argument])


# ----------------------------------------------------------------------------------------------------------------------
# What the paper says (spec sections 0, 4.4, 6, 9, 11)

TRAINING_VIDEOS = {"imagenet": 1_281_167, "ucf101": 9_537, "bair": 43_264, "k600": 384_000, "ssv2": 169_000}

VQGAN_EPOCHS = {
    "ucf101_3d_base": (128, 500), "ucf101_3d_large": (256, 2000),
    "bair_3d_base": (128, 400), "bair_3d_large": (256, 800),
    "k600_3d_base": (128, 45), "k600_3d_large": (256, 180),
    "ssv2_3d_base": (128, 135), "ssv2_3d_large": (256, 400),
    "ucf101_2d_base": (256, 1000), "ucf101_2d_large": (256, 1000),
    "bair_2d_base": (256, 400), "bair_2d_large": (256, 800),  # not published
    "imagenet_2d_base": (256, 100), "imagenet_2d_large": (256, 100),  # not published
    "imagenet_2d_base_64": (256, 100), "imagenet_2d_large_64": (256, 100),  # not published
}  # fmt: skip
COMMIT_EPOCHS = {
    "ucf101_cg_base": 2000, "ucf101_cg_large": 2000, "bair_fp_base": 400, "bair_fp_large": 800,
    "bair_mt8_base": 1200, "bair_mt8_large": 1600, "k600_fp5_base": 180, "k600_fp5_large": 360,
    "ssv2_mt10_base": 720, "ssv2_mt10_large": 1440,
}  # fmt: skip
SPEC_STEPS = {
    "ucf101_3d_base": 37_000, "ucf101_3d_large": 74_000, "bair_3d_base": 135_200, "bair_3d_large": 135_200,
    "ucf101_2d_base": 37_000, "ucf101_2d_large": 37_000, "ucf101_cg_base": 74_000, "ucf101_cg_large": 74_000,
    "bair_fp_base": 67_600, "bair_fp_large": 135_200, "bair_mt8_base": 202_800, "bair_mt8_large": 270_400,
}  # fmt: skip
"""The steps that the specification prints; those of the other runs follow from their epochs alone."""


@pytest.mark.parametrize("name", runs("vqgan"))
def test_tokenizers_train_as_long_as_the_paper_says(name: str) -> None:
    config = vqgan_config(name)
    batch, epochs = VQGAN_EPOCHS[name]
    steps_per_epoch = TRAINING_VIDEOS[name.split("_")[0]] // batch
    assert config.run.steps == steps_per_epoch * epochs == SPEC_STEPS.get(name, config.run.steps)
    assert (config.run.global_batch_size, config.optim.warmup_steps) == (batch, steps_per_epoch)
    assert (config.optim.learning_rate, config.optim.betas) == (1e-4, (0.0, 0.99))
    assert (config.optim.weight_decay, config.optim.gradient_clipping) == (0, 0)
    assert config.run.folder == f"runs/{name}"


@pytest.mark.parametrize("name", runs("commit"))
def test_transformers_train_as_long_as_the_paper_says(name: str) -> None:
    config = commit_config(name)
    steps = TRAINING_VIDEOS[name.split("_")[0]] // 256 * COMMIT_EPOCHS[name]
    assert config.run.steps == steps == SPEC_STEPS.get(name, steps)
    assert (config.run.global_batch_size, config.optim.warmup_steps) == (256, 5000)
    assert (config.optim.learning_rate, config.optim.betas) == (1e-4, (0.9, 0.96))
    assert (config.optim.weight_decay, config.optim.gradient_clipping) == (0.045, 1.0)
    assert (config.model.dropout, config.loss.label_smoothing, config.one_task_per_step) == (0.1, 1e-4, True)


@pytest.mark.parametrize("name", runs("vqgan"))
def test_tokenizers_see_and_lose_what_the_paper_says(name: str) -> None:
    config = vqgan_config(name)
    dataset, ndim = name.split("_")[0], int(name.split("_")[1][0])
    is_small = dataset == "bair" or name.endswith("_64")
    assert config.clips.size_px == (64 if is_small else 128)
    frames = {"imagenet": (1, None)}.get(dataset, (16, 4 if ndim == 2 else None))
    assert (config.clips.num_frames, config.clips.sampled_frames, config.clips.frame_stride) == (*frames, 1)
    assert (config.model.ndim, config.model.padding) == (ndim, "reflect")
    loss = config.loss
    assert (loss.reconstruction_weight, loss.perceptual_weight, loss.adversarial_weight) == (1.0, 0.1, 0.1)
    assert (loss.r1_weight, loss.r1_every, loss.lecam_weight > 0, loss.adversarial_start) == (10.0, 1, ndim == 3, 0)
    assert (loss.commitment_weight, loss.entropy_weight, loss.entropy_temperature) == (0.25, 0.1, 0.01)
    assert (loss.ema_decay, loss.perceptual) == (0.999, "lpips_vgg")


EIGHT = ("FP", "FI", "OPC", "OPV", "OPH", "OPD", "IPC", "IPD")
TASKS_OF_RUN = {"ucf101_cg": ("CG",), "bair_fp": ("FP",), "bair_mt8": EIGHT, "k600_fp5": ("FP5",),
                "ssv2_mt10": (*EIGHT, "CG", "CFP")}  # fmt: skip


@pytest.mark.parametrize("name", runs("commit"))
def test_a_transformers_tokens_come_from_its_tokenizer(name: str) -> None:
    """The files of one run name each other's folders, clips, tasks and sizes."""
    config, (dataset, _, size) = commit_config(name), name.split("_")
    assert config.tasks == TASKS_OF_RUN[name.removesuffix(f"_{size}")]
    assert config.model.multi_task == (len(config.tasks) > 1)
    tokens = load(PrecomputeTokensConfig, [ROOT / f"precompute/{dataset}_{size}.yaml"])
    tokenizer = vqgan_config(f"{dataset}_3d_{size}")
    assert (config.tokens, config.tokenizer) == (tokens.output, tokens.tokenizer)
    assert tokens.tokenizer == f"{tokenizer.run.folder}/export"
    assert set(config.tasks) <= set(tokens.tasks)
    clips = ("shards", "num_frames", "frame_stride", "size_px", "horizontal_flip")
    assert all(getattr(tokens.clips, key) == getattr(tokenizer.clips, key) for key in clips)
    assert (config.model.latent_shape, config.model.codebook_size) == ((4, 16, 16), tokenizer.model.codebook_size)
    assert (config.mask_count, config.model.inpainting_token) == ("ceil", "inpainting")  # the paper's words


@pytest.mark.parametrize("name", [name for name in runs("vqgan") if "_3d_" in name])
def test_3d_tokenizers_start_from_the_inflated_2d_ones(name: str) -> None:
    config = vqgan_config(name)
    suffix = name.rsplit("_", 1)[1] + ("_64" if config.clips.size_px == 64 else "")
    inflated = load(InflateConfig, [ROOT / f"inflate/imagenet_{suffix}.yaml"])
    source = vqgan_config(f"imagenet_2d_{suffix}")
    assert (config.init, inflated.source, inflated.mode) == (inflated.output, f"{source.run.folder}/export", "central")
    assert (inflated.num_frames, inflated.size_px) == (config.clips.num_frames, config.clips.size_px)
    assert inflated.temporal_downsample == config.model.temporal_downsample
    assert source.model.channel_multipliers == config.model.channel_multipliers
    assert (source.model.base_channels, source.discriminator) == (config.model.base_channels, config.discriminator)
    assert source.clips.size_px == config.clips.size_px


DECODING = {"bair_fp": (400.0, "exp"), "k600_fp5": (7.5, "uniform")}


@pytest.mark.parametrize("name", runs("generate"))
def test_samples_are_decoded_as_the_paper_says(name: str) -> None:
    config = load(GenerateConfig, [ROOT / f"generate/{name}.yaml"])
    protocol, size = name.rsplit("_", 1)
    run = f"{protocol.removesuffix('_debiased')}_{size}"
    trained = commit_config(run)
    decoding = config.decoding
    assert (decoding.choice_temperature, decoding.schedule) == DECODING.get(protocol, (4.5, "cosine"))
    assert (decoding.num_steps, decoding.sampling_temperature, decoding.guidance_scale) == (12, 1.0, 0.0)
    assert (config.transformer, config.tokenizer) == (f"{trained.run.folder}/export", trained.tokenizer)
    assert config.tasks == trained.tasks


# ----------------------------------------------------------------------------------------------------------------------
# Sizes and schedules of the released code

DISCRIMINATORS = {(3, 128, 64): 15_339_457, (3, 128, 128): 61_341_569, (3, 64, 64): 11_734_465,
                  (3, 64, 128): 46_922_625, (2, 128, 64): 5_972_545, (2, 128, 128): 23_880_833}  # fmt: skip
GENERATORS = {(3, 128, 64): 40_579_843, (3, 128, 128): 157_811_971, (3, 64, 64): 36_596_355,
              (3, 64, 128): 141_882_371, (2, 128, 64): 13_809_667, (2, 128, 128): 53_104_387}  # fmt: skip
"""By ndim, frame side and base channels; the specification has no 2D networks of 64 px."""
TRANSFORMERS = {
    "ucf101_cg_base": 87_301_991, "bair_fp_base": 87_224_322, "bair_mt8_base": 87_236_625, "ssv2_mt10_base": 87_370_431,
    "ucf101_cg_large": 305_567_847, "bair_fp_large": 305_464_322, "bair_mt8_large": 305_480_721,
    "ssv2_mt10_large": 305_659_071,
}  # fmt: skip


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


SIZED = [name for name in runs("vqgan") if "_3d_" in name or vqgan_config(name).clips.size_px == 128]


@pytest.mark.parametrize("name", SIZED)
def test_tokenizers_have_the_size_of_the_released_code(name: str) -> None:
    config = vqgan_config(name)
    kind = (config.model.ndim, config.clips.size_px, config.model.base_channels)
    with torch.device("meta"):
        generator, discriminator = build_models(replace(config, init=None))
    assert (num_parameters(generator), num_parameters(discriminator)) == (GENERATORS[kind], DISCRIMINATORS[kind])


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_have_the_size_of_the_released_code(name: str) -> None:
    with torch.device("meta"):
        assert num_parameters(CommitTransformer(commit_config(name).model)) == TRANSFORMERS[name]


RELEASED = {"vqgan2d_ucf101": "ucf101_2d_base", "vqgan3d_ucf101": "ucf101_3d_base", "vqgan3d_bair": "bair_3d_base",
            "maskgvt_ucf101": "ucf101_cg_base", "maskgvt_bair": "bair_fp_base"}  # fmt: skip


@pytest.mark.skipif("MAGVIT_GOLDEN_DIR" not in os.environ, reason="MAGVIT_GOLDEN_DIR is not set")
@pytest.mark.parametrize("released", RELEASED)
def test_learning_rates_are_the_released_codes(released: str) -> None:
    config: Any = (vqgan_config if "vqgan" in released else commit_config)(RELEASED[released])
    with np.load(Path(os.environ["MAGVIT_GOLDEN_DIR"]) / "losses.npz", allow_pickle=False) as golden:
        steps, rates, cycle = (golden[f"lr/{released}/{key}"] for key in ("steps", "lr", "warmup_cycle"))
    assert [config.optim.warmup_steps, config.run.steps] == cycle.tolist()
    inside = steps < config.run.steps  # beyond it the released schedule begins anew
    assert inside.sum() > 20
    found = [learning_rate(int(step), config.run.steps, config.optim) for step in steps[inside]]
    # Float32 cosines on their side: 1e-6 of the base rate.
    assert np.abs(np.array(found) - rates[inside]).max() <= 1e-6 * config.optim.learning_rate
