"""TensorFlow's SAME padding."""

import torch
from torch.testing import assert_close

from magvit_scale.padding import pad_same, same_padding


def test_same_padding_is_that_of_the_spec_and_puts_an_odd_rest_at_the_end() -> None:
    assert same_padding(224, kernel=7, stride=2) == (2, 3)
    assert [same_padding(size, kernel=3, stride=2) for size in (112, 56, 28, 14)] == [(0, 1)] * 4
    assert same_padding(15, kernel=3, stride=2) == (1, 1)
    assert same_padding(56, kernel=1, stride=2) == (0, 0)
    assert same_padding(56, kernel=3, stride=1) == (1, 1)


def test_axes_are_padded_in_their_order() -> None:
    padded = pad_same(torch.ones(1, 1, 2, 3), kernel=(1, 4), stride=(1, 1), value=7.0)
    assert_close(padded, torch.tensor([[[[7.0, 1, 1, 1, 7, 7]] * 2]]), rtol=0, atol=0)
