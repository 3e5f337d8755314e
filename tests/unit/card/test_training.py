"""What a card tells of the data: names, and nothing that opens a door."""

from pathlib import Path
from typing import Any

import pytest

from magvit_scale.card.contents import Part
from magvit_scale.card.training import training_facts
from magvit_scale.config import ClipsConfig, RunConfig, SourceConfig, TrainVQGANConfig
from magvit_scale.run_record import RunRecord


def facts_of(clips: ClipsConfig) -> dict[str, str]:
    config = TrainVQGANConfig(run=RunConfig(folder="unused", steps=1, global_batch_size=1), clips=clips)
    record = RunRecord(config=config, losses={}, environment={}, data=None, num_ranks=None, step=None)
    return training_facts(Part(role="tokenizer", folder=Path(), sha256="", model=None, record=record))


@pytest.mark.parametrize(
    ("clips", "expected"),
    [
        ({"shards": "/data/someone/ucf101"}, "clip shards `ucf101`"),
        ({"shards": "https://user:password@host/data/ucf101?token=secret"}, "clip shards `ucf101`"),
        ({"shards": "s3://key:password@bucket/ucf-{000..009}.tar"}, "clip shards `ucf-{000..009}.tar`"),
        ({"shards": "pipe:curl -H password https://host/x"}, "a stream"),
        (
            {"sources": {"b": SourceConfig(shards="/data/b", weight=2), "a": SourceConfig(shards="/data/a")}},
            "`a` (weight 1), `b` (weight 2)",
        ),
    ],
)
def test_data_are_called_by_their_names_alone(clips: dict[str, Any], expected: str) -> None:
    assert facts_of(ClipsConfig(**clips))["data"] == f"{expected}, split train"


def test_what_a_run_does_not_say_is_not_known() -> None:
    facts = facts_of(ClipsConfig(shards="x", frame_stride=4, num_frames=8, size_px=64))
    assert facts["clips"] == "8 frames of 64 px, every 4 stored frames"
    for name in ("fingerprint of the data", "step of these weights", "ranks"):
        assert facts[name] == "not known"
