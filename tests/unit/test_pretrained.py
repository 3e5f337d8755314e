"""Models as files: bit-equal round trips, one-line refusals, and nothing unpickled."""

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import Refusal, TransformerConfig, VQGANConfig
from magvit_scale.pretrained import hash_model, load_config, load_tensors, save_model
from magvit_scale.vqgan.autoencoder import VQGAN

VQGAN_CONFIG = VQGANConfig(
    ndim=2,
    base_channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    temporal_downsample=(False,),
    embedding_dim=4,
    codebook_size=16,
    padding="zeros",
    num_groups=4,
)
TRANSFORMER_CONFIG = TransformerConfig(
    num_layers=1,
    hidden_size=8,
    mlp_dim=8,
    num_heads=2,
    latent_shape=(1, 2, 2),
    codebook_size=16,
    num_classes=0,
    multi_task=False,
    inpainting_token="outpainting",
    dropout=0.25,
)
MODELS: list[tuple[Any, Any]] = [(VQGAN, VQGAN_CONFIG), (CommitTransformer, TRANSFORMER_CONFIG)]


def assert_refused(read: Callable[[], object], match: str) -> None:
    with pytest.raises(Refusal, match=match) as refusal:
        read()
    assert "\n" not in str(refusal.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    VQGAN(VQGAN_CONFIG).save_pretrained(tmp_path / "export")
    return tmp_path / "export"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_weights_overwrite_nothing(dtype: torch.dtype, folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    model = VQGAN.from_pretrained(folder).to(dtype)
    assert_refused(lambda: model.save_pretrained(folder), "VQGAN is in .*16, expected float32.*compute.precision=fp32")
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(("kind", "config"), MODELS)
def test_a_model_comes_back_bit_equal_in_evaluation_mode(kind: Any, config: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = kind(config)
    state = torch.get_rng_state()
    model.save_pretrained(tmp_path / "some" / "folder")
    assert torch.equal(torch.get_rng_state(), state)
    loaded = kind.from_pretrained(tmp_path / "some" / "folder")
    assert loaded.config == config
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_folder_holds_json_and_safetensors_and_nothing_else(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    values = json.loads((folder / "config.json").read_text())
    assert values["model"] == "VQGAN"
    assert values["channel_multipliers"] == [1, 2]


def test_saving_twice_writes_the_same_bytes_and_other_weights_another_hash(folder: Path) -> None:
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    digest = hash_model(folder)
    model = VQGAN.from_pretrained(folder)
    model.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert hash_model(folder) == digest
    with torch.no_grad():
        model.quantizer.codebook[0, 0] += 1e-3
    model.save_pretrained(folder)
    assert hash_model(folder) != digest


def test_given_tensors_are_written_in_place_of_the_models(tmp_path: Path) -> None:
    model = VQGAN(VQGAN_CONFIG)
    averaged = {name: torch.full_like(tensor, 0.5) for name, tensor in model.state_dict().items()}
    save_model(model, VQGAN_CONFIG, tmp_path, averaged)
    assert all((tensor == 0.5).all() for tensor in VQGAN.from_pretrained(tmp_path).state_dict().values())
    assert not (model.quantizer.codebook == 0.5).all()


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    assert_refused(lambda: VQGAN.from_pretrained(tmp_path / "nowhere"), "no config.json, expected .* VQGAN")
    assert_refused(lambda: load_tensors(tmp_path), "model.safetensors.*expected the weights")


def test_a_model_of_another_kind_is_refused(folder: Path) -> None:
    assert_refused(lambda: CommitTransformer.from_pretrained(folder), "is a VQGAN, expected a CommitTransformer")
    assert_refused(lambda: load_config(VQGANConfig, folder, "Discriminator"), "is a VQGAN, expected a Discriminator")


def test_an_unknown_key_in_the_configuration_is_refused(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"num_resblocks": 2}))
    assert_refused(lambda: VQGAN.from_pretrained(folder), r"config\.json.*num_resblocks")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop("quantizer.codebook"), r"1 tensors.*quantizer.codebook: found none, expected \(16, 4\)"),
        (lambda t: t.update(extra=torch.zeros(3)), r"1 tensors.*extra: found \(3,\), expected none"),
        (lambda t: t.update({"quantizer.codebook": torch.zeros(4, 16)}), r"found \(4, 16\), expected \(16, 4\)"),
    ],
)
def test_missing_left_over_and_misshapen_tensors_are_refused(
    folder: Path, change: Callable[[dict], object], match: str
) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    assert_refused(lambda: VQGAN.from_pretrained(folder), match)


def test_truncated_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert_refused(lambda: VQGAN.from_pretrained(folder), "model.safetensors")


class Exploding:
    """Unpickling one calls a function: what a hostile weights file would do."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return pytest.fail, ("a weights file was unpickled",)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_pickles_are_refused_and_not_opened(folder: Path, writer: str) -> None:
    buffer = io.BytesIO()
    if writer == "pickle":
        pickle.dump(Exploding(), buffer)
    else:
        torch.save({"quantizer.codebook": Exploding()}, buffer)
    (folder / "model.safetensors").write_bytes(buffer.getvalue())
    assert_refused(lambda: VQGAN.from_pretrained(folder), "model.safetensors")


@pytest.mark.parametrize("text", [b'{"model": "VQGAN", "ndim"', b"[1, 2]", b"\xff"])
def test_a_broken_config_json_is_refused(folder: Path, text: bytes) -> None:
    (folder / "config.json").write_bytes(text)
    assert_refused(lambda: VQGAN.from_pretrained(folder), r"config\.json")
