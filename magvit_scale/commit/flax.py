"""Where the transformer's parameters lie in the official Flax tree (spec section 12)."""

from pathlib import Path
from typing import Any

from torch import nn

from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.flax_tree import Leaf, Tree, count_layers, layer_leaves, shape_of

EMBEDDING, HEAD = "BertEmbed_0", "BertMlmLayer_0"
LAYERS = {
    "attention_norm": "BertAttention_0/attention_output_ln",
    "expand": "BertMlp_0/intermediate_output",
    "contract": "BertMlp_0/layer_output",
    "mlp_norm": "BertMlp_0/layer_output_ln",
}
"""Our names of a layer's parts and Flax's, but for the attention's projections."""


def transformer_leaves(model: CommitTransformer) -> list[Leaf]:
    """Every parameter of a transformer; the word embedding is the head's matrix too and lies in the tree once."""
    return [
        *layer_leaves(f"{EMBEDDING}/word_embeddings", model.word),
        *layer_leaves(f"{EMBEDDING}/position_embeddings", model.position),
        *layer_leaves(f"{EMBEDDING}/embeddings_ln", model.embedding_norm),
        *(leaf for index in range(len(model.layers)) for leaf in _layer(model, index)),
        *layer_leaves(f"{HEAD}/mlm_dense", model.head),
        *layer_leaves(f"{HEAD}/mlm_ln", model.head_norm),
        Leaf(f"{HEAD}/mlm_bias/bias", model.head_bias, "v -> v"),
    ]


def _layer(model: CommitTransformer, index: int) -> list[Leaf]:
    layer, path = model.layers[index], f"BertLayer_{index}"
    plain = [leaf for ours, theirs in LAYERS.items() for leaf in layer_leaves(f"{path}/{theirs}", getattr(layer, ours))]
    return [*_attention(f"{path}/BertAttention_0/self_attention", layer.get_submodule("attention"), model), *plain]


def _attention(path: str, attention: nn.Module, model: CommitTransformer) -> list[Leaf]:
    """Flax keeps the heads as an axis of their own."""
    heads, tensors = {"heads": model.config.num_heads}, dict(attention.named_parameters())
    projections = [
        leaf
        for name in ("query", "key", "value")
        for leaf in (
            Leaf(f"{path}/{name}/kernel", tensors[f"{name}.weight"], "d heads k -> (heads k) d", heads),
            Leaf(f"{path}/{name}/bias", tensors[f"{name}.bias"], "heads k -> (heads k)", heads),
        )
    ]
    return [
        *projections,
        Leaf(f"{path}/out/kernel", tensors["out.weight"], "heads k d -> d (heads k)", heads),
        Leaf(f"{path}/out/bias", tensors["out.bias"], "d -> d"),
    ]


def transformer_sizes(tree: Tree, source: str | Path) -> dict[str, Any]:
    """The fields of TransformerConfig that the shapes of a tree tell; what the vocabulary is made of they do not."""
    attention, mlp = "BertLayer_0/BertAttention_0/self_attention", "BertLayer_0/BertMlp_0"
    return {
        "num_layers": count_layers(tree, "BertLayer_"),
        "hidden_size": shape_of(tree, f"{EMBEDDING}/word_embeddings/embedding", 2, source)[1],
        "mlp_dim": shape_of(tree, f"{mlp}/intermediate_output/kernel", 2, source)[1],
        "num_heads": shape_of(tree, f"{attention}/query/kernel", 3, source)[1],
    }
