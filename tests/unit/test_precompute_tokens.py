import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from magvit_scale import precompute_tokens, tokenizing
from magvit_scale.commit import rules
from magvit_scale.commit.rules import canvas_rules
from magvit_scale.commit.tasks import condition_canvases
from magvit_scale.config import PrecomputeTokensConfig, Refusal, TrainCommitConfig, load
from magvit_scale.data.clips import to_unit_range, views
from magvit_scale.data.token_facts import hash_of, token_shard_name
from magvit_scale.data.token_shards import TokenShards
from magvit_scale.data.token_tar import write_token_tar
from magvit_scale.files import sha256
from magvit_scale.metrics.tokens import codebook_use
from magvit_scale.train_commit import open_shards
from magvit_scale.training import distributed
from magvit_scale.vqgan.autoencoder import VQGAN
from tests import tiny_models, tiny_tokens
from tests.tiny_tokens import LATENT_SHAPE, NUM_CODES, NUM_SHARDS, NUM_VIDEOS

Sources = tuple[Path, Path]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("sources")
    return tiny_tokens.write_clips(folder), tiny_tokens.write_tokenizer(folder / "tokenizer")


@pytest.fixture(scope="module")
def written(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tokens, not to be changed."""
    output = tmp_path_factory.mktemp("tokens") / "train"
    precompute_tokens.main(tiny_tokens.arguments(*sources, output))
    return output


@pytest.fixture
def tokens(written: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    for path in written.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    distributed.stop()
    os.environ.clear()
    os.environ.update(before)


def test_every_view_and_canvas_is_what_the_tokenizer_makes_of_it(sources: Sources, written: Path) -> None:
    config = load(PrecomputeTokensConfig, [], tiny_tokens.arguments(*sources, written))
    tokenizer, shards = VQGAN.from_pretrained(sources[1]), TokenShards.open(written, verify=True)
    assert (shards.num_clips, shards.views, shards.canvases) == (NUM_VIDEOS, 2, ("z", "FP", "OPC"))
    assert (shards.num_shards, shards.latent_shape, shards.codebook_size) == (NUM_SHARDS, LATENT_SHAPE, NUM_CODES)
    for number, stored in enumerate(shards.tokens):
        for row, sample in enumerate(views(config.clips, views=2, seed=0, shard=number)):
            canvases = condition_canvases(to_unit_range(sample["clip"]), ["FP", "OPC"])
            for view in range(2):
                with torch.no_grad():
                    expected = tokenizer.tokenize(canvases[view])
                assert np.mean(stored[row, view] == expected.numpy()) > 0.999


def test_the_manifest_says_what_the_tokens_are_of(sources: Sources, written: Path) -> None:
    content = json.loads((written / "dataset.json").read_text())
    assert content["tokenizer"]["codebook_size"] == NUM_CODES
    assert content["clips"] == {"split": "train", "num_frames": 4, "frame_stride": 1, "sampled_frames": None,
                                "size_px": 16, "horizontal_flip": True}  # fmt: skip
    assert content["rules"] == canvas_rules(["FP", "OPC"])
    assert [line["sha256"] for line in content["shards"]] == [
        sha256(written / token_shard_name(number)) for number in range(NUM_SHARDS)
    ]
    assert str(sources[0]) not in json.dumps(content)


def test_it_says_how_much_of_the_codebook_is_used(
    sources: Sources, written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    precompute_tokens.main(tiny_tokens.arguments(*sources, written))
    z = np.concatenate([tokens[:, :, 0] for tokens in TokenShards.open(written).tokens])
    use = codebook_use(torch.from_numpy(z), NUM_CODES)
    used, perplexity = int((use.counts > 0).sum()), round(use.perplexity, 3)
    expected = f"{written}: codebook use of z: {used} of {NUM_CODES} codes, perplexity {perplexity}\n"
    assert capsys.readouterr().out == expected
    assert 1 < used <= NUM_CODES


def test_verify_says_one_line(sources: Sources, written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    precompute_tokens.main(tiny_tokens.arguments(*sources, written, "verify=0.5", "batch_size=4"))
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"{written}: verified {NUM_SHARDS} videos, {NUM_SHARDS * 6 * 128} tokens: 0 differ, 0 of them between codes "
        "that are equally near"
    ]


def test_verify_finds_tokens_that_are_not_the_tokenizers(sources: Sources, tokens: Path) -> None:
    """One id is another, and everything about the file says that it was written so."""
    path = tokens / token_shard_name(2)
    (shard,) = (tar for tar in TokenShards.open(tokens).tars if tar.path == path)
    changed = np.array(shard.tokens)
    changed[1, 1, 2, 0, 3, 4] = (changed[1, 1, 2, 0, 3, 4] + 1) % NUM_CODES
    write_token_tar(path, changed, shard.labels, shard.read_keys())
    index = {"count": len(changed), "bytes": path.stat().st_size, "sha256": sha256(path)}
    path.with_suffix(".json").write_text(json.dumps(index))
    with pytest.raises(Refusal, match=r"verified 8 videos, 6144 tokens: 1 differ, 0 of them between codes"):
        precompute_tokens.main(tiny_tokens.arguments(*sources, tokens, "verify=1"))


def test_verify_compares_checksums(sources: Sources, tokens: Path) -> None:
    path = tokens / token_shard_name(0)
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(Refusal, match=r"tokens-000000\.tar: its bytes are not those that were written \(sha256\)"):
        precompute_tokens.main(tiny_tokens.arguments(*sources, tokens, "verify=0.01"))


def test_near_ties_are_told_from_differences(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU; here its rule is held against codes of which two are alike and one is far."""
    tokenizer, clips = VQGAN.from_pretrained(sources[1]), torch.rand(2, 3, 4, 16, 16)
    with torch.no_grad():
        common = int(tokenizer.tokenize(clips).mode().values.flatten()[0])
        twin, far = (common + 1) % NUM_CODES, (common + 2) % NUM_CODES
        tokenizer.quantizer.codebook[twin] = tokenizer.quantizer.codebook[common] + 1e-7
        tokenizer.quantizer.codebook[far] = 100.0
        ids = tokenizer.tokenize(clips)
    swapped = torch.where(ids == common, twin, torch.where(ids == twin, common, ids))
    num_swapped = int((swapped != ids).sum())
    assert num_swapped > 1
    assert tokenizing.compare(tokenizer, clips, swapped).near_ties == 0
    monkeypatch.setattr(tokenizing, "EXACT_DEVICES", ())
    expected = tokenizing.Comparison(0, ids.numel(), num_swapped, num_swapped)
    assert tokenizing.compare(tokenizer, clips, swapped) == expected
    assert tokenizing.compare(tokenizer, clips, ids) == tokenizing.Comparison(0, ids.numel(), 0, 0)
    found = tokenizing.compare(tokenizer, clips, torch.full_like(ids, far))
    assert (found.different, found.near_ties) == (ids.numel(), 0)


def test_tokens_in_16_bits_say_so_and_those_without_a_word_are_of_float32(
    sources: Sources, tokens: Path, tmp_path: Path
) -> None:
    output = tmp_path / "bf16"
    with tiny_models.without_onednn():
        precompute_tokens.main(tiny_tokens.arguments(*sources, output, "compute.precision=bf16", "tasks=[FP]"))
    rounded = TokenShards.open(output)
    assert rounded.precision == "bf16"
    equal = [np.mean(a[..., :2, :, :, :] == b) for a, b in zip(TokenShards.open(tokens).tokens, rounded.tokens,
                                                               strict=True)]  # fmt: skip
    assert 0.5 < np.mean(equal) < 1.0  # near ties fall otherwise
    for name in ("source.json", "dataset.json"):  # as an older version wrote them
        content = json.loads((tokens / name).read_text())
        del content["precision"]
        if "hash" in content:
            content["hash"] = hash_of(content)
        (tokens / name).write_text(json.dumps(content))
    precompute_tokens.main(tiny_tokens.arguments(*sources, tokens))
    assert TokenShards.open(tokens).precision == "fp32"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("views=0", "views=0: expected at least 1"),
        ("batch_size=0", "batch_size=0: expected at least 1"),
        ("verify=1.5", "verify=1.5: expected a share of the videos, 0 to 1"),
        ("verify=-0.1", "verify=-0.1: expected a share"),
        ("clips.num_frames=5", "expected multiples of"),
        ("clips.split=test", r"source.json has clips.split=train, this run clips.split=test"),
        ("clips.horizontal_flip=false", r"source.json has clips.horizontal_flip=True, this run"),
        ("compute.precision=bf16", r"source.json has precision=fp32, this run precision=bf16"),
        ("tasks=[FP]", r"source.json has canvases=\['z', 'FP', 'OPC'\], this run"),
    ],
)
def test_refusals(sources: Sources, written: Path, tmp_path: Path, more: str, expected: str) -> None:
    output = tmp_path if "num_frames" in more else written
    before = {path.name: path.read_bytes() for path in written.iterdir()}
    with pytest.raises(Refusal, match=expected):
        precompute_tokens.main(tiny_tokens.arguments(*sources, output, more))
    assert {path.name: path.read_bytes() for path in written.iterdir()} == before


def test_ids_that_do_not_fit_in_sixteen_bits(sources: Sources, tmp_path: Path) -> None:
    tokenizer = tiny_tokens.write_tokenizer(tmp_path / "tokenizer", codebook_size=(1 << 16) + 1)
    with pytest.raises(Refusal, match="65537 codes, expected at most 65536, the ids of 16 bits"):
        precompute_tokens.main(tiny_tokens.arguments(sources[0], tokenizer, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def trainer(sources: Sources, tokens: Path, *more: str) -> TrainCommitConfig:
    run = ["run.folder=unused", "run.steps=1", "run.global_batch_size=1"]
    told = [*run, f"tokens={tokens}", f"tokenizer={sources[1]}", "tasks=[FP,OPC]", *more]
    config: TrainCommitConfig = load(TrainCommitConfig, [], told)
    return config


def test_a_trainer_refuses_tokens_of_another_task_rule(
    sources: Sources, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_shards(str(written), trainer(sources, written)).num_clips == NUM_VIDEOS
    monkeypatch.setattr(rules, "condition_canvases", lambda clip, names: condition_canvases(clip, names).flip(-1))
    with pytest.raises(Refusal, match=r"was written under another rule of the canvas FP \(\w{16}, this version has"):
        open_shards(str(written), trainer(sources, written))
    latent = trainer(sources, written, "model.conditioning=latent")  # shows no canvas, so it does not matter
    assert open_shards(str(written), latent).num_clips == NUM_VIDEOS


def test_a_trainer_refuses_other_tokenizers_incomplete_sets_and_flipped_bits(
    sources: Sources, tokens: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tiny_tokens.write_tokenizer(tmp_path_factory.mktemp("other"), seed=1)
    with pytest.raises(Refusal, match="was written by tokenizer"):
        open_shards(str(tokens), trainer((sources[0], other), tokens))
    content = json.loads((tokens / "dataset.json").read_text())
    fewer = content | {"shards": content["shards"][:-1]}
    (tokens / "dataset.json").write_text(json.dumps(fewer | {"hash": hash_of(fewer)}))
    with pytest.raises(Refusal, match=f"lists {NUM_SHARDS - 1} shards, expected all {NUM_SHARDS}"):
        open_shards(str(tokens), trainer(sources, tokens))
    (tokens / "dataset.json").write_text(json.dumps(content))
    path = tokens / token_shard_name(1)
    data = bytearray(path.read_bytes())
    data[900] ^= 16
    path.write_bytes(data)
    assert open_shards(str(tokens), trainer(sources, tokens)).num_clips == NUM_VIDEOS
    with pytest.raises(Refusal, match=r"tokens-000001\.tar: its bytes are not those that were written"):
        open_shards(str(tokens), trainer(sources, tokens, "verify_tokens=true"))
    path.unlink()
    with pytest.raises(Refusal, match=r"tokens-000001\.tar: missing, expected \d+ bytes; delete it and run"):
        open_shards(str(tokens), trainer(sources, tokens))


def test_rules_tell_canvases_apart() -> None:
    names = ("FP", "FI", "OPC", "OPV", "OPH", "OPD", "IPC", "IPD", "FP5")
    found = canvas_rules(names)
    assert len(set(found.values())) == len(names)
    assert canvas_rules(["OPC"]) == {"OPC": found["OPC"]}
    # Tokens that were written before an update must stay of use: this changes only with a rule.
    assert found["FP"] == "45b87b05ea3f0251"


def test_help_explains_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        precompute_tokens.main(["--help"])
    text = capsys.readouterr().out
    for key in ("tokenizer", "output", "tasks", "views", "batch_size", "verify", "seed", "clips.split"):
        assert f"  {key}  (" in text
    assert "tokenized once more at the end and compared" in text
