"""The official code as a path, by a checkout and a JAX that compute nothing: what they are asked, and for what."""

import os
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest

from benchmarks.speed.official import ENVIRONMENT, official_tokenize, what_is_missing
from benchmarks.speed.plan import Setting
from benchmarks.speed.workloads import inference
from magvit_scale.vqgan.autoencoder import VQGAN
from tests.unit.benchmarks.test_speed import CPU, NAMES, TOY

ANSWERS = {
    "encode_to_indices": np.ones((1, 2, 8, 8), np.int32),
    "decode_from_indices": np.full((1, 4, 16, 16, 3), 2.0, np.float32),
    None: np.arange(2 * 130 * 24, dtype=np.float32).reshape(2, 130, 24),
}


class Network:
    """As Flax's: `apply` with weights. Remembers how it was made and what it was asked."""

    def __init__(self, config: Any = None, **sizes: int) -> None:
        self.sizes = vars(config.vqvae) if config else sizes
        self.asked: list[tuple[str | None, dict[str, Any], np.ndarray]] = []

    def apply(self, variables: dict[str, Any], given: np.ndarray, method: str | None) -> np.ndarray:
        """One of the answers."""
        self.asked.append((method, variables["params"], given))
        return ANSWERS[method]


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Network]]:
    """Those that the checkout's classes made. One of its modules is a file, which imports what it does not need."""
    made: list[Network] = []

    def make(*config: Any, **sizes: int) -> Network:
        made.append(Network(*config, **sizes))
        return made[-1]

    contents: dict[str, dict[str, Any]] = {
        "jax": {"jit": lambda f: f, "device_put": lambda tree: tree, "block_until_ready": lambda result: result},
        "flax.traverse_util": {"unflatten_dict": lambda tree, sep: tree},
        "videogvt.configs.vqgan3d_ucf101_config": {"get_config": lambda _: SimpleNamespace(vqvae=SimpleNamespace())},
        "videogvt.models": {"__path__": [str(tmp_path)]},
        "videogvt.models.simplified_bert": {"Bert": make},
    }
    for name in (*contents, "flax", "ml_collections", "videogvt", "videogvt.configs"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(contents.get(name, {}))
        monkeypatch.setitem(sys.modules, name, module)
    (tmp_path / "vqvae.py").write_text("import tensorflow\nfrom videogvt.models.simplified_bert import Bert as VQVAE\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    with mock.patch.dict(os.environ, MAGVIT_JAX="checkout"):
        for name in (*ENVIRONMENT, "JAX_PLATFORMS"):
            os.environ.pop(name, None)
        yield made
    sys.modules.pop("videogvt.models.vqvae", None)


def test_the_official_code_is_a_path_with_our_weights_on_our_inputs(networks: list[Network]) -> None:
    paths = {workload.name: workload.build().paths for workload in inference(Setting(TOY, "fp32", CPU))}
    assert "tensorflow" not in sys.modules
    assert [name for name, ways in paths.items() if "official JAX" in ways] == list(NAMES[:3])
    assert not any(network.asked for network in networks)  # it compiles only where it is measured
    ids, clip, logits = (paths[name]["official JAX"]() for name in NAMES[:3])
    (tokenize,), (detokenize,), (predict,) = (network.asked for network in networks)
    assert [each[0] for each in (tokenize, detokenize, predict)] == ["encode_to_indices", "decode_from_indices", None]
    assert [each[2].shape for each in (tokenize, detokenize, predict)] == [(1, 4, 16, 16, 3), (1, 2, 8, 8), (2, 130)]
    assert tokenize[1]["encoder/Conv_0/kernel"].shape == (3, 3, 3, 3, 8)
    assert predict[1]["BertLayer_0/BertAttention_0/self_attention/query/kernel"].shape == (16, 4, 4)
    # As our own results: axes, range, and latents' logits alone.
    assert (ids.shape, clip.shape, clip.max()) == ((1, 2, 8, 8), (1, 3, 4, 16, 16), 1.0)
    np.testing.assert_array_equal(logits, ANSWERS[None][:, 2:, :16])


def test_the_official_networks_are_ours(networks: list[Network]) -> None:
    for workload in inference(Setting(TOY, "fp32", CPU))[:3]:
        workload.build()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24}
    vocabulary = networks[2].sizes.pop("vocab_size")
    assert vocabulary > TOY.vqgan.codebook_size
    padding = {"custom_conv_padding": "reflect"}
    assert [network.sizes for network in networks] == [padding, padding, sizes | {"max_position_embeddings": 130}]


def test_it_keeps_to_one_core_of_the_device_unless_told_otherwise(networks: list[Network]) -> None:
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "true"
    model, clip = VQGAN(TOY.vqgan), mock.MagicMock()
    assert list(official_tokenize(model, clip, Setting(TOY, "fp32", CPU))) == ["official JAX"]
    assert "intra_op_parallelism_threads=1" in os.environ["XLA_FLAGS"]
    assert os.environ["JAX_PLATFORMS"] == "cpu"
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "true"
    assert sys.path[-1] == "checkout"
    assert official_tokenize(model, clip, Setting(TOY, "bf16", CPU)) == {}
    assert len(networks) == 1


def test_why_there_is_no_such_path(networks: list[Network], monkeypatch: pytest.MonkeyPatch) -> None:
    assert (what_is_missing(), networks) == (None, [])
    monkeypatch.setattr("benchmarks.speed.official.find_spec", lambda name: None if name == "flax" else name)
    assert what_is_missing() == "flax is not installed"
    assert official_tokenize(VQGAN(TOY.vqgan), mock.MagicMock(), Setting(TOY, "fp32", CPU)) == {}
    monkeypatch.delenv("MAGVIT_JAX")
    assert what_is_missing() == "MAGVIT_JAX does not name a checkout"
