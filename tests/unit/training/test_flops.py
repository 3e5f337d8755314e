"""Counted operations against the formulas of the papers, and the bits of a counted step."""

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import CodebookUseConfig, DiscriminatorConfig, TransformerConfig, VQGANConfig, VQGANLossConfig
from magvit_scale.training.engine import LossScale
from magvit_scale.training.flops import count_flops
from magvit_scale.vqgan.autoencoder import VQGAN
from magvit_scale.vqgan.blocks import ResidualBlock
from magvit_scale.vqgan.codebook_use import CodebookUse
from magvit_scale.vqgan.discriminator import Discriminator
from magvit_scale.vqgan.losses import LeCam
from magvit_scale.vqgan.step import VQGANTraining, vqgan_step

DEVICES = pytest.mark.parametrize("device", ["cpu", "meta"])
CLIP_SHAPE = (4, 8, 8)
NUM_VOXELS = 4 * 8 * 8


def counted(function: Callable[[], object]) -> float:
    return count_flops(function)[1]


def learning(network: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    return lambda: network(x).square().mean().backward()


def test_what_the_step_returns_is_handed_on() -> None:
    assert count_flops(lambda: "metrics") == ("metrics", 0.0)


@DEVICES
def test_a_convolution_costs_its_taps_times_its_voxels_and_thrice_that_with_both_gradients(device: str) -> None:
    layer = nn.Conv3d(4, 6, 3, padding=1, padding_mode="reflect", device=device)
    forward = 2 * (2 * NUM_VOXELS) * 27 * 4 * 6
    x = torch.ones(2, 4, *CLIP_SHAPE, device=device)
    assert counted(lambda: layer(x)) == forward
    assert counted(learning(layer, x)) == 2 * forward
    assert counted(learning(layer, x.clone().requires_grad_())) == 3 * forward


@DEVICES
def test_r1_costs_the_forward_six_times(device: str) -> None:
    """The logits and their gradient towards x; that gradient's own towards the weight and the logits; theirs, again
    towards the weight and x.
    """
    layer = nn.Conv3d(4, 6, 3, padding=1, device=device)
    x = torch.ones(2, 4, *CLIP_SHAPE, device=device, requires_grad=True)

    def penalty() -> None:
        (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()

    assert counted(penalty) == 6 * (2 * (2 * NUM_VOXELS) * 27 * 4 * 6)


@DEVICES
def test_a_residual_block(device: str) -> None:
    block = ResidualBlock(3, 4, 6, num_groups=2, padding="reflect").to(device)
    x = torch.ones(2, 4, *CLIP_SHAPE, device=device, requires_grad=True)
    assert counted(learning(block, x)) == 3 * 2 * (2 * NUM_VOXELS) * (27 * 4 * 6 + 27 * 6 * 6 + 4 * 6)


@pytest.mark.parametrize(
    ("backend", "backward_products"), [(SDPBackend.MATH, 4), (SDPBackend.FLASH_ATTENTION, 5)], ids=["math", "flash"]
)
def test_attention_is_counted_in_every_kernel(backend: SDPBackend, backward_products: int) -> None:
    """Forward the scores and their mix; backward two products each, and fused kernels make the scores again."""
    batch, heads, length, width = 2, 3, 16, 8
    tokens = [torch.ones(batch, heads, length, width, requires_grad=True) for _ in range(3)]
    with sdpa_kernel(backend):
        found = counted(lambda: F.scaled_dot_product_attention(*tokens).sum().backward())
    assert found == (2 + backward_products) * 2 * batch * heads * length**2 * width


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_transformer_costs_six_per_weight_and_token_and_its_attention(dropout: float) -> None:
    layers, hidden, mlp, length = 3, 16, 48, 2 + 2 * 4 * 4
    config = TransformerConfig(num_layers=layers, hidden_size=hidden, mlp_dim=mlp, num_heads=2, latent_shape=(2, 4, 4),
                               codebook_size=20, num_classes=5, dropout=dropout)  # fmt: skip
    with torch.device("meta"):
        model = CommitTransformer(config)
        ids = torch.zeros(7, length, dtype=torch.int64)
    weights = layers * (4 * hidden**2 + 2 * hidden * mlp) + hidden**2 + hidden * model.vocabulary
    attention = 12 * layers * length**2 * hidden
    assert counted(learning(model, ids)) == 7 * (6 * weights * length + attention)


def test_recomputation_is_counted() -> None:
    """What checkpointing runs again: all but the last product, for whose gradients its input is enough."""
    network = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5))
    x = torch.ones(3, 5, requires_grad=True)
    once = 2 * 3 * 5 * 5
    assert counted(learning(network, x)) == 9 * once
    assert counted(learning(lambda y: checkpoint(network, y, use_reentrant=False), x)) == 11 * once


class Engine:
    """What a step needs of an engine, with AdamW inside."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.scale = module, LossScale("fp32")
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)

    def __call__(self, x: Tensor) -> object:
        return self.module(x)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> Tensor:
        self.optimizer.step()
        self.optimizer.zero_grad()
        return torch.zeros(())


def vqgan_training() -> VQGANTraining:
    torch.manual_seed(0)
    model = VQGANConfig(base_channels=8, channel_multipliers=(1, 2), num_res_blocks=1, temporal_downsample=(True,),
                        embedding_dim=4, codebook_size=8, num_groups=4)  # fmt: skip
    discriminator = DiscriminatorConfig(ndim=3, base_channels=4, channel_multipliers=(2, 2), clip_shape=CLIP_SHAPE)
    loss = VQGANLossConfig(perceptual="none", perceptual_weight=0.0)
    return VQGANTraining(generator=Engine(VQGAN(model)), discriminator=Engine(Discriminator(discriminator)),
                         perceptual=None, lecam=LeCam(0.9), loss=loss, mean_over_ranks=lambda value: value,
                         sum_over_ranks=lambda value: value, codebook_use=CodebookUse(8, CodebookUseConfig()),
                         guard=lambda values: None)  # fmt: skip


def train_vqgan(call: Callable[[Callable[[], object]], object]) -> list[Tensor]:
    training = vqgan_training()
    clip = torch.rand(2, 3, *CLIP_SHAPE, generator=torch.Generator().manual_seed(1))
    for step in range(3):
        call(lambda step=step: vqgan_step(training, [clip], step))  # type: ignore[misc]
    networks = (training.generator.module, training.discriminator.module, training.lecam)
    return [tensor for network in networks for tensor in network.state_dict().values()]


def train_transformer(call: Callable[[Callable[[], object]], object]) -> list[Tensor]:
    torch.manual_seed(0)
    config = TransformerConfig(num_layers=2, hidden_size=16, mlp_dim=32, num_heads=2, latent_shape=(2, 4, 4),
                               codebook_size=20, num_classes=5, dropout=0.1)  # fmt: skip
    engine = Engine(CommitTransformer(config))
    ids = torch.randint(20, (4, 34))

    def step() -> None:
        engine.backward(F.cross_entropy(engine.module(ids).flatten(0, 1), ids.flatten()))
        engine.step()

    for _ in range(3):
        call(step)
    return [*engine.module.state_dict().values(), torch.get_rng_state()]


@pytest.mark.parametrize("train", [train_vqgan, train_transformer])
def test_a_counted_step_is_the_step_to_the_bit(
    train: Callable[[Callable[[Callable[[], object]], object]], Sequence[Tensor]],
) -> None:
    plain = copy.deepcopy(train(lambda step: step()))
    found = train(count_flops)
    assert all(torch.equal(one, other) for one, other in zip(plain, found, strict=True))


def test_a_discriminator_and_its_penalty_add_to_a_step() -> None:
    """The count is of what ran: the same function costs more once the discriminator works."""
    training = vqgan_training()
    clip = torch.zeros(2, 3, *CLIP_SHAPE)
    own = counted(lambda: training.discriminator.module(clip))
    silent = copy.deepcopy(training)
    object.__setattr__(silent, "loss", VQGANLossConfig(perceptual="none", perceptual_weight=0.0, adversarial_start=9))
    extra = counted(lambda: vqgan_step(training, [clip], 0)) - counted(lambda: vqgan_step(silent, [clip], 0))
    # Once forward and back to the input for the generator; fake forward and to the weights; real and r1 six times.
    assert 8 * own < extra < 12 * own
