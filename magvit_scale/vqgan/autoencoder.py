"""The 2D and the 3D VQGAN, from one set of blocks (MAGVIT section 3.1; spec sections 1.2, 1.3, 1.6).

A clip is 'b 3 t h w' float32 in [0, 1]; latents are 'b d t h w'; token ids are 'b t h w' int64. The 2D network takes
the same clips and works on every frame by itself.
"""

import itertools
from pathlib import Path

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from magvit_scale.checkpointing import Recomputing
from magvit_scale.config import Padding, Refusal, VQGANConfig
from magvit_scale.precision import in_own_precision
from magvit_scale.pretrained import load_model, save_model
from magvit_scale.vqgan.blocks import ResidualBlock, group_norm
from magvit_scale.vqgan.convolution import convolution
from magvit_scale.vqgan.quantizer import Quantized, VectorQuantizer
from magvit_scale.vqgan.windows import Sides

FUSED = {
    "layout_optimization": False,
    "realize_reads_threshold": 8,
    "realize_opcount_threshold": 100,
    "unroll_reductions_threshold": 3,
}
"""Inductor's settings for the 3D network. Its own choice of layouts knows 2D alone, and in 3D overrules what the
convolutions ask for. By its own thresholds it writes every normal value in float32 before the swish reads it; and where
a group of the norm has four channels it takes their mean anew for every value, finds that too much to read, and writes
a gradient in float32 with its channels apart: 1.9 times the traffic in all (docs/benchmarks.md).
"""


def _residual_blocks(
    config: VQGANConfig, channels_in: int, channels_out: int, padding: Padding, pooled: Sides = ()
) -> nn.Sequential:
    """The last of them pools along `pooled`."""
    widths = [channels_in, *[channels_out] * config.num_res_blocks]
    pooling: list[Sides] = [()] * (config.num_res_blocks - 1) + [pooled]
    return nn.Sequential(
        *(
            ResidualBlock(config.ndim, i, o, num_groups=config.num_groups, padding=padding, pooled=sides)
            for (i, o), sides in zip(itertools.pairwise(widths), pooling, strict=True)
        )
    )


def _stage_channels(config: VQGANConfig) -> list[int]:
    return [config.base_channels * multiplier for multiplier in config.channel_multipliers]


def _time_flags(config: VQGANConfig) -> tuple[bool, ...]:
    """Which down-samplers, shallow to deep, halve time as well."""
    num_downsamplers = len(config.channel_multipliers) - 1
    return config.temporal_downsample[:num_downsamplers] if config.ndim == 3 else (False,) * num_downsamplers


def _resampled_sides(config: VQGANConfig) -> list[Sides]:
    """Of each down-sampler, shallow to deep."""
    all_sides = tuple(range(2, 2 + config.ndim))
    return [all_sides if config.ndim == 2 or time else all_sides[1:] for time in _time_flags(config)]


class Encoder(Recomputing):
    """Clip -> latents: residual stages with average pooling between them."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        self.config, padding = config, config.padding
        channels = _stage_channels(config)
        self.conv_in = convolution(config.ndim, 3, config.base_channels, 3, padding=padding, bias=False)
        widths, pooling = [config.base_channels, *channels], [*_resampled_sides(config), ()]
        self.stages = nn.ModuleList(
            _residual_blocks(config, i, o, padding, sides)
            for (i, o), sides in zip(itertools.pairwise(widths), pooling, strict=True)
        )
        self.middle = _residual_blocks(config, channels[-1], channels[-1], padding)
        self.norm_out = group_norm(config.num_groups, channels[-1])
        self.conv_out = convolution(config.ndim, channels[-1], config.embedding_dim, 1)

    def forward(self, clip: Tensor) -> Tensor:
        """'b 3 [t] h w' -> 'b d [t] h w', smaller by 2 per down-sampler; under autocast float32 all the same, as ids
        and losses hang on the last digits.
        """
        x = clip
        for index in range(len(self.stages)):
            x = self.run_part("stage", self._stage, x, index)
        return self.run_part("stage", self._out, x)

    def _stage(self, x: Tensor, index: int) -> Tensor:
        return self.stages[index](self.conv_in(x) if index == 0 else x)

    def _out(self, x: Tensor) -> Tensor:
        return self.run_part("pointwise", self._project, self.middle(x))

    def _project(self, x: Tensor) -> Tensor:
        return in_own_precision(self.conv_out, F.silu(self.norm_out(x)))


class Decoder(Recomputing):
    """Quantised latents -> clip: the encoder's mirror, nearest-neighbour upsampling and a convolution between
    stages.
    """

    def __init__(self, config: VQGANConfig):
        super().__init__()
        # The released 2D decoder pads with zeros whatever the encoder does (spec 1.6).
        self.config, padding = config, config.padding if config.ndim == 3 else "zeros"
        deep_first = _stage_channels(config)[::-1]
        self.conv_in = convolution(config.ndim, config.embedding_dim, deep_first[0], 3, padding=padding)
        self.middle = _residual_blocks(config, deep_first[0], deep_first[0], padding)
        widths = [deep_first[0], *deep_first]
        self.stages = nn.ModuleList(_residual_blocks(config, i, o, padding) for i, o in itertools.pairwise(widths))
        self.upsamplers = nn.ModuleList(
            convolution(config.ndim, width, width, 3, padding=padding) for width in deep_first[:-1]
        )
        self.norm_out = group_norm(config.num_groups, deep_first[-1])
        self.conv_out = convolution(config.ndim, deep_first[-1], 3, 3, padding=padding)

    def forward(self, latents: Tensor) -> Tensor:
        """'b d [t] h w' -> 'b 3 [t] h w' float32, not clipped."""
        x = self.run_part("stage", self._in, latents)
        for index in range(len(self.stages)):
            x = self.run_part("stage", self._stage, x, index)
        return x.float()

    def _in(self, latents: Tensor) -> Tensor:
        return self.middle(self.conv_in(latents))

    def _stage(self, x: Tensor, index: int) -> Tensor:
        x = self.stages[index](x)
        if index == len(self.stages) - 1:
            return self.run_part("pointwise", self._out, x)
        return self.run_part("pointwise", self._upsample, x, index)

    def _upsample(self, x: Tensor, index: int) -> Tensor:
        return self.upsamplers[index](x, repeated=_resampled_sides(self.config)[::-1][index])

    def _out(self, x: Tensor) -> Tensor:
        return self.conv_out(F.silu(self.norm_out(x)))


class VQGAN(nn.Module):
    """The tokenizer: encoder, quantiser, decoder."""

    def __init__(self, config: VQGANConfig, entropy_temperature: float = 0.01):
        super().__init__()
        if config.ndim == 3 and len(_time_flags(config)) < len(config.channel_multipliers) - 1:
            raise Refusal(
                f"model.temporal_downsample has {len(config.temporal_downsample)} flags, expected one for each of the "
                f"{len(config.channel_multipliers) - 1} down-samplers"
            )
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = VectorQuantizer(config.codebook_size, config.embedding_dim, entropy_temperature)
        self.decoder = Decoder(config)

    @property
    def downsample(self) -> tuple[int, int, int]:
        """Factors from clip to latents along (t, h, w)."""
        flags = _time_flags(self.config)
        return 2 ** sum(flags), 2 ** len(flags), 2 ** len(flags)

    def encode(self, clip: Tensor) -> Tensor:
        """Clip -> latents before the quantiser.

        Raises:
            Refusal: a side of the clip is not divisible by its factor, or too short for reflect padding.
        """
        if any(side % factor for side, factor in zip(clip.shape[2:], self.downsample, strict=True)):
            raise Refusal(f"clip of (t, h, w) = {tuple(clip.shape[2:])}, expected multiples of {self.downsample}")
        smallest = [side // factor for side, factor in zip(clip.shape[2:], self.downsample, strict=True)]
        if self.config.padding == "reflect" and min(smallest[-self.config.ndim :]) < 2:
            raise Refusal(
                f"clip of (t, h, w) = {tuple(clip.shape[2:])} gives latents of {tuple(smallest)}; reflect padding "
                "needs at least 2 along every axis: a larger clip, or model.padding=zeros"
            )
        return self._per_frame(self.encoder, clip)

    def decode(self, latents: Tensor) -> Tensor:
        """Quantised latents -> clip, not clipped to [0, 1] (the losses see it so)."""
        return self._per_frame(self.decoder, latents)

    def tokenize(self, clip: Tensor) -> Tensor:
        """Clip -> token ids."""
        return self.quantizer.tokenize(self.encode(clip))

    def detokenize(self, token_ids: Tensor) -> Tensor:
        """Token ids -> clip in [0, 1]."""
        return self.decode(self.quantizer.look_up(token_ids)).clamp(0, 1)

    def forward(self, clip: Tensor) -> tuple[Tensor, Quantized]:
        """Clip -> its reconstruction (not clipped) and the quantiser's result with its losses."""
        quantized = self.quantizer(self.encode(clip))
        return self.decode(quantized.latents), quantized

    def compile(self, backend: str = "inductor") -> None:
        """Compiles encoder and decoder in place, see `torch.nn.Module.compile`: all calls go through them, `tokenize`
        and `detokenize` too. The quantiser between them stays as it is.
        """
        options = FUSED if self.config.ndim == 3 and backend == "inductor" else None
        for network in (self.encoder, self.decoder):
            network.compile(backend=backend, options=options)

    def _per_frame(self, network: nn.Module, x: Tensor) -> Tensor:
        if self.config.ndim == 3:
            return network(x)
        frames = network(rearrange(x, "b c t h w -> (b t) c h w"))
        return rearrange(frames, "(b t) c h w -> b c t h w", t=x.shape[2])

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors."""
        save_model(self, self.config, folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "VQGAN":
        """Reads what `save_pretrained` wrote, in evaluation mode.

        Raises:
            Refusal: the folder holds no VQGAN, or one of other tensors.
        """
        return load_model(cls, VQGANConfig, folder).eval()
