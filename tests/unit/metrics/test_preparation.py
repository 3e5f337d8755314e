"""What reaches the feature network."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from magvit_scale.config import Refusal
from magvit_scale.metrics.preparation import fit, prepare, quantise
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


def frames_of(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)


def test_stored_frames_of_the_models_size_stay_as_they_are() -> None:
    frames = frames_of(128, 128)
    fitted = fit(frames, PROTOCOLS["magvit-ucf101-cg"])
    assert fitted.shape == (3, 2, 128, 128)
    assert torch.equal((fitted * 255).round().byte(), torch.from_numpy(frames).permute(3, 0, 1, 2))


def test_larger_frames_are_resized_by_their_short_side_and_cropped_at_their_place() -> None:
    frames = frames_of(240, 320)
    frames[:, :, 161:] = 200  # the right half, at every height
    left, middle, right = (fit(frames, PROTOCOLS["magvit-k600-fp5"], place) for place in (0.0, 0.5, 1.0))
    assert left.shape == (3, 2, 128, 128)
    # 171 px wide after the resizing; the edge lies at 161 / 320 * 171 = 86 px, less the crop's first column.
    for clip, first in ((left, 0), (middle, 21), (right, 43)):
        is_grey = ((clip - 200 / 255).abs() < 1e-3).all(dim=(0, 1, 2))
        assert int(is_grey.float().argmax()) == 87 - first
        assert bool(is_grey[87 - first :].all())


def test_lanczos_is_pillows_on_whole_grey_levels() -> None:
    frames = frames_of(300, 400)
    expected = np.asarray(Image.fromarray(frames[1]).resize((341, 256), Image.Resampling.LANCZOS))[:, 42:298]
    fitted = fit(frames, PROTOCOLS["stylegan-v-2048"])
    assert np.array_equal((fitted[:, 1] * 255).round().byte().permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(
    ("name", "height", "width", "place", "words"),
    [
        ("magvit-ucf101-cg", 64, 86, 0.5, "stored frames of 86 x 64 px, expected a short side of 128 px or more"),
        ("magvit-bair-fp", 128, 128, 0.5, "stored frames of 128 x 128 px, expected 64 x 64; write the shards with "
                                          "size_px=64"),
        ("magvit-k600-fp5", 128, 128, 0.0, "stored frames of 128 x 128 px, expected a long side, .* keep_aspect=true"),
    ],
)  # fmt: skip
def test_frames_that_do_not_suit_a_protocol_are_refused(
    name: str, height: int, width: int, place: float, words: str
) -> None:
    with pytest.raises(Refusal, match=words):
        fit(frames_of(height, width), PROTOCOLS[name], place)
