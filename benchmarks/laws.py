"""What theory expects of a training step: operations, activations, and what ZeRO sends. Pure; no tensor is made."""

import math

from magvit_scale.commit.tasks import NUM_SPECIAL_TOKENS
from magvit_scale.config import TransformerConfig

BYTES = 4
"""Of a float32."""


def sequence_length(config: TransformerConfig) -> int:
    """Tokens of a sequence: task, class and latents."""
    assert config.latent_shape is not None, "the model is known"
    return math.prod(config.latent_shape) + (2 if config.multi_task else 1)


def transformer_flops(config: TransformerConfig, batch: int) -> int:
    """Operations of forward and backward: three times those of the products with weights, which are linear in tokens,
    and attention, which is quadratic: two products forward, five backward where fused attention makes its scores again.
    """
    n, d, layers = sequence_length(config), config.hidden_size, config.num_layers
    weights = layers * (4 * d * d + 2 * d * config.mlp_dim) + d * d + d * vocabulary(config)
    return 3 * 2 * batch * n * weights + (2 + 5) * 2 * batch * n * n * d * layers


def transformer_kept(config: TransformerConfig, batch: int) -> int:
    """Bytes of float32 activations that wait for the backward pass, without dropout: linear in tokens, since fused
    attention keeps a number per row and head and no matrix of scores.

    Per layer eight vectors of `hidden_size` (its input, query, key, value, what attention gives, twice what a norm
    takes, once what it gives), two of `mlp_dim` around GELU, mean and deviation of two norms; five vectors around the
    layers, the logits, and seven numbers of ids, norms and the logits' sum.
    """
    per_layer = 8 * config.hidden_size + 2 * config.mlp_dim + config.num_heads + 4
    per_token = config.num_layers * per_layer + 5 * config.hidden_size + vocabulary(config) + 7
    return BYTES * batch * sequence_length(config) * per_token


def vocabulary(config: TransformerConfig) -> int:
    """Rows of the embedding: codes, classes, `no class`, special tokens."""
    codes, classes = config.codebook_size, config.num_classes
    assert codes is not None, "the model is known"
    assert classes is not None, "the model is known"
    return codes + classes + 1 + (NUM_SPECIAL_TOKENS if config.multi_task else 1)


def exponent(values: tuple[float, float], costs: tuple[float, float]) -> float:
    """The power with which a cost grows between two values."""
    return math.log(costs[1] / costs[0]) / math.log(values[1] / values[0])


def sent_bytes(collective: str, num_bytes: float, world: int) -> float:
    """Bytes that a rank sends in a collective by the best algorithms (rings), on average over the ranks.

    Args:
        collective: `all_reduce`, `all_gather`, `reduce_scatter`, `reduce` or `broadcast`.
        num_bytes: of the whole tensor, before a scatter or after a gather.
        world: ranks.
    """
    rounds = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "reduce": 1, "broadcast": 1}[collective]
    return rounds * num_bytes * (world - 1) / world


def zero_bytes(stage: int, world: int, parameter_bytes: float) -> float:
    """Bytes that a rank sends per step under a ZeRO stage (ZeRO, section 7): gradients are scattered as sums and
    weights gathered, which is an all-reduce; stage 3 gathers the weights once more, for the backward pass.
    """
    return (3 if stage == 3 else 2) * parameter_bytes * (world - 1) / world
