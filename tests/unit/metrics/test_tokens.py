"""The frequency tables are proper and strong baselines."""

import math

import pytest
import torch

from magvit_scale.metrics.tokens import (
    choose_smoothing,
    codebook_use,
    frequency_table,
    table_cross_entropy,
    unigram_table,
)


def tokens_by_position(num_clips: int, seed: int, sharpness: float = 3.0) -> torch.Tensor:
    """Tokens `n 2 3 3` of 8 codes whose distribution differs from position to position, the same for every seed."""
    logits = sharpness * torch.randn(18, 8, generator=torch.Generator().manual_seed(7))
    draws = torch.multinomial(
        logits.softmax(-1), num_clips, replacement=True, generator=torch.Generator().manual_seed(seed)
    )
    return draws.T.reshape(num_clips, 2, 3, 3)


def test_tables_are_distributions() -> None:
    tokens = tokens_by_position(20, seed=0)
    for table in (frequency_table(tokens, 8), unigram_table(tokens, 8)):
        assert table.shape == (2, 3, 3, 8)
        assert torch.allclose(table.exp().sum(-1), torch.ones(2, 3, 3), atol=1e-5)
        assert torch.isfinite(table).all()


def test_smoothing_pulls_counts_towards_the_unigram() -> None:
    tokens = torch.tensor([0, 0, 0, 1]).reshape(4, 1, 1, 1)
    # Unigram with one added to each of 2 codes: 4/6, 2/6.
    expected = torch.tensor([(3 + 2 * 4 / 6) / 6, (1 + 2 * 2 / 6) / 6])
    assert torch.allclose(frequency_table(tokens, 2, smoothing=2.0).exp().flatten(), expected)


def test_position_table_beats_the_unigram_where_positions_differ() -> None:
    train, test = tokens_by_position(200, seed=0), tokens_by_position(200, seed=1)
    per_position = table_cross_entropy(frequency_table(train, 8), test)
    assert per_position < table_cross_entropy(unigram_table(train, 8), test) - 0.5


def test_chosen_smoothing_is_near_the_best_on_held_out_tokens() -> None:
    for num_clips in (3, 12, 100):
        train, test = (
            tokens_by_position(num_clips, seed=2, sharpness=1.0),
            tokens_by_position(500, seed=3, sharpness=1.0),
        )
        chosen = table_cross_entropy(frequency_table(train, 8), test)
        best = min(table_cross_entropy(frequency_table(train, 8, 2.0**power), test) for power in range(-4, 14))
        assert chosen < best + 0.03


def test_tokens_without_position_get_a_strong_prior() -> None:
    train = torch.randint(0, 8, (10, 2, 3, 3), generator=torch.Generator().manual_seed(0))
    counts = torch.nn.functional.one_hot(train, 8).sum(0).double()
    prior = unigram_table(train, 8).double().exp()
    assert choose_smoothing(counts, prior) >= 64
    sharp = torch.zeros(10, 2, 3, 3, dtype=torch.long) + torch.arange(3)
    counts = torch.nn.functional.one_hot(sharp, 8).sum(0).double()
    assert choose_smoothing(counts, unigram_table(sharp, 8).double().exp()) <= 1


def test_cross_entropy_counts_only_where() -> None:
    table = torch.tensor([0.9, 0.1]).log().reshape(1, 1, 1, 2)
    tokens = torch.tensor([0, 1]).reshape(2, 1, 1, 1)
    assert table_cross_entropy(table, tokens) == pytest.approx(-(math.log(0.9) + math.log(0.1)) / 2, rel=1e-6)
    assert table_cross_entropy(table, tokens, tokens == 1) == pytest.approx(-math.log(0.1), rel=1e-6)
    assert math.isnan(table_cross_entropy(table, tokens, tokens > 1))


def test_codebook_use() -> None:
    use = codebook_use(torch.tensor([[0, 0, 1, 1], [2, 2, 3, 3]]), 8)
    assert use.used == 0.5
    assert use.perplexity == pytest.approx(4)
    assert use.counts.tolist() == [2, 2, 2, 2, 0, 0, 0, 0]
