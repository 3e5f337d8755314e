"""Which tasks of a protocol models are measured by, and that models which are not for it are refused beforehand."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import EvaluateConfig, Refusal, TransformerConfig, VQGANConfig
from magvit_scale.evaluation import choose_tasks, refuse_other_models
from magvit_scale.metrics.protocol import Protocol, RealClips
from magvit_scale.pipeline import MagvitPipeline
from magvit_scale.vqgan.autoencoder import VQGAN

TOY = Protocol(
    name="toy", data_set="none", tasks=("reconstruction", "FP", "CG", "FP5"), num_generated=4, num_folds=1,
    real=RealClips(split="test", rule="even_windows", num_clips=4), num_frames=4, size_px=16, data_resize=(),
    feature_resize=(), quantiser="float", feature_network="random", divisor="n-1",
)  # fmt: skip
TOKENIZER = VQGANConfig(
    ndim=3, base_channels=4, channel_multipliers=(1, 1), num_res_blocks=1, temporal_downsample=(True,), embedding_dim=4,
    codebook_size=8, num_groups=2,
)  # fmt: skip


def pipeline_of(tokenizer: VQGANConfig = TOKENIZER, **changes: Any) -> MagvitPipeline:
    """Models of clips of 4 frames of 16 px."""
    torch.manual_seed(0)
    given = {"num_layers": 1, "hidden_size": 8, "mlp_dim": 8, "num_heads": 1, "codebook_size": 8, "num_classes": 3}
    config = TransformerConfig(**given | {"latent_shape": (2, 8, 8)} | changes)  # type: ignore[arg-type]
    return MagvitPipeline(VQGAN(tokenizer), CommitTransformer(config))


def config_of(*tasks: str) -> EvaluateConfig:
    return EvaluateConfig(protocol="toy", shards="none", tasks=tasks)


def test_without_a_word_all_tasks_are_taken_that_the_models_can_do() -> None:
    assert choose_tasks(config_of(), TOY, None) == ["reconstruction"]
    assert choose_tasks(config_of(), TOY, pipeline_of(tasks=("CG", "FI"))) == ["reconstruction", "CG"]
    assert choose_tasks(config_of(), TOY, pipeline_of()) == ["reconstruction", "FP", "CG", "FP5"]
    assert choose_tasks(config_of("CG", "CG"), TOY, pipeline_of()) == ["CG"]


def test_a_task_that_was_asked_for_and_not_trained_is_refused() -> None:
    words = r"toy generates \(FP\), the transformer was trained for CG; give transformer=FOLDER"
    with pytest.raises(Refusal, match=words):
        choose_tasks(config_of("reconstruction", "FP"), TOY, pipeline_of(tasks=("CG",)))
    with pytest.raises(Refusal, match="no transformer is given"):
        choose_tasks(config_of(), replace(TOY, tasks=("CG",)), None)


@pytest.mark.parametrize(
    ("changes", "pipeline", "found"),
    [
        ({"size_px": 32}, {}, r"\(4, 16, 16\), expected \(4, 32, 32\)"),
        ({"num_frames": 8}, {}, r"\(4, 16, 16\), expected \(8, 16, 16\)"),
        (
            {},
            {"tokenizer": replace(TOKENIZER, ndim=2)},
            r"\(2, 16, 16\), expected \(4, 16, 16\)",
        ),
    ],
)
def test_clips_of_another_size_are_not_measured_as_the_protocols(
    changes: dict[str, Any], pipeline: dict[str, Any], found: str
) -> None:
    """Class-conditional ones too, which no real clip is held against."""
    refuse_other_models(TOY, "CG", pipeline_of(), ["a", "b", "c"])
    with pytest.raises(Refusal, match=found):
        refuse_other_models(replace(TOY, **changes), "CG", pipeline_of(**pipeline), ["a", "b", "c"])


def test_classes_that_the_transformer_does_not_have_are_refused() -> None:
    """A class of -1 would be taken as none, and another list's number as another class."""
    refuse_other_models(TOY, "FP", pipeline_of(), [])
    for classes in ([], ["a", "b"]):
        with pytest.raises(Refusal, match=f"task CG: the shards have {len(classes)} classes, the transformer knows 3"):
            refuse_other_models(TOY, "CG", pipeline_of(), classes)
