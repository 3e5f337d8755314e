"""Flax trees: the official names and shapes, the same bits back, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from magvit_scale.cli import main
from magvit_scale.commit.flax import transformer_leaves
from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import DiscriminatorConfig, Refusal, TransformerConfig, VQGANConfig
from magvit_scale.flax_tree import Leaf, Tree, fill_from_tree, read_tree, tree_of
from magvit_scale.pretrained import load_tensors
from magvit_scale.vqgan.autoencoder import VQGAN
from magvit_scale.vqgan.discriminator import Discriminator
from magvit_scale.vqgan.flax import discriminator_leaves, vqgan_leaves

SMALL = VQGANConfig(
    base_channels=8,
    channel_multipliers=(1, 2, 2),
    num_res_blocks=2,
    temporal_downsample=(True, False),
    embedding_dim=4,
    codebook_size=16,
    num_groups=4,
)
JUDGE = DiscriminatorConfig(ndim=3, base_channels=4, channel_multipliers=(2, 3), clip_shape=(4, 8, 8))
BERT = TransformerConfig(
    num_layers=2,
    hidden_size=16,
    mlp_dim=32,
    num_heads=4,
    latent_shape=(2, 2, 2),
    codebook_size=8,
    num_classes=3,
)
NETWORKS: dict[str, tuple[nn.Module, Callable[..., list[Leaf]]]] = {
    "vqgan3d": (VQGAN(SMALL), vqgan_leaves),
    "discriminator3d": (Discriminator(JUDGE), discriminator_leaves),
    "transformer": (CommitTransformer(BERT), transformer_leaves),
}
SWITCHES = {
    "vqgan3d": ("model.num_groups=4", "model.temporal_downsample=[true,false]"),
    "discriminator3d": ("discriminator.clip_shape=[4,8,8]",),
    "transformer": ("model.latent_shape=[2,2,2]", "model.codebook_size=8", "model.num_classes=3"),
}


def tree(kind: str) -> Tree:
    network, leaves = NETWORKS[kind]
    return tree_of(leaves(network))


def arguments(kind: str, params: Path, out: Path, *more: str) -> list[str]:
    return ["import-flax", "--kind", kind, "--params", str(params), "--out", str(out), *SWITCHES[kind], *more]


def refused(argv: list[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main(argv)
    said = str(end.value.code)
    assert "\n" not in said
    return said


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_parameter_has_one_place(kind: str) -> None:
    network, leaves = NETWORKS[kind]
    listed = leaves(network)
    assert len({leaf.path for leaf in listed}) == len(listed)
    assert sorted(id(leaf.parameter) for leaf in listed) == sorted(map(id, network.parameters()))
    assert not list(network.buffers())


def test_names_and_shapes_are_those_of_the_official_3d_base_model() -> None:
    with torch.device("meta"):
        leaves = vqgan_leaves(VQGAN(VQGANConfig()))
    shapes = {leaf.path: tuple(leaf.parameter.shape) for leaf in leaves}
    expected = {  # spec section 12, in torch's order of axes
        "encoder/Conv_0/kernel": (64, 3, 3, 3, 3),
        "encoder/ResBlock_2/Conv_2/kernel": (128, 64, 1, 1, 1),
        "encoder/ResBlock_6/Conv_2/kernel": (256, 128, 1, 1, 1),
        "encoder/ResBlock_9/Conv_1/kernel": (256, 256, 3, 3, 3),
        "encoder/Conv_1/bias": (256,),
        "quantizer/codebook": (1024, 256),
        "decoder/Conv_0/bias": (256,),
        "decoder/Conv_1/kernel": (256, 256, 3, 3, 3),
        "decoder/ResBlock_4/Conv_2/kernel": (128, 256, 1, 1, 1),
        "decoder/Conv_3/kernel": (128, 128, 3, 3, 3),
        "decoder/ResBlock_8/Conv_2/kernel": (64, 128, 1, 1, 1),
        "decoder/GroupNorm_0/scale": (64,),
        "decoder/Conv_4/kernel": (3, 64, 3, 3, 3),
    }
    assert {path: shapes[path] for path in expected} == expected
    assert {path for path in shapes if path.endswith("Conv_2/kernel") and "ResBlock" in path} == {
        path for path in expected if path.endswith("Conv_2/kernel")
    }


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_round_trip_through_both_commands_gives_the_same_bits(kind: str, tmp_path: Path) -> None:
    params, out, back = tmp_path / "params.npz", tmp_path / "model", tmp_path / "back.npz"
    np.savez(params, **tree(kind))
    main(arguments(kind, params, out))
    own = NETWORKS[kind][0].state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in load_tensors(out).items())
    main(["export-flax", "--model", str(out), "--out", str(back)])
    assert read_tree(back).keys() == tree(kind).keys()
    for path, array in read_tree(back).items():
        assert array.dtype == np.float32
        assert np.array_equal(array, tree(kind)[path]), path


@pytest.mark.parametrize("kind", NETWORKS)
def test_unread_and_unfilled_tensors_are_named(kind: str, tmp_path: Path) -> None:
    params, out = tmp_path / "params.npz", tmp_path / "model"
    whole = tree(kind)
    np.savez(params, **whole, extra=np.ones(2, np.float32))
    assert "extra has no place in the model" in refused(arguments(kind, params, out))
    for lost in list(whole)[:: len(whole) // 8]:
        np.savez(params, **{path: array for path, array in whole.items() if path != lost})
        assert lost in refused(arguments(kind, params, out)), lost
    assert not out.exists()


def test_wrong_shapes_and_values_are_named() -> None:
    network, leaves = NETWORKS["transformer"]
    whole, name = tree("transformer"), "BertLayer_1/BertMlp_0/layer_output/kernel"
    wrong = {
        "shape": whole[name].T,
        "type": whole[name].astype(np.int32),
        "value": np.where(np.arange(16) == 3, np.nan, whole[name]),
    }
    before = {path: array.copy() for path, array in whole.items()}
    for array in wrong.values():
        with pytest.raises(Refusal, match=name):
            fill_from_tree(leaves(network), whole | {name: array}, "here")
    assert all(np.array_equal(array, before[path]) for path, array in tree("transformer").items())


def test_a_config_that_disagrees_with_the_tree_is_refused(tmp_path: Path) -> None:
    params, out = tmp_path / "params.npz", tmp_path / "model"
    np.savez(params, **tree("vqgan3d"))
    assert "encoder/Conv_0/kernel" in refused(arguments("vqgan3d", params, out, "model.base_channels=16"))
    said = refused(arguments("vqgan3d", params, out, "model.ndim=2"))
    assert "model.ndim=2, --kind says 3" in said
    assert "nothing here" in refused(arguments("vqgan3d", params, out, "model.nothing here=1"))
    said = refused([*arguments("transformer", params, out)])
    assert "BertEmbed_0/word_embeddings/embedding is not there" in said


def test_the_yaml_of_a_training_run_says_the_rest(tmp_path: Path) -> None:
    params, out, run = tmp_path / "params.npz", tmp_path / "model", tmp_path / "run.yaml"
    np.savez(params, **tree("vqgan3d"))
    run.write_text("run: {steps: 10}\nmodel: {num_groups: 4, padding: zeros, temporal_downsample: [false, true]}\n")
    main(["import-flax", "--kind", "vqgan3d", "--params", str(params), "--out", str(out), str(run)])
    config = VQGAN.from_pretrained(out).config
    assert (config.padding, config.temporal_downsample) == ("zeros", (False, True))
    assert (config.base_channels, config.channel_multipliers, config.num_res_blocks) == (8, (1, 2, 2), 2)


def write_parts(folder: Path, stem: str, parts: list[Tree]) -> Path:
    folder.mkdir(exist_ok=True)
    for number, part in enumerate(parts):
        np.savez(folder / f"{stem}.params-{number}.npz", **part)
    return folder


def test_parts_of_one_tree_are_read_together(tmp_path: Path) -> None:
    whole = {f"layer_{index:02d}/kernel": np.full(3, index, np.float32) for index in range(12)}
    folder = write_parts(tmp_path / "parts", "model", [{path: array} for path, array in whole.items()])
    (folder / "model.json").write_text("{}")
    found = read_tree(folder)
    assert {path: array.tolist() for path, array in found.items()} == {k: a.tolist() for k, a in whole.items()}
    (folder / "model.params-10.npz").unlink()
    with pytest.raises(Refusal, match=r"model.params-10.npz is missing"):
        read_tree(folder)


def test_parts_of_two_trees_or_none_are_refused(tmp_path: Path) -> None:
    part = {"a": np.ones(1, np.float32)}
    with pytest.raises(Refusal, match="found parts of one, two"):
        read_tree(write_parts(write_parts(tmp_path / "x", "one", [part]), "two", [part]))
    with pytest.raises(Refusal, match="a is in an earlier part too"):
        read_tree(write_parts(tmp_path / "y", "one", [part, part]))
    with pytest.raises(Refusal, match="found parts of none"):
        read_tree(write_parts(tmp_path / "z", "one", []))


def test_only_the_asked_part_of_a_checkpoint_is_read(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.npz"
    arrays = {"ema_params/a/kernel": np.ones(1), "g_params/a/kernel": np.zeros(1), "ema_params_b/kernel": np.ones(2)}
    np.savez(path, **arrays)
    assert [*read_tree(path, "ema_params")] == ["a/kernel"]
    assert len(read_tree(path)) == 3
    with pytest.raises(Refusal, match="nothing under d_params; it has ema_params, ema_params_b, g_params"):
        read_tree(path, "d_params")
    np.savez(path, **{"params/a": np.ones(1), "logits": np.ones(2)})
    assert [*read_tree(path)] == ["a"]


def test_files_that_are_no_npz_of_plain_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.npz"
    with pytest.raises(Refusal, match="no such file"):
        read_tree(path)
    path.write_bytes(b"no zip at all")
    with pytest.raises(Refusal, match="expected an npz of plain arrays"):
        read_tree(path)
    np.savez(path, a=np.array([{"any": "object"}], dtype=object))
    with pytest.raises(Refusal, match="expected an npz of plain arrays"):
        read_tree(path)
    whole = tmp_path / "whole.npz"
    np.savez(whole, a=np.ones(1000))
    path.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(Refusal, match="expected an npz of plain arrays"):
        read_tree(path)
    np.save(tmp_path / "single.npy", np.ones(3))
    with pytest.raises(Refusal, match="expected an npz of plain arrays"):
        read_tree(tmp_path / "single.npy")


@pytest.mark.parametrize(
    ("kind", "path", "array"),
    [
        ("vqgan3d", "quantizer/codebook", np.ones(32)),
        ("vqgan3d", "quantizer/codebook", np.ones((0, 4))),
        ("vqgan3d", "encoder/Conv_0/kernel", np.ones(())),
        ("vqgan3d", "encoder/Conv_0/kernel", np.ones((3, 3, 3, 3, 0))),
        ("vqgan3d", "encoder/Conv_0/kernel", np.ones((1, 1, 1, 1, 1000))),
        ("discriminator3d", "Dense_0/kernel", np.ones(4)),
        ("transformer", "BertLayer_0/BertAttention_0/self_attention/query/kernel", np.ones(16)),
        ("transformer", "BertLayer_0/BertAttention_0/self_attention/query/kernel", np.ones((16, 3, 5))),
        ("transformer", "BertLayer_0/BertAttention_0/self_attention/query/kernel", np.ones((16, 0, 4))),
    ],
)
def test_odd_shapes_are_refused_before_they_are_taken_for_sizes(
    kind: str, path: str, array: np.ndarray, tmp_path: Path
) -> None:
    params = tmp_path / "params.npz"
    np.savez(params, **(tree(kind) | {path: array.astype(np.float32)}))
    assert refused(arguments(kind, params, tmp_path / "model"))
    assert not (tmp_path / "model").exists()


def test_what_no_tree_tells_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, said in (
        (
            "vqgan3d",
            "padding=reflect, temporal_downsample=(True, False), num_groups=4; the released code has",
        ),
        ("discriminator3d", "clip_shape=(4, 8, 8), resample=average"),
        ("transformer", "inpainting_token=inpainting, conditioning=commit, dynamic_condition=code"),
    ):
        params = tmp_path / f"{kind}.npz"
        np.savez(params, **tree(kind))
        main(arguments(kind, params, tmp_path / kind))
        assert said in capsys.readouterr().out


def test_keys_may_stand_anywhere_and_only_those_of_the_network_are_taken(tmp_path: Path) -> None:
    params, out = tmp_path / "params.npz", tmp_path / "model"
    np.savez(params, **tree("vqgan3d"))
    first, second = SWITCHES["vqgan3d"]
    main(
        ["import-flax", first, "--kind", "vqgan3d", second, "--params", str(params), "--out", str(out), "model.ndim=3"]
    )
    assert "expected keys of this network" in refused(arguments("vqgan3d", params, out, "discriminator.ndim=3"))


def test_what_float32_cannot_hold_is_refused(tmp_path: Path) -> None:
    network, leaves = NETWORKS["vqgan3d"]
    wide = {path: array.astype(np.float64) * 1e300 for path, array in tree("vqgan3d").items()}
    with pytest.raises(Refusal, match="not finite in float32"):
        fill_from_tree(leaves(network), wide, "here")


def test_a_2d_tree_needs_no_flags_of_time(tmp_path: Path) -> None:
    config = VQGANConfig(
        ndim=2, base_channels=4, channel_multipliers=(1,) * 6, num_res_blocks=1, embedding_dim=4, num_groups=2
    )
    network, params = VQGAN(config), tmp_path / "params.npz"
    np.savez(params, **tree_of(vqgan_leaves(network)))
    base = ["import-flax", "--kind", "vqgan2d", "--params", str(params), "--out", str(tmp_path / "model")]
    main([*base, "model.num_groups=2"])
    assert VQGAN.from_pretrained(tmp_path / "model").config == config


def test_one_tree_of_a_folder_with_several_is_named(tmp_path: Path) -> None:
    folder = write_parts(tmp_path / "x", "one", [{"a": np.ones(1, np.float32)}])
    write_parts(folder, "two", [{"b": np.ones(1, np.float32)}, {"c": np.ones(1, np.float32)}])
    assert [*read_tree(folder / "two")] == ["b", "c"]
    lone = tmp_path / "lone"
    lone.mkdir()
    np.savez(lone / "params.npz", d=np.ones(1, np.float32))
    assert [*read_tree(lone)] == ["d"]


def test_a_clip_shape_that_no_square_explains_must_be_given(tmp_path: Path) -> None:
    params, out = tmp_path / "params.npz", tmp_path / "model"
    config = DiscriminatorConfig(ndim=3, base_channels=4, channel_multipliers=(2,), clip_shape=(2, 4, 8))
    np.savez(params, **tree_of(discriminator_leaves(Discriminator(config))))
    base = ["import-flax", "--kind", "discriminator3d", "--params", str(params), "--out", str(out)]
    assert "discriminator.clip_shape must be known" in refused(base)
    # Where it is given the tree need not tell it.
    main([*base, "discriminator.clip_shape=[2,4,8]"])
    assert Discriminator.from_pretrained(out).config == config
