"""The official JAX code as one more path of our own figures, where a checkout of it is: its networks with our weights
on our inputs, compiled, on JAX's device of the same kind and in its default arithmetic, TF32 on a GPU.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.plan import Setting
from benchmarks.speed.timing import Work
from magvit_scale.commit.flax import transformer_leaves
from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.flax_tree import Leaf, tree_of
from magvit_scale.vqgan.autoencoder import VQGAN
from magvit_scale.vqgan.flax import vqgan_leaves

CHECKOUT = "MAGVIT_JAX"
"""Environment variable: folder of a checkout of google-research/magvit."""
PACKAGES = ("jax", "flax", "ml_collections")
NAME = "official JAX"
ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
"""What XLA reads at its start where nothing else is asked for: it leaves memory to torch, and keeps to one core."""


def what_is_missing() -> str | None:
    """Why there is no such path; None where there is one."""
    if CHECKOUT not in os.environ:
        return f"{CHECKOUT} does not name a checkout"
    return next((f"{package} is not installed" for package in PACKAGES if not find_spec(package)), None)


def official_tokenize(model: VQGAN, clip: Tensor, setting: Setting) -> dict[str, Work]:
    """The path of 'b c t h w' float32 -> 'b t h w' ids; {} where there is none, as in bf16, which that code does not
    compute in.
    """
    if not _prepare(setting):
        return {}
    return {NAME: compiled(_tokenizer(model), vqgan_leaves(model), clip.movedim(1, -1), method="encode_to_indices")}


def official_detokenize(model: VQGAN, ids: Tensor, setting: Setting) -> dict[str, Work]:
    """The path of 'b t h w' ids -> 'b c t h w' in [0, 1], or {}."""
    if not _prepare(setting):
        return {}
    work = compiled(_tokenizer(model), vqgan_leaves(model), ids, method="decode_from_indices")
    return {NAME: lambda: work().movedim(-1, 1).clamp(0, 1)}


def official_logits(model: CommitTransformer, sequence: Tensor, setting: Setting) -> dict[str, Work]:
    """The path of 'b (told n)' ids -> 'b n k' float32 logits, or {}."""
    if not _prepare(setting):
        return {}
    from videogvt.models.simplified_bert import Bert

    config, (vocabulary, _) = model.config, model.word.weight.shape
    network = Bert(
        vocab_size=vocabulary, hidden_size=config.hidden_size, num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads, intermediate_size=config.mlp_dim,
        max_position_embeddings=len(model.position.weight),
    )  # fmt: skip
    work = compiled(network, transformer_leaves(model), sequence)
    return {NAME: lambda: model.at_latents(work())}


def compiled(network: Any, leaves: Sequence[Leaf], given: Tensor, method: str | None = None) -> Callable[[], Tensor]:
    """One of a Flax network's methods with our weights. It compiles at its first run, so that a JAX without this device
    fails as a path, and answers when the result is there.
    """
    import jax
    from flax.traverse_util import unflatten_dict

    @cache
    def on_device() -> Callable[[], Any]:
        weights, inputs = jax.device_put((unflatten_dict(tree_of(leaves), sep="/"), given.cpu().numpy()))
        return partial(jax.jit(partial(network.apply, method=method)), {"params": weights}, inputs)

    return lambda: torch.from_dlpack(jax.block_until_ready(on_device()()))


def _prepare(setting: Setting) -> bool:
    """Whether there is a path; if so makes the checkout's modules and the device known."""
    if setting.arithmetic == "bf16" or what_is_missing():
        return False
    for name, value in (ENVIRONMENT | {"JAX_PLATFORMS": setting.device.type}).items():
        os.environ.setdefault(name, value)
    if (folder := os.environ[CHECKOUT]) not in sys.path:
        sys.path.append(folder)
    return True


def _tokenizer(model: VQGAN) -> Any:
    """3D-VQ-B, padded as ours."""
    from videogvt.configs.vqgan3d_ucf101_config import get_config

    with _tensorflow_stood_in():
        from videogvt.models.vqvae import VQVAE
    config = get_config("B")
    if model.config.padding == "reflect":
        config.vqvae.custom_conv_padding = "reflect"
    return VQVAE(config)


@contextmanager
def _tensorflow_stood_in() -> Iterator[None]:
    """The checkout's losses import TensorFlow, which nothing here calls. Nobody finds the empty one later: einops would
    take tensors for its.
    """
    sys.modules["tensorflow"] = ModuleType("tensorflow")
    try:
        yield
    finally:
        del sys.modules["tensorflow"]
