"""What reaches the feature network."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from magvit_scale.metrics.preparation import prepare, quantise
from magvit_scale.metrics.protocol import Resize
from magvit_scale.metrics.protocols import PROTOCOLS
from magvit_scale.metrics.resize import resize_tf1


def clips_of(size: int, channels: int = 3) -> torch.Tensor:
    return torch.rand(2, channels, 2, size, size, generator=torch.Generator().manual_seed(0))


def test_quantisers_keep_round_and_cut_off() -> None:
    values = torch.tensor([-1.0, 0.0, 1.4 / 255, 1.6 / 255, 254.9 / 255, 1.0, 2.0])
    assert torch.equal(quantise(values, "float"), values.clamp(0, 1))
    assert (quantise(values, "uint8_round") * 255).round().tolist() == [0, 0, 1, 2, 255, 255, 255]
    assert (quantise(values, "uint8_truncate") * 255).round().tolist() == [0, 0, 1, 1, 254, 255, 255]


def test_stylegan_vs_cut_of_its_range_is_a_rounding() -> None:
    values = torch.from_numpy(np.random.default_rng(0).random(1000))
    theirs = ((2 * values - 1) * 127.5 + 128).clamp(0, 255).byte()
    assert torch.equal((quantise(values, PROTOCOLS["stylegan-v-2048"].quantiser) * 255).round().byte(), theirs)


def test_stored_clips_pass_every_quantiser_unchanged_but_for_float32s_rounding() -> None:
    stored = torch.arange(256, dtype=torch.uint8)
    assert torch.equal((quantise(stored.float() / 255, "uint8_round") * 255).round().byte(), stored)


def test_ucf101_is_squashed_by_the_official_rule() -> None:
    clips = clips_of(128)
    assert torch.equal(prepare(clips, PROTOCOLS["magvit-ucf101-cg"]), resize_tf1(clips, 224, 224))


def test_kinetics_goes_through_64_px() -> None:
    clips = clips_of(128)
    expected = resize_tf1(clips[..., ::2, ::2], 224, 224)  # src = 2 dst: every second pixel, whatever lies between
    torch.testing.assert_close(prepare(clips, PROTOCOLS["magvit-k600-fp5"]), expected, rtol=0, atol=0)


def test_larp_has_half_pixel_centres() -> None:
    ramp = (torch.arange(112.0) / 112).expand(1, 3, 1, 112, 112)
    found = prepare(ramp, PROTOCOLS["larp-10k"])
    inner = (torch.arange(224.0) + 0.5) / 2 - 0.5
    torch.testing.assert_close(found[0, 0, 0, 0, 1:-1], inner[1:-1] / 112, rtol=0, atol=1e-6)
    assert found.shape == (1, 3, 1, 224, 224)


def test_the_long_side_is_cropped_from_its_middle() -> None:
    step = Resize(size_px=8, rule="tf1", fit="centre_crop")
    clip = torch.arange(32.0).expand(1, 3, 1, 16, 32) / 32
    found = prepare(clip, replace(PROTOCOLS["magvit-ucf101-cg"], feature_resize=(step,)))
    assert (found[0, 0, 0, 0] * 32).tolist() == [8, 10, 12, 14, 16, 18, 20, 22]


def test_rules_of_the_data_are_none_of_the_features() -> None:
    step = Resize(size_px=8, rule="lanczos")
    with pytest.raises(ValueError, match="lanczos"):
        prepare(clips_of(16), replace(PROTOCOLS["magvit-ucf101-cg"], feature_resize=(step,)))
