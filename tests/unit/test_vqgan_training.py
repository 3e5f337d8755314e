"""What a run of stage 1 is built of, and codes that come back to life, in real engines of a world of one."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from einops import rearrange
from torch import Tensor

from magvit_scale.config import (
    ClipsConfig,
    CodebookUseConfig,
    DiscriminatorConfig,
    Refusal,
    RunConfig,
    TrainVQGANConfig,
    VQGANConfig,
    VQGANLossConfig,
)
from magvit_scale.pretrained import save_model
from magvit_scale.training import distributed
from magvit_scale.training.ranks import Ranks
from magvit_scale.vqgan.autoencoder import VQGAN
from magvit_scale.vqgan.discriminator import Discriminator
from magvit_scale.vqgan.step import VQGANTraining, vqgan_step
from magvit_scale.vqgan_training import build_average, build_models, build_training, revive_dead_codes

CODES, WIDTH = 8, 4


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    yield distributed.start()
    distributed.stop()


def config_of(folder: Path, stage: int = 0) -> TrainVQGANConfig:
    zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
    (folder / f"zero{stage}.json").write_text(json.dumps({"zero_optimization": zero}))
    return TrainVQGANConfig(
        run=RunConfig(folder="unused", steps=9, global_batch_size=2, deepspeed=str(folder / f"zero{stage}.json")),
        clips=ClipsConfig(shards="unused", num_frames=4, size_px=8),
        model=VQGANConfig(base_channels=8, channel_multipliers=(1, 2), num_res_blocks=1, temporal_downsample=(True,),
                          embedding_dim=WIDTH, codebook_size=CODES, num_groups=4),
        discriminator=DiscriminatorConfig(base_channels=4, channel_multipliers=(2, 2)),
        loss=VQGANLossConfig(perceptual="none", r1_weight=0.0),
        codebook_use=CodebookUseConfig(window=2, dead_after=6),
    )  # fmt: skip


def build(config: TrainVQGANConfig, ranks: Ranks) -> VQGANTraining:
    torch.manual_seed(0)
    return build_training(config, ranks, *build_models(config))


def random_clip(seed: int = 0) -> Tensor:
    return torch.rand(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def state_of(training: VQGANTraining) -> dict[str, Tensor]:
    return {key: view.clone() for key, _, view in training.generator.owned_slices()}


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_dead_codes_get_vectors_of_the_batch_and_no_history(tmp_path: Path, ranks: Ranks, stage: int) -> None:
    config = config_of(tmp_path, stage)
    training, clip = build(config, ranks), random_clip()
    for step in range(2):
        vqgan_step(training, [random_clip(step)], step)
    dead = torch.tensor([1, 4, 6])
    training.codebook_use.age.copy_(torch.tensor([0, 7, 0, 5, 9, 0, 6, 1]))
    before = state_of(training)
    with torch.no_grad():
        vectors = rearrange(training.generator.module.encode(clip), "b d t h w -> (b t h w) d")
    revive_dead_codes(config, training, clip, step=3)
    after = state_of(training)
    rows = after["master/quantizer.codebook"].view(CODES, WIDTH)[dead]
    assert all((vectors == row).all(dim=1).any() for row in rows)
    assert len({tuple(row.tolist()) for row in rows}) == len(dead)
    for name, tensor in before.items():
        changed = (after[name] != tensor).nonzero().flatten() // WIDTH
        if name.endswith("quantizer.codebook"):
            assert set(changed.tolist()) <= set(dead.tolist()), name
        else:
            assert changed.numel() == 0, name
    for kind in ("exp_avg", "exp_avg_sq"):
        assert not after[f"{kind}/quantizer.codebook"].view(CODES, WIDTH)[dead].any()
    assert training.codebook_use.age.tolist() == [0, 2, 0, 5, 2, 0, 2, 1]
    vqgan_step(training, [clip], step=4)  # the model itself has them
    assert set(training.codebook_use.age[dead].tolist()) == {0}, "the vectors they lie on are of this batch"


def test_the_same_step_of_the_same_seed_revives_alike(tmp_path: Path, ranks: Ranks) -> None:
    found = []
    for seed, step in ((0, 3), (0, 3), (0, 4), (1, 3)):
        config = config_of(tmp_path)
        training = build(config, ranks)
        training.codebook_use.age.fill_(6)
        revive_dead_codes(replace(config, run=replace(config.run, seed=seed)), training, random_clip(), step)
        found.append(state_of(training)["master/quantizer.codebook"].tolist())
    assert found[0] == found[1]
    assert found[0] != found[2] != found[3] != found[0]


def test_without_dead_codes_nothing_changes(tmp_path: Path, ranks: Ranks) -> None:
    config = config_of(tmp_path)
    training = build(config, ranks)
    before = state_of(training)
    revive_dead_codes(config, training, random_clip(), step=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_of(training).items())


def test_an_export_folder_is_where_a_run_starts(tmp_path: Path, ranks: Ranks) -> None:
    config = config_of(tmp_path)
    torch.manual_seed(1)
    unaveraged, averaged = VQGAN(config.model), VQGAN(config.model)
    judge = Discriminator(replace(config.discriminator, ndim=3, clip_shape=(4, 8, 8)))
    export = tmp_path / "export"
    for model, folder in ((unaveraged, export / "unaveraged"), (averaged, export), (judge, export / "discriminator")):
        save_model(model, model.config, folder)
    config = replace(config, init=str(export))
    training = build(config, ranks)
    average = build_average(config, training)
    for found, model in ((training.generator.masters(), unaveraged), (training.discriminator.masters(), judge),
                         (average.owned_slices(), averaged)):  # fmt: skip
        assert {name: view.tolist() for name, _, view in found} == {
            name: parameter.flatten().tolist() for name, parameter in model.named_parameters()
        }
    assert [view.tolist() for _, _, view in build_average(replace(config, init=None), training).owned_slices()] == [
        parameter.flatten().tolist() for parameter in unaveraged.parameters()
    ]


def test_each_network_has_its_own_stage(tmp_path: Path, ranks: Ranks) -> None:
    config_of(tmp_path, 2)
    config = replace(config_of(tmp_path, 3), discriminator_deepspeed=str(tmp_path / "zero2.json"))
    training = build(replace(config, loss=replace(config.loss, r1_weight=1.0)), ranks)
    assert (training.generator.zero_stage, training.discriminator.zero_stage) == (3, 2)
    assert "loss/r1" in vqgan_step(training, [random_clip()], step=0)


def test_what_two_engines_cannot_do_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    config = config_of(tmp_path, 3)
    with pytest.raises(Refusal, match=r"zero3\.json: r1 differentiates the discriminator twice, which ZeRO stage 3"):
        build_models(replace(config, loss=replace(config.loss, r1_weight=1.0)))
    adaptive = replace(config, loss=replace(config.loss, adaptive_weight=True))
    with pytest.raises(Refusal, match=r"adaptive_weight=true is of a whole batch, found run\.gradient_accumulation=2"):
        build_models(replace(adaptive, run=replace(config.run, gradient_accumulation=2)))
    with pytest.raises(Refusal, match=r"discriminator\.ndim=2, model and clips need 3"):
        build_models(replace(config, discriminator=replace(config.discriminator, ndim=2)))
    build_models(adaptive)
