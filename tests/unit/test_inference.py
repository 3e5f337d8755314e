"""Trained networks in other numbers, and compiled: the same clips and tokens."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import ComputeConfig, DecodingConfig, Precision, Refusal, TransformerConfig
from magvit_scale.inference import prepare_tokenizer, prepare_transformer
from magvit_scale.pipeline import Generated, MagvitPipeline
from magvit_scale.precision import AUTOCAST_DTYPES
from magvit_scale.vqgan.autoencoder import VQGAN
from tests import tiny_models

CPU = torch.device("cpu")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = tiny_models.vqgan()
    config = TransformerConfig(num_layers=2, hidden_size=16, mlp_dim=32, num_heads=2, latent_shape=(2, 2, 2),
                               codebook_size=tokenizer.config.codebook_size, num_classes=3)  # fmt: skip
    MagvitPipeline(tokenizer, CommitTransformer(config)).save_pretrained(tmp_path)
    return tmp_path


def generate(folder: Path, compute: ComputeConfig) -> Generated:
    """With guidance, which asks the transformer twice in each step."""
    pipeline = MagvitPipeline.from_pretrained(folder, compute=compute)
    decoding = DecodingConfig(num_steps=3, guidance_scale=1.0)
    return pipeline("CFP", condition=tiny_models.random_clip(), label=1, decoding=decoding)


@pytest.mark.parametrize(("precision", "apart"), [("bf16", 2e-2), ("fp16", 2e-3)])
def test_a_transformer_in_16_bits_holds_and_sums_them(precision: Precision, apart: float) -> None:
    """Nothing is converted but ids to vectors and logits to float32."""
    transformer = tiny_models.transformer().eval()
    sequence = torch.randint(10, (8, 14), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = transformer.latent_logits(sequence)
        prepared = prepare_transformer(transformer, ComputeConfig(precision=precision), CPU)
        seen = {output.dtype for output in outputs_of(prepared, sequence)}
        found = prepared.latent_logits(sequence)
    assert {parameter.dtype for parameter in prepared.parameters()} == seen == {AUTOCAST_DTYPES[precision]}
    assert found.dtype == torch.float32
    distance = (found - expected).abs().max() / expected.abs().max()
    assert 0.02 * apart < distance < apart


def outputs_of(model: nn.Module, sequence: Tensor) -> list[Tensor]:
    """What each of its layers gives."""
    outputs: list[Tensor] = []
    hooks = [each.register_forward_hook(lambda _, __, output: outputs.append(output)) for each in model.modules()]
    model(sequence)
    for hook in hooks:
        hook.remove()
    return outputs


@pytest.mark.slow
def test_compiled_networks_generate_the_same_from_whole_graphs(folder: Path) -> None:
    plain, compiled = (generate(folder, ComputeConfig(compile=is_compiled)) for is_compiled in (False, True))
    assert torch.equal(compiled.decoded.tokens, plain.decoded.tokens)
    torch.testing.assert_close(compiled.clips, plain.clips, rtol=0, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 4  # encoder, transformer, a decoding step, decoder
    assert not counters["graph_break"]


def test_a_pipeline_in_16_bits_is_not_saved(folder: Path, tmp_path: Path) -> None:
    pipeline = MagvitPipeline.from_pretrained(folder, compute=ComputeConfig(precision="fp16"))
    with pytest.raises(Refusal, match=r"^CommitTransformer .*16, expected float32"):
        pipeline.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_pipeline_computes_in_16_bits_and_answers_in_32(folder: Path) -> None:
    """The same tokens as clips; sampled ones differ where two are nearly as likely."""
    tokens, clips = torch.arange(16).reshape(2, 8), []
    with tiny_models.without_onednn():
        for precision in PRECISIONS:
            compute = ComputeConfig(precision=precision)
            clips.append(MagvitPipeline.from_pretrained(folder, compute=compute).detokenize(tokens))
            assert generate(folder, compute).clips.dtype == torch.float32
    plain, rounded = clips
    assert 1e-5 < (rounded - plain).abs().max() < 0.1  # a bfloat16 has 8 bits


def test_compiled_convolutions_are_given_channels_last() -> None:
    inputs: list[bool] = []

    def look(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        for node in graph.graph.nodes:
            if "conv3d" in str(node.target):
                inputs.append(is_channels_last(node.args[0].meta["example_value"]))
        return graph.forward

    clip, tokenizer = tiny_models.random_clip(), tiny_models.vqgan()
    expected = tokenizer.detokenize(tokenizer.tokenize(clip))
    tokenizer.compile(backend=look)
    torch.testing.assert_close(tokenizer.detokenize(tokenizer.tokenize(clip)), expected, rtol=0, atol=1e-4)
    assert len(inputs) > 20
    assert all(inputs)


def is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last_3d)


def test_a_tokenizer_that_is_prepared_keeps_its_tensors() -> None:
    tokenizer = tiny_models.vqgan()
    before = {name: tensor.clone() for name, tensor in tokenizer.state_dict().items()}
    with tiny_models.without_onednn():
        prepared = prepare_tokenizer(tokenizer, ComputeConfig(precision="bf16", compile=True), CPU)
    assert isinstance(prepared, VQGAN)
    assert before.keys() == prepared.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in prepared.state_dict().items())
