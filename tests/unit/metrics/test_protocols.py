"""Protocols: their hashes are pinned, and their numbers are those of the papers."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from magvit_scale.config import DecodingConfig, Refusal, dump
from magvit_scale.metrics.protocol import Published
from magvit_scale.metrics.protocols import PROTOCOLS, find_protocol

HASHES = {
    "magvit-ucf101-cg": "1b697bce8b61",
    "magvit-bair-fp": "ddfba361e9fb",
    "magvit-bair-fp-debiased": "6e05d8609aa4",
    "magvit-bair-mt8": "4a88864f0a2e",
    "magvit-k600-fp5": "4cb9901ed16c",
    "magvit-ssv2-mt10": "7800a86f06d4",
    "magvit-recon": "f315fdbeed60",
    "stylegan-v-2048": "3a04ab5ee81e",
    "larp-10k": "818d4acf19b2",
}
"""The first digits. A protocol whose hash changes makes every result under its name a lie: give it a new name."""


def test_no_protocol_has_changed() -> None:
    assert {name: protocol.hash[:12] for name, protocol in PROTOCOLS.items()} == HASHES


def test_the_document_has_every_protocol_with_its_hash() -> None:
    document = (Path(__file__).parents[3] / "docs" / "protocols.md").read_text()
    rows = [line.split("|")[1:3] for line in document.splitlines() if line.startswith("| `")]
    found = {name.strip(" `"): digits.strip(" `") for name, digits in rows}
    assert found == HASHES


def test_the_hash_covers_what_decides_a_figure_and_nothing_else() -> None:
    protocol = find_protocol("magvit-ucf101-cg")
    figure = Published(figure="CG/fvd", model="M", value=1, source="S")
    for same in ({"published": (figure,)}, {"assumptions": "None."}, {"decoding": DecodingConfig(num_steps=24)}):
        assert replace(protocol, **same).hash == protocol.hash
    changes = {
        "name": "mine",
        "psnr_best_of": 2,
        "divisor": "n",
        "quantiser": "uint8_round",
        "real": replace(protocol.real, split="test"),
        "real_of_classes": protocol.real,
        "feature_resize": (replace(protocol.feature_resize[0], rule="half_pixel"),),
        "inception_score": None,
        "frame_stride": 2,
        "seed": 1,
    }
    hashes = {replace(protocol, **{key: value}).hash for key, value in changes.items()}
    assert len(hashes | {protocol.hash}) == len(changes) + 1


def test_conditions_survive_json() -> None:
    for protocol in PROTOCOLS.values():
        text = json.dumps(protocol.conditions())
        assert json.dumps(json.loads(text)) == text
        left_out = {item.name for item in fields(protocol)} - set(protocol.conditions())
        assert left_out == {"decoding", "published", "assumptions"}


def test_every_protocol_survives_a_file(tmp_path: Path) -> None:
    for protocol in PROTOCOLS.values():
        dump(protocol, tmp_path / "protocol.yaml")
        assert find_protocol(str(tmp_path / "protocol.yaml")) == protocol


def test_an_unknown_name_is_refused_with_the_list() -> None:
    with pytest.raises(Refusal, match=r"no protocol 'magvit-ucf'; did you mean magvit-ucf101-cg\? They are magvit-"):
        find_protocol("magvit-ucf")
    with pytest.raises(Refusal, match=r"no protocol 'x'; they are magvit-ucf101-cg, .*larp-10k"):
        find_protocol("x")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("feature_network: videomae", r"'videomae', expected one of \['i3d-ts', 'i3d-sd', 'random'\]"),
        ("classifier: resnet", r"'resnet', expected one of \['c3d-ts', 'c3d-chainer'\]"),
        ("num_folds: 0", "demo-heldout.num_folds=0: expected at least 1"),
        ("real: {split: test, rule: even_windows, num_clips: 0}", "real clips.num_clips=0: expected at least 1"),
        ("inception_score: {num_samples: 64, num_splits: 1, num_repeats: 2}", "128 clips, expected the 64 that"),
        ("data_resize: [{size_px: 32, rule: tf1, antialias: true}]", "rule tf1 with antialias=true, expected false"),
        ("feature_resize: [{size: 32, rule: tf1}]", "Key 'size' not in 'Resize'"),
    ],
)
def test_a_protocol_of_ones_own_that_could_not_be_kept_is_refused(tmp_path: Path, line: str, words: str) -> None:
    """Before hours of work, and instead of another network under its name."""
    demo = (Path(__file__).parents[3] / "configs" / "protocol" / "demo.yaml").read_text().splitlines()
    kept = [other for other in demo if not other.startswith(line.split(":")[0] + ":")]
    (tmp_path / "own.yaml").write_text("\n".join([*kept, line]))
    with pytest.raises(Refusal, match=words) as refusal:
        find_protocol(str(tmp_path / "own.yaml"))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "videos", "real", "generated", "folds", "divisor", "quantiser"),
    [
        ("magvit-ucf101-cg", 9_537, 10_000, 10_000, 4, "n-1", "float"),
        ("magvit-bair-fp", 256, 25_600, 25_600, 4, "n-1", "float"),
        ("magvit-bair-fp-debiased", 256, 25_600, 25_600, 4, "n-1", "float"),
        ("magvit-k600-fp5", None, 50_000, 50_000, 4, "n-1", "float"),
        ("magvit-ssv2-mt10", 24_777, 50_000, 50_000, 4, "n-1", "float"),
        ("magvit-recon", 9_537, 10_000, 10_000, 1, "n-1", "float"),
        ("stylegan-v-2048", 13_320, 2_048, 2_048, 1, "n", "uint8_round"),
        ("larp-10k", 9_537, 10_000, 10_000, 1, "n", "float"),
    ],
)
def test_counts_divisors_and_quantisers(
    name: str, videos: int | None, real: int, generated: int, folds: int, divisor: str, quantiser: str
) -> None:
    protocol = PROTOCOLS[name]
    found = (protocol.real.num_videos, protocol.real.num_clips, protocol.num_generated, protocol.num_folds)
    assert found == (videos, real, generated, folds)
    assert (protocol.divisor, protocol.quantiser) == (divisor, quantiser)


def test_samplers_are_the_papers() -> None:
    found = {
        name: (protocol.decoding.num_steps, protocol.decoding.choice_temperature, protocol.decoding.schedule)
        for name, protocol in PROTOCOLS.items()
        if protocol.decoding
    }
    assert found == {
        "magvit-ucf101-cg": (12, 4.5, "cosine"),
        "magvit-bair-fp": (12, 400.0, "exp"),
        "magvit-bair-fp-debiased": (12, 4.5, "cosine"),
        "magvit-bair-mt8": (12, 4.5, "cosine"),
        "magvit-k600-fp5": (12, 7.5, "uniform"),
        "magvit-ssv2-mt10": (12, 4.5, "cosine"),
    }


def test_the_papers_tasks_average_to_the_papers_mean() -> None:
    """MAGVIT's table of ten tasks prints 27.3 for L and 43.4 for B."""
    for model, mean in (("MAGVIT-L", 27.3), ("MAGVIT-B", 43.4)):
        figures = [entry for entry in PROTOCOLS["magvit-ssv2-mt10"].published if entry.model == model]
        assert [entry.figure.split("/")[0] for entry in figures] == list(PROTOCOLS["magvit-ssv2-mt10"].tasks)
        assert sum(entry.value for entry in figures) / 10 == pytest.approx(mean, abs=0.06)


def test_published_figures_belong_to_the_protocols_tasks() -> None:
    for protocol in PROTOCOLS.values():
        assert {entry.figure.split("/")[0] for entry in protocol.published} <= set(protocol.tasks)
    (large, *_) = PROTOCOLS["magvit-ucf101-cg"].published
    assert (large.model, large.figure, large.value, large.spread) == ("MAGVIT-L", "CG/fvd", 76, 2)
    assert PROTOCOLS["magvit-ssv2-mt10"].real_clips("CG").split == "train"
    assert PROTOCOLS["magvit-ssv2-mt10"].real_clips("CFP").split == "test"
    assert PROTOCOLS["magvit-ucf101-cg"].real_clips("CG").num_clips == 10_000
