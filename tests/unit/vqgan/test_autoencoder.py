"""The VQGAN: sizes of the paper, shapes, what each frame may see, and what is refused."""

import pytest
import torch
from torch import Tensor, nn

from magvit_scale.config import Refusal, VQGANConfig
from magvit_scale.vqgan.autoencoder import VQGAN

UCF, BAIR = (1, 2, 2, 4), (1, 2, 4)


def tiny(**changes: object) -> VQGANConfig:
    defaults = {
        "base_channels": 8,
        "channel_multipliers": (1, 2, 2),
        "num_res_blocks": 1,
        "temporal_downsample": (True, False),
        "embedding_dim": 4,
        "codebook_size": 16,
        "num_groups": 4,
        "padding": "zeros",
    }
    return VQGANConfig(**(defaults | changes))  # type: ignore[arg-type]


def build(config: VQGANConfig, seed: int = 0) -> VQGAN:
    torch.manual_seed(seed)
    return VQGAN(config).eval()


def random_clip(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("ndim", "base_channels", "multipliers", "encoder", "decoder", "total"),
    [
        (3, 64, UCF, 17_149_888, 23_167_811, 40_579_843),
        (3, 128, UCF, 68_443_776, 89_106_051, 157_811_971),
        (3, 64, BAIR, 15_379_392, 20_954_819, 36_596_355),
        (3, 128, BAIR, 61_363_840, 80_256_387, 141_882_371),
        (2, 64, UCF, 5_792_320, 7_755_203, 13_809_667),
        (2, 128, UCF, 23_020_416, 29_821_827, 53_104_387),
    ],
)
def test_parameters_are_as_many_as_the_official_ones(
    ndim: int, base_channels: int, multipliers: tuple[int, ...], encoder: int, decoder: int, total: int
) -> None:
    config = VQGANConfig(ndim=ndim, base_channels=base_channels, channel_multipliers=multipliers)  # type: ignore[arg-type]
    with torch.device("meta"):
        model = VQGAN(config)
    assert (count(model.encoder), count(model.decoder), count(model.quantizer)) == (encoder, decoder, 262_144)
    assert count(model) == total


@pytest.mark.parametrize(("multipliers", "size_px"), [(UCF, 128), (BAIR, 64)])
def test_the_papers_clips_become_4x16x16(multipliers: tuple[int, ...], size_px: int) -> None:
    with torch.device("meta"):
        model = VQGAN(VQGANConfig(channel_multipliers=multipliers))
        latents = model.encode(torch.empty(1, 3, 16, size_px, size_px))
        assert latents.shape == (1, 256, 4, 16, 16)
        assert model.decode(latents).shape == (1, 3, 16, size_px, size_px)
    assert model.downsample == (4, size_px // 16, size_px // 16)


def test_the_2d_model_keeps_every_frame() -> None:
    with torch.device("meta"):
        model = VQGAN(VQGANConfig(ndim=2))
        assert model.encode(torch.empty(1, 3, 5, 128, 128)).shape == (1, 256, 5, 16, 16)
    assert model.downsample == (1, 8, 8)


@pytest.mark.parametrize(
    ("flags", "encoder_frames"), [((True, False), [8, 4, 4]), ((False, True), [8, 8, 4]), ((False, False), [8, 8, 8])]
)
def test_time_flags_run_from_shallow_to_deep_and_the_decoder_mirrors_them(
    flags: tuple[bool, bool], encoder_frames: list[int]
) -> None:
    model = build(tiny(temporal_downsample=flags))
    frames: dict[str, list[int]] = {"encoder": [], "decoder": []}
    for side, network in (("encoder", model.encoder), ("decoder", model.decoder)):
        for stage in network.stages:
            stage.register_forward_pre_hook(lambda _, inputs, side=side: frames[side].append(inputs[0].shape[2]))
    with torch.no_grad():
        model(random_clip(1, 3, 8, 16, 16))
    assert frames == {"encoder": encoder_frames, "decoder": encoder_frames[::-1]}


def test_time_flags_beyond_the_down_samplers_are_ignored() -> None:
    model = build(tiny(temporal_downsample=(True, False, True, True)))
    assert model.downsample == (2, 4, 4)
    assert model.tokenize(random_clip(1, 3, 4, 16, 16)).shape == (1, 2, 4, 4)


def test_fewer_time_flags_than_down_samplers_are_refused() -> None:
    with pytest.raises(Refusal, match=r"1 flags.*2 down-samplers") as refusal:
        VQGAN(tiny(temporal_downsample=(True,)))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("sides", [(3, 16, 16), (4, 18, 16), (4, 16, 14)])
def test_indivisible_clips_are_refused(sides: tuple[int, int, int]) -> None:
    model = build(tiny())
    with pytest.raises(Refusal, match=r"expected multiples of \(2, 4, 4\)") as refusal:
        model.tokenize(torch.zeros(1, 3, *sides))
    assert str(sides) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@torch.no_grad()
def test_the_2d_model_sees_one_frame_at_a_time() -> None:
    model, clip = build(tiny(ndim=2)), random_clip(2, 3, 3, 8, 8)
    latents, tokens = model.encode(clip), model.tokenize(clip)
    reconstruction = model.decode(latents)
    for frame in range(3):
        alone = clip[:, :, frame : frame + 1]
        torch.testing.assert_close(model.encode(alone)[:, :, 0], latents[:, :, frame], rtol=0, atol=1e-5)
        assert torch.equal(model.tokenize(alone)[:, 0], tokens[:, frame])
        decoded = model.decode(latents[:, :, frame : frame + 1])[:, :, 0]
        torch.testing.assert_close(decoded, reconstruction[:, :, frame], rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_3d_model_sees_all_frames() -> None:
    model, clip = build(tiny()), random_clip(1, 3, 8, 8, 8)
    changed = clip.clone()
    changed[:, :, -1] = 1 - changed[:, :, -1]
    # GroupNorm's statistics run over time, so even the first latent frame moves.
    assert not torch.allclose(model.encode(clip)[:, :, 0], model.encode(changed)[:, :, 0], atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("ndim", "is_decoder_padded_alike"), [(2, True), (3, False)])
def test_padding_of_the_2d_decoder_is_always_zeros(ndim: int, is_decoder_padded_alike: bool) -> None:
    zeros, reflect = build(tiny(ndim=ndim)), build(tiny(ndim=ndim, padding="reflect"))
    reflect.load_state_dict(zeros.state_dict())
    clip, latents = random_clip(1, 3, 4, 16, 16), torch.randn(1, 4, 2, 4, 4)
    assert not torch.allclose(zeros.encode(clip), reflect.encode(clip), atol=1e-3)
    assert torch.allclose(zeros.decode(latents), reflect.decode(latents), atol=1e-6) is is_decoder_padded_alike


@torch.no_grad()
def test_tokens_and_clips_correspond() -> None:
    model, clip = build(tiny()), random_clip(2, 3, 4, 16, 16)
    reconstruction, quantized = model(clip)
    tokens = model.tokenize(clip)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, quantized.token_ids)
    torch.testing.assert_close(model.detokenize(tokens), reconstruction.clamp(0, 1), rtol=0, atol=1e-5)


@torch.no_grad()
def test_only_detokenizing_clips_to_the_unit_interval() -> None:
    model = build(tiny())
    model.decoder.conv_out.bias += torch.tensor([5.0, 0.5, -5.0])
    clip = random_clip(1, 3, 4, 16, 16)
    reconstruction, _ = model(clip)
    shown = model.detokenize(model.tokenize(clip))
    assert reconstruction[:, 0].min() > 1
    assert reconstruction[:, 2].max() < 0
    assert torch.equal(shown[:, 0], torch.ones_like(shown[:, 0]))
    assert torch.equal(shown[:, 2], torch.zeros_like(shown[:, 2]))


@pytest.mark.parametrize("sides", [(4, 16, 16), (8, 4, 4)])
def test_a_clip_too_short_for_reflect_padding_is_refused(sides: tuple[int, int, int]) -> None:
    flags = (True, True)
    with pytest.raises(Refusal, match="reflect padding needs") as refusal:
        build(tiny(padding="reflect", temporal_downsample=flags)).encode(torch.zeros(1, 3, *sides))
    assert "\n" not in str(refusal.value)
    build(tiny(padding="zeros", temporal_downsample=flags)).encode(torch.zeros(1, 3, *sides))
