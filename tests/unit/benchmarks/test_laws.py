"""Laws against what really is counted, and against sums by hand."""

import pytest
import torch

from benchmarks.laws import exponent, sent_bytes, transformer_flops, transformer_kept, zero_bytes
from benchmarks.meter import MemoryMeter, fake_model
from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import TransformerConfig


@pytest.mark.parametrize(("batch", "heads", "is_multi_task"), [(1, 2, True), (3, 4, False)])
def test_a_transformer_costs_what_its_law_says(batch: int, heads: int, is_multi_task: bool) -> None:
    config = TransformerConfig(
        num_layers=3, hidden_size=16, mlp_dim=40, num_heads=heads, latent_shape=(2, 4, 4), codebook_size=32,
        num_classes=5, dropout=0.0, multi_task=is_multi_task,
    )  # fmt: skip
    with fake_model(lambda: CommitTransformer(config)) as model:
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        known = [tensor for parameter in model.parameters() for tensor in (parameter, parameter.grad)]
        with MemoryMeter(known) as meter:
            sequence = torch.empty(batch, 34 if is_multi_task else 33, dtype=torch.int64)
            loss = model(sequence).logsumexp(-1).mean()
            kept = meter.held
            loss.backward()
    assert meter.flops == transformer_flops(config, batch)
    # Beside it lie ids and their masks, which are much at this width.
    assert kept == pytest.approx(transformer_kept(config, batch), rel=4e-3)


def test_attention_is_the_quadratic_part() -> None:
    config = TransformerConfig(
        num_layers=1, hidden_size=1, mlp_dim=1, num_heads=1, latent_shape=(1, 1, 1), codebook_size=1, num_classes=0,
        multi_task=False,
    )  # fmt: skip
    # Two tokens, vocabulary of three: 4 + 2 weights in the layer, 1 in the head, 3 in the logits; 7 products 2 x 2.
    assert transformer_flops(config, batch=1) == 3 * 2 * 2 * (6 + 1 + 3) + 7 * 2 * 4


def test_rings_send_this_much() -> None:
    assert sent_bytes("all_reduce", 100, 4) == 150
    assert sent_bytes("all_gather", 100, 4) == 75
    assert sent_bytes("reduce_scatter", 100, 2) == 50
    assert sent_bytes("all_reduce", 100, 1) == 0


@pytest.mark.parametrize(("stage", "expected"), [(0, 150), (1, 150), (2, 150), (3, 225)])
def test_zero_sends_this_much(stage: int, expected: float) -> None:
    assert zero_bytes(stage, 4, 100) == expected


def test_the_power_of_growth() -> None:
    assert exponent((2, 4), (3, 24)) == pytest.approx(3)
    assert exponent((10, 5), (10, 5)) == pytest.approx(1)
