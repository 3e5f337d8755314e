"""`magvit inflate` on a small export folder."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from einops import repeat

from magvit_scale.config import DiscriminatorConfig, Refusal, VQGANConfig
from magvit_scale.inflate import main
from magvit_scale.vqgan.autoencoder import VQGAN
from magvit_scale.vqgan.discriminator import Discriminator

MODEL = VQGANConfig(
    ndim=2,
    base_channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    embedding_dim=4,
    codebook_size=16,
    num_groups=4,
    padding="zeros",
)
JUDGE = DiscriminatorConfig(ndim=2, base_channels=4, channel_multipliers=(2, 2), clip_shape=(1, 16, 16))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An export folder as train-vqgan writes it; averaged and unaveraged weights differ."""
    torch.manual_seed(0)
    folder = tmp_path / "2d"
    Discriminator(JUDGE).save_pretrained(folder / "discriminator")
    VQGAN(MODEL).save_pretrained(folder / "unaveraged")
    VQGAN(MODEL).save_pretrained(folder)
    return folder


def arguments(source: Path, output: Path, *more: str) -> list[str]:
    flags = "temporal_downsample=[true]"
    return [f"source={source}", f"output={output}", flags, "num_frames=4", "size_px=16", *more]


@torch.no_grad()
def test_all_three_parts_answer_as_before_on_repeated_frames(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "3d"
    main(arguments(source, output))
    clip = repeat(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)), "b c h w -> b c t h w", t=4)
    for part in ("", "unaveraged"):
        flat, deep = VQGAN.from_pretrained(source / part), VQGAN.from_pretrained(output / part)
        assert (deep.config.ndim, deep.config.temporal_downsample) == (3, (True,))
        torch.testing.assert_close(deep(clip)[0], flat(clip)[0], rtol=0, atol=1e-4)
    averaged, unaveraged = (VQGAN.from_pretrained(output / part) for part in ("", "unaveraged"))
    assert not torch.equal(averaged.quantizer.codebook, unaveraged.quantizer.codebook)
    judge_2d, judge_3d = (Discriminator.from_pretrained(folder / "discriminator") for folder in (source, output))
    torch.testing.assert_close(judge_3d(clip), judge_2d(clip)[:, 0], rtol=0, atol=1e-5)
    assert judge_3d.config == replace(JUDGE, ndim=3, clip_shape=(4, 16, 16))


def test_a_second_run_writes_the_same_bytes(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "3d"
    written = []
    for _ in range(2):
        main(arguments(source, output, "mode=average"))
        files = sorted(path for path in output.rglob("*") if path.is_file())
        written.append({path.relative_to(output).as_posix(): path.read_bytes() for path in files})
    assert written[0] == written[1]
    parts = ("", "discriminator/", "unaveraged/")
    assert sorted(written[0]) == sorted(
        f"{part}{name}" for part in parts for name in ("config.json", "model.safetensors")
    )


def test_a_3d_source_is_refused(source: Path, tmp_path: Path) -> None:
    main(arguments(source, tmp_path / "3d"))
    with pytest.raises(Refusal, match="is a 3D VQGAN, expected a 2D one"):
        main(arguments(tmp_path / "3d", tmp_path / "again"))


def test_a_clip_length_that_the_discriminator_cannot_take_over_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"dense\.weight"):
        main(arguments(source, tmp_path / "3d", "num_frames=16"))
    # The tokenizer is what later stages look for: it must not be there after a refusal.
    assert not (tmp_path / "3d" / "model.safetensors").exists()


def test_a_missing_part_is_refused(source: Path, tmp_path: Path) -> None:
    (source / "unaveraged" / "model.safetensors").unlink()
    with pytest.raises(Refusal, match="unaveraged") as refusal:
        main(arguments(source, tmp_path / "3d"))
    assert "\n" not in str(refusal.value)
