"""Inflation: the 3D network is the 2D one on a still clip, and no tensor is left out."""

from dataclasses import replace

import pytest
import torch
from einops import repeat
from torch import Tensor

from magvit_scale.config import DiscriminatorConfig, Inflation, Padding, Refusal, VQGANConfig
from magvit_scale.vqgan.autoencoder import VQGAN
from magvit_scale.vqgan.discriminator import Discriminator
from magvit_scale.vqgan.inflate import inflate_2d_to_3d


def config(ndim: int, padding: Padding = "zeros") -> VQGANConfig:
    return VQGANConfig(
        ndim=ndim,  # type: ignore[arg-type]
        base_channels=8,
        channel_multipliers=(1, 2, 2),
        num_res_blocks=1,
        temporal_downsample=(True, False),
        embedding_dim=4,
        codebook_size=16,
        num_groups=4,
        padding=padding,
    )


def build_2d(padding: Padding = "zeros") -> VQGAN:
    torch.manual_seed(0)
    model = VQGAN(config(2, padding)).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)  # neither 0 nor 1: a tensor left out would show
    return model


def shapes_of(module: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def inflate(model: VQGAN, mode: Inflation) -> VQGAN:
    torch.manual_seed(1)
    model_3d = VQGAN(config(3, model.config.padding)).eval()
    model_3d.load_state_dict(inflate_2d_to_3d(model.state_dict(), shapes_of(model_3d), mode))
    return model_3d


def still_clip(num_frames: int = 4) -> Tensor:
    frame = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    return repeat(frame, "b c h w -> b c t h w", t=num_frames)


@torch.no_grad()
def test_central_inflation_is_the_2d_model_on_repeated_frames() -> None:
    model_2d = build_2d()
    model_3d, clip = inflate(model_2d, "central"), still_clip()
    latents_2d, latents_3d = model_2d.encode(clip), model_3d.encode(clip)
    torch.testing.assert_close(latents_3d, latents_2d[:, :, :2], rtol=0, atol=1e-4)
    assert torch.equal(model_3d.tokenize(clip), model_2d.tokenize(clip)[:, :2])
    torch.testing.assert_close(model_3d(clip)[0], model_2d(clip)[0], rtol=0, atol=1e-4)


@torch.no_grad()
def test_average_inflation_equals_central_on_repeated_frames_under_reflect_padding_only() -> None:
    clip = still_clip()
    for padding, is_equal in (("reflect", True), ("zeros", False)):
        model_2d = build_2d(padding)  # type: ignore[arg-type]
        central, average = (inflate(model_2d, mode).encode(clip) for mode in ("central", "average"))  # type: ignore[arg-type]
        assert torch.allclose(central, average, atol=1e-4) is is_equal
        assert not is_equal or torch.allclose(central, model_2d.encode(clip)[:, :, :2], atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["central", "average"])
def test_every_tensor_is_copied_or_inflated(mode: Inflation) -> None:
    model_2d = build_2d()
    source, target = model_2d.state_dict(), inflate(model_2d, mode).state_dict()
    assert source.keys() == target.keys()
    for name, tensor in target.items():
        if tensor.ndim < 5:
            assert torch.equal(tensor, source[name]), name
            continue
        kt = tensor.shape[2]
        for time in range(kt):
            share = 1 / kt if mode == "average" else float(time == kt // 2)
            torch.testing.assert_close(tensor[:, :, time], share * source[name], rtol=1e-6, atol=0)


def test_the_middle_of_an_even_kernel_is_the_later_one() -> None:
    inflated = inflate_2d_to_3d({"k": torch.ones(1, 1, 4, 4)}, {"k": torch.Size((1, 1, 4, 4, 4))}, "central")
    assert inflated["k"][0, 0, :, 0, 0].tolist() == [0, 0, 1, 0]


def test_inflated_tensors_are_their_own() -> None:
    source = {"norm": torch.ones(3), "kernel": torch.ones(1, 1, 3, 3)}
    shapes = {"norm": torch.Size((3,)), "kernel": torch.Size((1, 1, 3, 3, 3))}
    for mode in ("central", "average"):
        for tensor in inflate_2d_to_3d(source, shapes, mode).values():
            tensor.fill_(7)  # fails on an expanded view
    assert all((tensor == 1).all() for tensor in source.values())


@torch.no_grad()
def test_the_inflated_discriminator_is_the_2d_one_on_repeated_frames() -> None:
    torch.manual_seed(0)
    judge = DiscriminatorConfig(base_channels=4, channel_multipliers=(2, 2))
    flat = Discriminator(replace(judge, ndim=2, clip_shape=(1, 16, 16)))
    deep = Discriminator(replace(judge, ndim=3, clip_shape=(4, 16, 16)))
    deep.load_state_dict(inflate_2d_to_3d(flat.state_dict(), shapes_of(deep), "central"))
    clip = still_clip()
    torch.testing.assert_close(deep(clip), flat(clip)[:, 0], rtol=0, atol=1e-5)


def assert_refused(state: dict[str, Tensor], shapes: dict[str, torch.Size], match: str) -> None:
    with pytest.raises(Refusal, match=match) as refusal:
        inflate_2d_to_3d(state, shapes, "central")
    assert "\n" not in str(refusal.value)


def test_left_over_and_missing_tensors_are_refused() -> None:
    state, shapes = build_2d().state_dict(), shapes_of(VQGAN(config(3)))
    assert_refused(state | {"encoder.attention.weight": torch.ones(1)}, shapes, "encoder.attention.weight")
    assert_refused({n: t for n, t in state.items() if n != "encoder.conv_out.bias"}, shapes, "encoder.conv_out.bias")


def test_shapes_that_are_no_kernel_are_refused() -> None:
    state, shapes = build_2d().state_dict(), shapes_of(VQGAN(config(3)))
    assert_refused(state | {"quantizer.codebook": torch.ones(32, 4)}, shapes, r"quantizer.codebook is \(32, 4\)")
    # A dense kernel must not be taken for a convolution with one axis fewer.
    assert_refused({"w": torch.ones(3, 3)}, {"w": torch.Size((3, 5, 3))}, "no kernel")
    assert_refused({"w": torch.ones(2, 2, 3, 3)}, {"w": torch.Size((2, 4, 3, 3, 3))}, "no kernel")


def test_a_discriminator_that_does_not_pool_time_to_one_is_refused() -> None:
    judge = DiscriminatorConfig(base_channels=4, channel_multipliers=(2, 2))
    shapes = shapes_of(Discriminator(replace(judge, ndim=3, clip_shape=(16, 16, 16))))
    assert_refused(Discriminator(replace(judge, ndim=2, clip_shape=(1, 16, 16))).state_dict(), shapes, "dense.weight")
