"""Bidirectional BERT-style transformer over [task][class][latents] (MAGVIT section 3.2; spec sections 5, 6); with
`conditioning: prefix` over [task][class][condition][separator][latents] (spec section 7).

Axes: b batch, n sequence or latent tokens, d hidden, v vocabulary. Vocabulary rows: codebook, classes, the `no class`
row, then the special tokens, which are addressed by negative ids from the end.
"""

from collections.abc import Sequence
from math import isqrt, prod
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from magvit_scale.checkpointing import Recomputing
from magvit_scale.commit.tasks import NUM_SPECIAL_TOKENS
from magvit_scale.config import Refusal, TransformerConfig
from magvit_scale.linear import Linear, linear
from magvit_scale.precision import in_own_precision
from magvit_scale.pretrained import load_model, save_model

LAYER_NORM_EPS = 1e-12


class SelfAttention(nn.Module):
    """Full attention with biased projections (spec section 6)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, config.dropout
        self.query = Linear(config.hidden_size, config.hidden_size)
        self.key = Linear(config.hidden_size, config.hidden_size)
        self.value = Linear(config.hidden_size, config.hidden_size)
        self.out = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """'b n d' -> 'b n d'."""
        query, key, value = (
            rearrange(project(x), "b n (heads d) -> b heads n d", heads=self.num_heads)
            for project in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.out(rearrange(mixed, "b heads n d -> b n (heads d)"))


class Layer(Recomputing):
    """Post-LN: x = LN(x + attention(x)); x = LN(x + mlp(x)) (spec section 6)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.expand = Linear(config.hidden_size, config.mlp_dim)
        self.contract = Linear(config.mlp_dim, config.hidden_size)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """'b n d' -> 'b n d'; under autocast both sums and norms stay in float32."""
        return self.run_part("block", self._compute, x)

    def _compute(self, x: Tensor) -> Tensor:
        x = in_own_precision(self.attention_norm, x + self.dropout(self.attention(x)))
        if torch.is_grad_enabled():  # GELU is of the part that may be computed again, and not of the product before it
            mlp = self.run_part("pointwise", self._contract, self.expand(x))
        else:
            mlp = self.contract(self.expand(x, then_gelu=True))
        return in_own_precision(self.mlp_norm, x + self.dropout(mlp))

    def _contract(self, h: Tensor) -> Tensor:
        return self.contract(F.gelu(h, approximate="tanh"))


class CommitTransformer(Recomputing):
    """Predicts every latent token from what stands ahead of the latents and the latents themselves.

    Args:
        config: `latent_shape`, `codebook_size` and `num_classes` must be filled in.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        if config.latent_shape is None or config.codebook_size is None or config.num_classes is None:
            raise Refusal(
                "model.latent_shape, model.codebook_size and model.num_classes must be known to build the model"
            )
        if (config.conditioning == "prefix") != (config.num_condition_tokens > 0):
            raise Refusal(
                f"model.num_condition_tokens={config.num_condition_tokens} with model.conditioning="
                f"{config.conditioning}: expected a number above 0 for prefix and 0 for all others"
            )
        if config.conditioning == "prefix" and not config.multi_task:
            raise Refusal(
                "model.conditioning=prefix with model.multi_task=false: the separator would share its row with the "
                "class token; set model.multi_task=true"
            )
        self.config = config
        self.codebook_size, self.num_classes = config.codebook_size, config.num_classes
        self.latent_shape = config.latent_shape
        self.num_latents, self.num_prefix_tokens = prod(config.latent_shape), 2 if config.multi_task else 1
        separators = 1 if config.num_condition_tokens else 0
        length = self.num_prefix_tokens + config.num_condition_tokens + separators + self.num_latents
        special = NUM_SPECIAL_TOKENS if config.multi_task else 1
        self.vocabulary = self.codebook_size + self.num_classes + 1 + special
        self.word = nn.Embedding(self.vocabulary, config.hidden_size)
        self.position = nn.Embedding(length, config.hidden_size)
        self.embedding_norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.head = Linear(config.hidden_size, config.hidden_size)
        self.head_norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.head_bias = nn.Parameter(torch.zeros(self.vocabulary))
        self.apply(_init)

    def forward(self, sequence: Tensor) -> Tensor:
        """'b n' int64 ids (negative ids count from the vocabulary's end, spec section 5) -> 'b n v' logits, the head
        tied to the embeddings (spec section 6).
        """
        rows = torch.where(sequence < 0, sequence + self.vocabulary, sequence)
        positions = self.position.weight[: sequence.shape[1]]
        x = self.dropout(self.embedding_norm(self.word(rows) + positions))
        group = isqrt(len(self.layers))
        for first in range(0, len(self.layers), group):
            x = self.run_part("stage", self._run_layers, x, first, first + group)
        x = in_own_precision(self.head_norm, self.head(x, then_gelu=True))
        return linear(x, self.word.weight, self.head_bias)

    def _run_layers(self, x: Tensor, first: int, end: int) -> Tensor:
        for layer in self.layers[first:end]:
            x = layer(x)
        return x

    def build_sequence(
        self, task_tokens: Tensor, labels: Tensor, latents: Tensor, before: Tensor | None = None
    ) -> Tensor:
        """Puts what is told ahead of the latents.

        Args:
            task_tokens: 'b' negative ids; left out of the sequence by a single-task model.
            labels: 'b' class ids, or -1 for the `no class` row.
            latents: 'b n' ids.
            before: 'b m' ids right before the latents, see `Condition.before`.

        Returns:
            'b (told n)' int64.

        Raises:
            Refusal: `before` is longer than in any task that the model was made for.
        """
        classes = self.codebook_size + torch.where(labels < 0, self.num_classes, labels)
        prefix = [task_tokens, classes] if self.config.multi_task else [classes]
        if before is not None and before.shape[1] > (
            most := self.position.num_embeddings - self.num_latents - len(prefix)
        ):
            raise Refusal(
                f"{before.shape[1]} tokens of condition and separator before the latents, the transformer has room for "
                f"{most}; train one with the largest model.num_condition_tokens of its tasks"
            )
        parts = [torch.stack(prefix, dim=1), *([] if before is None else [before]), latents]
        return torch.cat(parts, dim=1)

    def at_latents(self, logits: Tensor, copy: bool = False) -> Tensor:
        """'b (told n) v' -> 'b n k' float32: over the codebook at the latent positions (spec section 6)."""
        return logits[:, -self.num_latents :, : self.codebook_size].to(torch.float32, copy=copy)

    def latent_logits(self, sequence: Tensor) -> Tensor:
        """'b (told n)' ids -> 'b n k' float32 logits over the codebook at the latent positions."""
        # A copy: the answer of a CUDA graph is overwritten by the next, and guidance holds one while it asks again.
        return self.at_latents(self(sequence), copy=True)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors."""
        save_model(self, self.config, folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "CommitTransformer":
        """Reads what `save_pretrained` wrote, in evaluation mode.

        Raises:
            Refusal: the folder holds no transformer, or one of other tensors.
        """
        return load_model(cls, TransformerConfig, folder).eval()


def _init(module: nn.Module) -> None:
    # Cut at two deviations and not rescaled, as the official initialiser (spec section 6).
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def decayed_parameters(model: nn.Module) -> tuple[Sequence[nn.Parameter], Sequence[nn.Parameter]]:
    """Splits parameters into those with weight decay (kernels of linear layers) and those without (spec section 6)."""
    kernels = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Linear)}
    parameters = list(model.parameters())
    return [p for p in parameters if id(p) in kernels], [p for p in parameters if id(p) not in kernels]
