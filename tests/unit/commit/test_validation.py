"""Validation masks are spread over the schedule; the cross-entropy is the mean over masked tokens, mode put back."""

import math

import pytest
import torch
from torch import Tensor

from magvit_scale.commit.condition import build_prompt
from magvit_scale.commit.masking import assign
from magvit_scale.commit.step import condition_of_batch
from magvit_scale.commit.tasks import canvases_of
from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.commit.validation import draw_validation_masks, masked_cross_entropy
from magvit_scale.config import TASKS, Refusal, TransformerConfig

LATENT = (2, 4, 4)
CANVASES = ("z", *canvases_of(TASKS))


def build(**changes: object) -> CommitTransformer:
    torch.manual_seed(0)
    model = CommitTransformer(
        TransformerConfig(
            num_layers=1,
            hidden_size=16,
            mlp_dim=16,
            num_heads=2,
            latent_shape=LATENT,
            codebook_size=20,
            num_classes=3,
            dropout=0.5,
            **changes,  # type: ignore[arg-type]
        )
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def example() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 20, (5, len(CANVASES), *LATENT), generator=generator)
    return tokens, torch.arange(5) % 3, draw_validation_masks(5, 32, seed=0)


def test_masks_cover_the_schedule_and_depend_on_the_seed_alone() -> None:
    masks = draw_validation_masks(8, 256, seed=1)
    expected = [math.floor(256 * math.cos(math.pi / 2 * (i + 0.5) / 8)) for i in range(8)]
    assert masks.sum(1).tolist() == expected
    torch.manual_seed(5)
    assert torch.equal(masks, draw_validation_masks(8, 256, seed=1))
    assert not torch.equal(masks, draw_validation_masks(8, 256, seed=2))


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_cross_entropy_is_the_mean_over_masked_tokens_for_any_batch_size(batch_size: int) -> None:
    model, (tokens, labels, is_masked) = build().train(), example()
    found = masked_cross_entropy(model, tokens, labels, "CFP", is_masked, CANVASES, batch_size)
    assert model.training  # its mode is put back; dropout of a half was off, or this would not repeat
    model.eval()
    condition = condition_of_batch(tokens, ["CFP"] * 5, CANVASES, model.config)
    inputs = assign(tokens[:, 0].flatten(1), condition, is_masked).inputs
    sequence = model.build_sequence(*build_prompt(["CFP"] * 5, labels, model.config), inputs)
    log_p = model.latent_logits(sequence).double().log_softmax(-1)
    losses = -log_p.gather(2, tokens[:, 0].flatten(1)[..., None])[..., 0]
    assert found == pytest.approx(losses[is_masked].mean().item(), rel=1e-5)
    masked_cross_entropy(model, tokens, labels, "CFP", is_masked, CANVASES, batch_size)
    assert not model.training


def test_a_model_that_knows_nothing_pays_the_logarithm_of_the_codebook() -> None:
    model, (tokens, labels, is_masked) = build(), example()
    with torch.no_grad():
        model.word.weight.zero_()
        model.head_bias.zero_()
    assert masked_cross_entropy(model, tokens, labels, "CG", is_masked, CANVASES) == pytest.approx(
        math.log(20), rel=1e-6
    )


@torch.no_grad()
def test_what_a_model_takes_as_given_costs_nothing() -> None:
    """A fixed canvas: only the other half of the masked tokens is asked for, and nothing of a clip given whole."""
    model, (tokens, labels, is_masked) = build(conditioning="canvas"), example()
    found = masked_cross_entropy(model, tokens, labels, "OPV", is_masked, CANVASES)
    given = condition_of_batch(tokens, ["OPV"] * 5, CANVASES, model.config).is_fixed
    assert found == masked_cross_entropy(model, tokens, labels, "OPV", is_masked & ~given, CANVASES)
    assert math.isnan(masked_cross_entropy(model, tokens, labels, "FI", is_masked, CANVASES))


def test_a_task_whose_canvas_is_not_there_is_refused() -> None:
    model, (tokens, labels, is_masked) = build(), example()
    with pytest.raises(Refusal, match=r"task OPC needs .* hold z; run magvit precompute-tokens"):
        masked_cross_entropy(model, tokens[:, :1], labels, "OPC", is_masked, ["z"])
    masked_cross_entropy(model, tokens[:, :1], labels, "CG", is_masked, ["z"])
