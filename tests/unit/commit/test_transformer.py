"""The transformer: the paper's sizes, its vocabulary, a layer written by hand, and which parameters decay."""

from math import sqrt

import pytest
import torch
from torch import Tensor

from magvit_scale.commit.tasks import MASK_TOKEN
from magvit_scale.commit.transformer import CommitTransformer, Layer, decayed_parameters
from magvit_scale.config import Refusal, TransformerConfig

BASE = {"num_layers": 12, "hidden_size": 768, "mlp_dim": 3072, "num_heads": 12}
HUGE = {"num_layers": 32, "hidden_size": 1280, "mlp_dim": 5120, "num_heads": 16}
LARGE = {"num_layers": 24, "hidden_size": 1024, "mlp_dim": 4096, "num_heads": 16}


def tiny(**changes: object) -> TransformerConfig:
    defaults = {
        "num_layers": 2,
        "hidden_size": 16,
        "mlp_dim": 24,
        "num_heads": 4,
        "latent_shape": (2, 2, 3),
        "codebook_size": 10,
        "num_classes": 3,
    }
    return TransformerConfig(**(defaults | changes))  # type: ignore[arg-type]


def build(config: TransformerConfig) -> CommitTransformer:
    torch.manual_seed(0)
    model = CommitTransformer(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)  # nothing at 0 or 1
    return model


def random_sequence(model: CommitTransformer, batch: int = 2) -> Tensor:
    latents = torch.randint(0, model.codebook_size, (batch, 12), generator=torch.Generator().manual_seed(0))
    return model.build_sequence(torch.full((batch,), -4), torch.full((batch,), 1), latents)


@pytest.mark.parametrize(
    ("size", "num_classes", "multi_task", "vocabulary", "length", "parameters"),
    [
        (BASE, 101, False, 1127, 1025, 87_301_991),
        (BASE, 0, False, 1026, 1025, 87_224_322),
        (BASE, 0, True, 1041, 1026, 87_236_625),
        (BASE, 174, True, 1215, 1026, 87_370_431),
        (LARGE, 101, False, 1127, 1025, 305_567_847),
        (LARGE, 0, False, 1026, 1025, 305_464_322),
        (LARGE, 0, True, 1041, 1026, 305_480_721),
        (LARGE, 174, True, 1215, 1026, 305_659_071),
        (HUGE, 101, False, 1127, 1025, 634_078_567),
        (HUGE, 0, False, 1026, 1025, 633_949_186),
        (HUGE, 0, True, 1041, 1026, 633_969_681),
        (HUGE, 174, True, 1215, 1026, 634_192_575),
    ],
)
def test_parameters_are_as_many_as_the_official_ones(
    size: dict[str, int], num_classes: int, multi_task: bool, vocabulary: int, length: int, parameters: int
) -> None:
    config = TransformerConfig(
        **size, latent_shape=(4, 16, 16), codebook_size=1024, num_classes=num_classes, multi_task=multi_task
    )
    with torch.device("meta"):
        model = CommitTransformer(config)
    assert (model.vocabulary, model.position.num_embeddings) == (vocabulary, length)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("unknown", ["latent_shape", "codebook_size", "num_classes"])
def test_what_the_token_shards_say_must_be_filled_in(unknown: str) -> None:
    with pytest.raises(Refusal, match=f"model.{unknown}") as refusal:
        CommitTransformer(tiny(**{unknown: None}))
    assert "\n" not in str(refusal.value)


def test_the_sequence_is_task_class_latents() -> None:
    model, latents = build(tiny()), torch.arange(24).reshape(2, 12)
    sequence = model.build_sequence(torch.tensor([-4, -7]), torch.tensor([2, -1]), latents)
    assert model.num_prefix_tokens == 2
    assert sequence[:, :2].tolist() == [[-4, 12], [-7, 13]]  # class 2 is row 10 + 2; `no class` is row 10 + 3
    assert torch.equal(sequence[:, 2:], latents)


def test_a_single_task_sequence_has_no_task_token() -> None:
    model, latents = build(tiny(multi_task=False)), torch.arange(12)[None]
    sequence = model.build_sequence(torch.tensor([-4]), torch.tensor([0]), latents)
    assert model.num_prefix_tokens == 1
    assert sequence.tolist() == [[10, *range(12)]]
    assert model.vocabulary == 10 + 3 + 1 + 1
    assert model.latent_logits(sequence).shape == (1, 12, 10)


@torch.no_grad()
def test_negative_ids_are_rows_from_the_end() -> None:
    model = build(tiny())
    sequence = random_sequence(model)
    sequence[:, [3, 5]] = MASK_TOKEN
    rows = sequence.clone()
    rows[sequence < 0] += 10 + 3 + 1 + 16
    assert rows[:, 3].tolist() == [29, 29]
    assert rows[:, 0].tolist() == [26, 26]
    assert torch.equal(model(sequence), model(rows))


@torch.no_grad()
def test_every_vocabulary_row_means_something_else() -> None:
    model = build(tiny())
    sequence = random_sequence(model, batch=1).repeat(30, 1)
    sequence[:, 4] = torch.arange(30)
    logits = model(sequence).flatten(1)
    assert torch.cdist(logits, logits).fill_diagonal_(1).min() > 1e-3


def layer_norm(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / torch.sqrt(variance + 1e-12) * norm.weight + norm.bias


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(sqrt(2 / torch.pi) * (x + 0.044715 * x**3)))


def linear(x: Tensor, layer: torch.nn.Linear) -> Tensor:
    return torch.einsum("...i,oi->...o", x, layer.weight) + layer.bias


def plain_layer(x: Tensor, layer: Layer, num_heads: int) -> Tensor:
    """Post-LN, one head and one query at a time."""
    attention, size = layer.attention, x.shape[-1] // num_heads
    query, key, value = (linear(x, project) for project in (attention.query, attention.key, attention.value))
    heads = []
    for head in range(num_heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / sqrt(size)
        heads.append(torch.softmax(scores, -1) @ value[..., part])
    a = layer_norm(x + linear(torch.cat(heads, -1), attention.out), layer.attention_norm)
    return layer_norm(a + linear(gelu_tanh(linear(a, layer.expand)), layer.contract), layer.mlp_norm)


@torch.no_grad()
def test_a_layer_is_post_ln_with_tanh_gelu() -> None:
    layer = build(tiny()).layers[0]
    x = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(layer(x), plain_layer(x, layer, 4), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_whole_model_is_its_definition() -> None:
    model = build(tiny())
    sequence = random_sequence(model)
    rows = sequence % model.vocabulary
    x = layer_norm(model.word.weight[rows] + model.position.weight, model.embedding_norm)
    for layer in model.layers:
        x = plain_layer(x, layer, 4)
    x = layer_norm(gelu_tanh(linear(x, model.head)), model.head_norm)
    expected = x @ model.word.weight.T + model.head_bias  # tied to the word embeddings
    torch.testing.assert_close(model(sequence), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.latent_logits(sequence), model(sequence)[:, 2:, :10])


@torch.no_grad()
def test_attention_is_bidirectional() -> None:
    model = build(tiny())
    sequence = random_sequence(model, batch=1)
    changed = sequence.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 10
    assert ((model(sequence) - model(changed)).abs().amax(-1) > 1e-5).all()


@torch.no_grad()
def test_dropout_works_in_training_only() -> None:
    model = build(tiny(dropout=0.5))
    sequence = random_sequence(model)
    assert torch.equal(model(sequence), model(sequence))
    model.train()
    assert not torch.equal(model(sequence), model(sequence))
    without = build(tiny(dropout=0.0)).train()
    assert torch.equal(without(sequence), without(sequence))


@torch.no_grad()
def test_attention_weights_are_dropped_too() -> None:
    attention = build(tiny(dropout=0.5)).layers[0].attention
    x = torch.randn(1, 7, 16)
    assert torch.equal(attention(x), attention(x))
    attention.train()
    assert not torch.equal(attention(x), attention(x))


def test_initial_weights_are_truncated_and_not_rescaled() -> None:
    torch.manual_seed(0)
    model = CommitTransformer(tiny(hidden_size=64, mlp_dim=256))
    for weight in (model.word.weight, model.position.weight, model.layers[0].expand.weight, model.head.weight):
        assert weight.abs().max() <= 0.04
        assert weight.std().item() == pytest.approx(0.0176, rel=0.08)
    ones = [module.weight for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert all((weight == 1).all() for weight in ones)
    zeros = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    assert len(zeros) == 2 * 8 + 4
    assert not any(bias.any() for bias in zeros)
    assert all(module.eps == 1e-12 for module in model.modules() if isinstance(module, torch.nn.LayerNorm))


def test_only_kernels_of_linear_layers_decay() -> None:
    model = build(tiny())
    decayed, others = decayed_parameters(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kernels = {names[id(parameter)] for parameter in decayed}
    linears = ("attention.query", "attention.key", "attention.value", "attention.out", "expand", "contract")
    expected = {f"layers.{i}.{linear}.weight" for i in range(2) for linear in linears} | {"head.weight"}
    assert kernels == expected
    rest = {names[id(parameter)] for parameter in others}
    assert {"word.weight", "position.weight", "head_bias", "head_norm.weight"} <= rest
    assert kernels | rest == set(names.values())
    assert len(decayed) + len(others) == len(names)


def prefix_model(most: int = 4) -> CommitTransformer:
    return build(tiny(conditioning="prefix", num_condition_tokens=most))


def test_condition_tokens_stand_before_the_latents() -> None:
    model, latents, before = prefix_model(), torch.arange(24).reshape(2, 12), torch.tensor([[7, 8, 9, -2]] * 2)
    sequence = model.build_sequence(torch.tensor([-4, -7]), torch.tensor([2, -1]), latents, before)
    assert sequence[1].tolist() == [-7, 13, 7, 8, 9, -2, *range(12, 24)]
    assert model.position.num_embeddings == 2 + 4 + 1 + 12
    assert model.vocabulary == build(tiny()).vocabulary


@torch.no_grad()
def test_latents_are_the_last_positions_however_many_condition_tokens_there_are() -> None:
    model, latents = prefix_model(), torch.arange(12)[None] % 10
    for size in (0, 3, 5):
        before = torch.full((1, size), -2)
        sequence = model.build_sequence(torch.tensor([-4]), torch.tensor([0]), latents, before)
        assert torch.equal(model.latent_logits(sequence), model(sequence)[:, 2 + size :, :10])


def test_more_condition_tokens_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(Refusal, match=r"6 tokens .* room for 5; .*num_condition_tokens"):
        prefix_model().build_sequence(
            torch.tensor([-4]), torch.tensor([0]), torch.zeros(1, 12, dtype=torch.int64), torch.full((1, 6), -2)
        )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_condition_tokens": 3}, "num_condition_tokens=3 .*=commit"),
        ({"conditioning": "prefix"}, "num_condition_tokens=0 .*=prefix"),
        ({"conditioning": "prefix", "num_condition_tokens": 3, "multi_task": False}, "multi_task=true"),
    ],
)
def test_a_prefix_that_contradicts_itself_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(Refusal, match=words) as refusal:
        CommitTransformer(tiny(**changes))
    assert "\n" not in str(refusal.value)
