"""The transformer against the official class: logits, training loss, gradients of every parameter."""

import os
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch

from magvit_scale.commit.flax import transformer_leaves
from magvit_scale.commit.losses import compute_commit_loss
from magvit_scale.commit.masking import Assignment
from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import CommitLossConfig
from tests.numerics.official import Agree, flax_gradients, imported, list_of, under

REQUIRED = ("bert_ucf101", "bert_bair_multitask")


def names() -> list[str]:
    """Every transformer of the golden folder, and those that must be there; segments are not built."""
    folder = os.environ.get("MAGVIT_GOLDEN_DIR")
    found = {path.stem for path in Path(folder).glob("bert_*.npz")} if folder else set()
    return sorted(name for name in found.union(REQUIRED) if "segment" not in name)


@pytest.mark.parametrize("name", names())
def test_logits_loss_and_gradients(name: str, golden_folder, golden, golden_json, tmp_path, agree: Agree) -> None:
    arrays, facts = golden(f"{name}.npz"), golden_json(f"{name}.json")
    shape, is_multi_task = facts["config"]["transformer"]["latent_shape"], facts["num_special_tokens"] > 1
    model = CommitTransformer.from_pretrained(
        imported(
            "transformer",
            golden_folder / f"{name}.npz",
            tmp_path / "model",
            f"model.latent_shape={list_of(shape)}",
            f"model.codebook_size={facts['codebook_size']}",
            f"model.num_classes={facts['num_classes_incl_uncond'] - 1}",
            f"model.multi_task={str(is_multi_task).lower()}",
        )
    )
    ids = torch.from_numpy(arrays["input_ids"]).long()
    logits, latents = model(ids), slice(-prod(shape), None)
    reason = "float32 through two layers; the issue's bound"
    agree("transformer", "logits", logits, arrays["logits"], tolerance=1e-4, relative=True, reason=reason)
    wrapped = torch.from_numpy(arrays["input_ids_nonnegative"]).long()
    assert torch.equal(model(wrapped), logits)
    assert not arrays["weights"][:, : -prod(shape)].any()

    counts = torch.from_numpy(arrays["weights"][:, latents]).bool()
    nothing = torch.zeros_like(counts)
    # Tokens of weight 0 are here those that are not masked: the part whose weight is set to 0.
    assignment = Assignment(inputs=ids[:, latents], refine=nothing, mask=counts, reconstruct=~counts)
    config = CommitLossConfig(reconstruct_weight=0.0, label_smoothing=facts["label_smoothing"])
    targets = torch.from_numpy(arrays["targets"][:, latents]).long()
    loss = compute_commit_loss(logits[:, latents, : model.codebook_size], targets, assignment, config).total
    reason = "float32 softmax and mean"
    agree("transformer", "training loss", loss, arrays["token_loss"], tolerance=1e-6, relative=True, reason=reason)

    loss.backward()
    gradients, expected = flax_gradients(transformer_leaves(model)), under(arrays, "grad")
    assert gradients.keys() == expected.keys()
    scale = max(np.linalg.norm(array) for array in expected.values())
    differences = np.array(
        [
            np.linalg.norm(gradients[path] - array) / max(np.linalg.norm(array), 1e-4 * scale)
            for path, array in expected.items()
        ]
    )
    reason = "relative to each gradient's norm; the issue's bound"
    agree("transformer", "gradients of all parameters", differences, 0 * differences, tolerance=1e-3, reason=reason)
