"""How programs are held against their model."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from magvit_scale.programs import compare
from magvit_scale.vqgan.autoencoder import VQGAN
from tests.tiny_tokens import write_tokenizer

SHAPE = (4, 16, 16)


@pytest.fixture
def tokenizer(tmp_path: Path) -> VQGAN:
    return VQGAN.from_pretrained(write_tokenizer(tmp_path))


def one_off(ids: Tensor) -> Tensor:
    """Another code in one place."""
    changed = ids.clone()
    changed.view(-1)[0] = (changed.view(-1)[0] + 7) % 32
    return changed


@torch.no_grad()
def test_another_code_counts_as_a_difference_unless_it_is_as_near(tokenizer: VQGAN) -> None:
    found = compare(tokenizer, lambda clips: one_off(tokenizer.tokenize(clips)), tokenizer.detokenize, SHAPE)
    assert (found.different, found.near_ties, found.largest_clip_difference) == (4, 0, 0.0)
    assert not found.are_equal
    # Codes 7 apart become twins: which of the two is taken is a matter of rounding.
    codebook = tokenizer.quantizer.codebook
    codebook.copy_(codebook[:7].repeat(5, 1)[:32])
    found = compare(tokenizer, lambda clips: (tokenizer.tokenize(clips) + 7) % 28, tokenizer.detokenize, SHAPE)
    assert found.different == found.near_ties == found.tokens
    assert found.are_equal


@torch.no_grad()
def test_clips_beyond_the_tolerance_are_no_equal_ones(tokenizer: VQGAN) -> None:
    for shift, are_equal in ((4e-6, True), (4e-5, False)):
        found = compare(tokenizer, tokenizer.tokenize, lambda ids, by=shift: tokenizer.detokenize(ids) + by, SHAPE)
        assert found.largest_clip_difference == pytest.approx(shift, rel=0.1)
        assert found.are_equal is are_equal


@torch.no_grad()
def test_a_clip_that_is_no_number_is_not_equal(tokenizer: VQGAN) -> None:
    found = compare(tokenizer, tokenizer.tokenize, lambda ids: tokenizer.detokenize(ids) * float("nan"), SHAPE)
    assert not found.are_equal
