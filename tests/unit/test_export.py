"""Model folders from checkpoints whose slices were dealt out oddly over two ranks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import (
    ClipsConfig,
    DiscriminatorConfig,
    Refusal,
    RunConfig,
    TrainCommitConfig,
    TrainVQGANConfig,
    TransformerConfig,
    VQGANConfig,
    VQGANLossConfig,
    dump,
)
from magvit_scale.export import export_run, main
from magvit_scale.training.slices import write_tensors
from magvit_scale.vqgan.autoencoder import VQGAN
from magvit_scale.vqgan.discriminator import Discriminator, resolve_discriminator

VQGAN_CONFIG = TrainVQGANConfig(
    run=RunConfig(folder="unused", steps=9, global_batch_size=2),
    clips=ClipsConfig(shards="unused", num_frames=4, size_px=8),
    model=VQGANConfig(base_channels=4, channel_multipliers=(1, 1), num_res_blocks=1, temporal_downsample=(True,),
                      embedding_dim=3, codebook_size=5, num_groups=2),
    discriminator=DiscriminatorConfig(base_channels=2, channel_multipliers=(1, 1)),
    loss=VQGANLossConfig(perceptual="none"),
)  # fmt: skip
COMMIT_CONFIG = TrainCommitConfig(
    run=RunConfig(folder="unused", steps=9, global_batch_size=2), tokens="unused", tokenizer="unused",
    model=TransformerConfig(num_layers=1, hidden_size=6, mlp_dim=5, num_heads=2, latent_shape=(1, 2, 2),
                            codebook_size=5, num_classes=3),
)  # fmt: skip


def random_state(model: nn.Module, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(t.shape, generator=generator) for name, t in model.state_dict().items()}


def vqgan_states(seed: int) -> dict[str, dict[str, Tensor]]:
    vqgan, judge = VQGAN(VQGAN_CONFIG.model), Discriminator(resolve_discriminator(VQGAN_CONFIG))
    return {
        "generator/master": random_state(vqgan, seed),
        "generator/exp_avg": random_state(vqgan, seed + 1),
        "discriminator/master": random_state(judge, seed + 2),
        "average": random_state(vqgan, seed + 3),
    }


def write(run: Path, step: int, config: Any, states: dict[str, dict[str, Tensor]]) -> Path:
    """Cuts every tensor at a third of it; the first part goes to the second rank, now and then the other way round."""
    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    ranks: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for prefix, tensors in states.items():
        for index, (name, tensor) in enumerate(tensors.items()):
            flat, cut = tensor.flatten(), tensor.numel() // 3
            for part, first, stop in ((0, 0, cut), (1, cut, len(flat))):
                if first < stop:
                    ranks[(index % 3 == 0) ^ part][f"{prefix}/{name}@{first}"] = flat[first:stop].clone()
    for rank, tensors in enumerate(ranks):
        assert tensors
        write_tensors(tensors, folder / f"rank_{rank:05d}.safetensors")
    dump(config, folder / "config.yaml")
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    (folder / "COMPLETE").write_text(json.dumps({"files": sizes}))
    return folder


def assert_holds(model: nn.Module, expected: dict[str, Tensor]) -> None:
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == []


def test_a_vqgan_is_exported_whole_with_its_average_in_front(tmp_path: Path) -> None:
    states = vqgan_states(1)
    write(tmp_path, 5, VQGAN_CONFIG, states)
    folder = export_run(tmp_path)
    assert folder == tmp_path / "export"
    assert_holds(VQGAN.from_pretrained(folder), states["average"])
    assert_holds(VQGAN.from_pretrained(folder / "unaveraged"), states["generator/master"])
    judge = Discriminator.from_pretrained(folder / "discriminator")
    assert_holds(judge, states["discriminator/master"])
    assert judge.config == replace(VQGAN_CONFIG.discriminator, ndim=3, clip_shape=(4, 8, 8))
    assert VQGAN.from_pretrained(folder).config == VQGAN_CONFIG.model


def test_a_transformer_is_exported(tmp_path: Path) -> None:
    state = random_state(CommitTransformer(COMMIT_CONFIG.model), 1)
    write(tmp_path, 5, COMMIT_CONFIG, {"transformer/master": state})
    model = CommitTransformer.from_pretrained(export_run(tmp_path))
    assert_holds(model, state)
    assert model.config == COMMIT_CONFIG.model


def test_the_newest_complete_one_or_the_step_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states = {step: vqgan_states(step) for step in (5, 10, 15)}
    folders = [write(tmp_path, step, VQGAN_CONFIG, states[step]) for step in states]
    (folders[-1] / "rank_00001.safetensors").unlink()
    assert_holds(VQGAN.from_pretrained(export_run(tmp_path)), states[10]["average"])
    output = tmp_path / "elsewhere"
    main([f"run={tmp_path}", "step=5", f"output={output}"])
    assert capsys.readouterr().out == f"{output}\n"
    assert_holds(VQGAN.from_pretrained(output), states[5]["average"])
    assert_holds(VQGAN.from_pretrained(tmp_path / "export"), states[10]["average"])
    for step in (15, 7):
        with pytest.raises(Refusal) as refusal:
            export_run(tmp_path, step)
        assert str(refusal.value) == (
            f"{tmp_path}/checkpoints: no complete checkpoint of step {step}; there are: step_00000005, step_00000010"
        )


def test_a_folder_without_checkpoints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="no complete checkpoint; there are: none"):
        export_run(tmp_path)


def test_a_checkpoint_that_lacks_a_part_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    states = vqgan_states(1)
    del states["generator/master"]["quantizer.codebook"]
    write(tmp_path, 5, VQGAN_CONFIG, states)
    with pytest.raises(Refusal, match=r"holds 0 of 15 elements of generator/master/quantizer\.codebook"):
        export_run(tmp_path)
    assert not (tmp_path / "export").exists()
