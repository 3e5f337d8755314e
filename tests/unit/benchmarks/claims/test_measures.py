from math import log10

import pytest
import torch

from benchmarks.claims.measures import (
    HeldOutTokens,
    compare_clips,
    cross_entropy_outside,
    frechet,
    generate,
    psnr_outside,
    steps_until,
    tokens_kept,
)
from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.commit.validation import draw_validation_masks, masked_cross_entropy
from magvit_scale.config import DecodingConfig, TransformerConfig, VQGANConfig
from magvit_scale.pipeline import MagvitPipeline
from magvit_scale.vqgan.autoencoder import VQGAN

NUM_CODES = 12


def transformer(conditioning: str) -> CommitTransformer:
    torch.manual_seed(0)
    config = TransformerConfig(
        num_layers=1,
        hidden_size=16,
        mlp_dim=16,
        num_heads=2,
        latent_shape=(2, 4, 4),
        codebook_size=NUM_CODES,
        num_classes=3,
        conditioning=conditioning,
        num_condition_tokens=16 if conditioning == "prefix" else 0,
    )
    model = CommitTransformer(config)
    with torch.no_grad():  # far from uniform, so that it matters what a model sees
        for parameter in model.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def held() -> HeldOutTokens:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(NUM_CODES, (5, 2, 2, 4, 4), generator=generator)
    return HeldOutTokens(tokens, torch.tensor([0, 1, 2, 0, 1]), ("z", "FP"))


@pytest.mark.parametrize(("conditioning", "shows_clip"), [("canvas", False), ("latent", True)])
def test_models_that_predict_only_outside_are_asked_what_validation_asks(
    held: HeldOutTokens, conditioning: str, shows_clip: bool
) -> None:
    model, masks = transformer(conditioning), draw_validation_masks(5, 32, seed=0)
    expected = masked_cross_entropy(model, held.tokens, held.labels, "FP", masks, held.canvases)
    assert cross_entropy_outside(model, held, "FP", masks, shows_clip=shows_clip) == pytest.approx(expected)
    assert cross_entropy_outside(model, held, "FP", masks, shows_clip=not shows_clip) != pytest.approx(expected)


@pytest.mark.parametrize("conditioning", ["commit", "prefix"])
def test_without_a_condition_everything_masked_counts(held: HeldOutTokens, conditioning: str) -> None:
    model, masks = transformer(conditioning), draw_validation_masks(5, 32, seed=0)
    expected = masked_cross_entropy(model, held.tokens, held.labels, "CG", masks, held.canvases)
    assert cross_entropy_outside(model, held, "CG", masks) == pytest.approx(expected)


def test_commit_is_not_asked_for_the_condition(held: HeldOutTokens) -> None:
    model, masks = transformer("commit"), torch.ones(5, 32, dtype=torch.bool)
    other = held.tokens.clone()
    other[:, 0, 0] = (other[:, 0, 0] + 1) % NUM_CODES  # the true tokens of the given frame, all masked
    changed = HeldOutTokens(other, held.labels, held.canvases)
    assert cross_entropy_outside(model, held, "FP", masks) == cross_entropy_outside(model, changed, "FP", masks)


def test_psnr_counts_only_what_is_not_given() -> None:
    real = torch.zeros(2, 3, 4, 8, 8)
    made = torch.full_like(real, 0.1)
    made[:, :, 0] = 1  # frame prediction gives the first frame
    everything = torch.ones(2, 1, 4, 8, 8, dtype=torch.bool)
    assert psnr_outside(real, made, "FP", everything) == pytest.approx(-20 * log10(0.1))
    some = torch.zeros_like(everything)
    some[0, 0, 1, 2, 3] = True
    made[0, :, 1, 2, 3] = 0.01
    assert psnr_outside(real, made, "FP", some) == pytest.approx(40)


def test_class_generation_has_no_psnr() -> None:
    clips = torch.rand(3, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    assert compare_clips(clips, clips, "CG").keys() == {"frechet"}
    assert frechet(clips, clips) == pytest.approx(0, abs=1e-6)
    assert frechet(clips, clips / 2) > 1e-3


def test_the_condition_comes_from_the_canvas_unless_the_clip_is_shown() -> None:
    torch.manual_seed(0)
    tokenizer = VQGAN(
        VQGANConfig(
            base_channels=4,
            channel_multipliers=(1, 1),
            num_res_blocks=1,
            temporal_downsample=(True,),
            embedding_dim=4,
            codebook_size=NUM_CODES,
            num_groups=2,
        )
    )
    pipeline = MagvitPipeline(tokenizer, transformer("latent"))
    clips, labels = torch.rand(2, 3, 4, 8, 8), torch.zeros(2, dtype=torch.int64)
    later = clips.clone()
    later[:, :, 1:] = torch.rand(2, 3, 3, 8, 8)  # only frame 0 is given

    def made(given: torch.Tensor, shows_clip: bool) -> torch.Tensor:
        return generate(pipeline, given, labels, "FP", DecodingConfig(num_steps=2), seed=3, shows_clip=shows_clip)

    assert torch.equal(made(clips, False), made(later, False))
    assert not torch.equal(made(clips, True), made(later, True))


def test_tokens_kept_are_counted_inside_the_condition(held: HeldOutTokens) -> None:
    tokens = held.tokens.clone()
    tokens[:, 1] = (tokens[:, 0] + 1) % NUM_CODES
    tokens[:4, 1, 0] = tokens[:4, 0, 0]  # the given frame of four clips in five
    assert tokens_kept(HeldOutTokens(tokens, held.labels, held.canvases), "FP") == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("values", "expected"),
    [({0: 1, 25: 3, 50: 4}, 25), ({0: 3, 25: 1, 50: 4}, 50), ({0: 5, 25: 5}, 0), ({0: 1, 25: 2.9}, None), ({}, None)],
)
def test_a_target_is_reached_where_the_curve_stays_above(values: dict[int, float], expected: int | None) -> None:
    assert steps_until(3, values) == expected
