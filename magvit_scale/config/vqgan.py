"""Stage 1: the tokenizer, its losses, its inflation."""

from dataclasses import dataclass, field
from typing import Literal

from magvit_scale.config.data import ClipsConfig
from magvit_scale.config.health import CodebookUseConfig, HealthConfig, vqgan_health
from magvit_scale.config.reading import Refusal, refuse_below_one
from magvit_scale.config.training import OptimConfig, RunConfig

Padding = Literal["reflect", "zeros"]
Inflation = Literal["central", "average"]
Perceptual = Literal["lpips_vgg", "resnet50_logits", "random", "none"]


@dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """2D or 3D VQGAN (MAGVIT section 3.1)."""

    ndim: Literal[2, 3] = 3
    """2: every frame by itself; 3: space and time."""
    base_channels: int = 64
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (True, True, False)
    """One flag per down-sampler, shallow to deep; the spatial factor is always 2."""
    embedding_dim: int = 256
    codebook_size: int = 1024
    padding: Padding = "reflect"
    """`reflect`: the paper; `zeros`: the released code. The 2D decoder pads with zeros in both."""
    num_groups: int = 32
    """Groups of every GroupNorm."""

    def __post_init__(self) -> None:
        """Refuses sizes that no network can have."""
        names = ("base_channels", "num_res_blocks", "embedding_dim", "codebook_size", "num_groups")
        refuse_below_one("model", {name: getattr(self, name) for name in names})
        refuse_below_one("model", {"channel_multipliers": min(self.channel_multipliers, default=0)})
        for width in (self.base_channels, *(self.base_channels * m for m in self.channel_multipliers)):
            if width % self.num_groups:
                raise Refusal(f"model.num_groups={self.num_groups} does not divide a width of {width} channels")


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """StyleGAN-like discriminator (spec section 4.1)."""

    ndim: Literal[2, 3] | None = None
    """2 judges every frame, 3 the clip; null takes the VQGAN's."""
    base_channels: int = 64
    channel_multipliers: tuple[int, ...] = (2, 4, 4, 4, 4)
    clip_shape: tuple[int, int, int] | None = None
    """(t, h, w) for which its first dense layer is built (2D ignores t); null takes that of the clips."""
    resample: Literal["average", "blur"] = "average"
    """How sides are halved; `blur`, a [1, 3, 3, 1] kernel, is 2D only and in no configuration of the paper."""

    def __post_init__(self) -> None:
        """Refuses sizes that no network can have."""
        sizes = {"base_channels": self.base_channels, "channel_multipliers": min(self.channel_multipliers, default=1)}
        refuse_below_one("discriminator", sizes | {"clip_shape": min(self.clip_shape or (1,))})


@dataclass(frozen=True, kw_only=True)
class VQGANLossConfig:
    """Weights of stage 1's losses (spec: MAGVIT section 3.1 and appendix B)."""

    reconstruction_weight: float = 1.0
    perceptual_weight: float = 0.1
    perceptual: Perceptual = "lpips_vgg"
    """`lpips_vgg`: LPIPS on VGG16; `resnet50_logits`: the released code's recipe; `random`: LPIPS on an untrained
    AlexNet, for demos and tests only. Trained weights are read from the folder of the environment variable
    MAGVIT_WEIGHTS, or from ~/.cache/magvit_scale/weights."""
    adversarial_weight: float = 0.1
    adaptive_weight: bool = False
    """Also weighs the adversarial loss so that its gradient is as large as that of the others, as VQGAN does; MAGVIT
    does not."""
    adversarial_start: int = 0
    """First step with a discriminator; = run.steps trains without one."""
    r1_weight: float = 10.0
    """Times the squared gradient norm, without a half."""
    r1_every: int = 1
    """Steps between r1's penalties, each `r1_every` times as heavy (lazy regularisation: StyleGAN2, section 3.1); the
    paper takes every step. loss/r1 is logged in steps that both run.log_every and this divide."""
    lecam_weight: float = 0.001
    commitment_weight: float = 0.25
    entropy_weight: float = 0.1
    entropy_temperature: float = 0.01
    ema_decay: float = 0.999
    """Of the generator's weights and of LeCam's averages."""

    def __post_init__(self) -> None:
        """Refuses a step that never comes."""
        refuse_below_one("loss", {"r1_every": self.r1_every})


@dataclass(frozen=True, kw_only=True)
class TrainVQGANConfig:
    """magvit train-vqgan: clip shards -> tokenizer."""

    run: RunConfig
    clips: ClipsConfig
    model: VQGANConfig = VQGANConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    loss: VQGANLossConfig = VQGANLossConfig()
    optim: OptimConfig = OptimConfig()
    health: HealthConfig = field(default_factory=vqgan_health)
    codebook_use: CodebookUseConfig = field(default_factory=CodebookUseConfig)
    discriminator_deepspeed: str | None = None
    """DeepSpeed's file for the discriminator; null takes run.deepspeed."""
    init: str | None = None
    """Export folder to start from, for instance that of `magvit inflate`; null starts from random weights."""


@dataclass(frozen=True, kw_only=True)
class InflateConfig:
    """magvit inflate: 2D VQGAN -> 3D VQGAN (MAGVIT section 3.1, table 7)."""

    source: str
    """Export folder of a 2D VQGAN."""
    output: str
    """Folder that receives the 3D VQGAN, its unaveraged weights and its discriminator."""
    mode: Inflation = "central"
    temporal_downsample: tuple[bool, ...] = (True, True, False)
    num_frames: int = 16
    """Clip length the discriminator is built for."""
    size_px: int = 128
    """Frame side the discriminator is built for."""
