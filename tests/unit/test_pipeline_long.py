"""Videos longer than a clip: predictions that go on, conditions and reconstructions by windows."""

import pytest
import torch

from magvit_scale.config import Refusal, Task
from magvit_scale.long_video import window_seed
from magvit_scale.pipeline import MagvitPipeline
from tests.tiny_pipeline import CLIP, FEW_STEPS, build, random_clip


@pytest.fixture(scope="module")
def pipeline() -> MagvitPipeline:
    return build()


@pytest.mark.parametrize("task", ["FP", "CFP"])
def test_a_long_prediction_goes_on_from_its_last_frame(pipeline: MagvitPipeline, task: Task) -> None:
    clip, options = random_clip(), {"label": [0, 2], "decoding": FEW_STEPS}
    found = pipeline.extend(task, condition=clip[:, :, :1], num_frames=9, seed=3, **options)
    video = pipeline(task, condition=clip, seed=[3, 4], **options).clips
    for window in (1, 2):
        given = video[:, :, -1:].expand(-1, -1, CLIP[0], -1, -1)
        seeds = [window_seed(3, window), window_seed(4, window)]
        video = torch.cat([video, pipeline(task, condition=given, seed=seeds, **options).clips[:, :, 1:]], dim=2)
    assert torch.equal(found.clips, video[:, :, :9])
    assert len(found.windows) == 3


def test_five_frames_are_given_to_every_window_of_a_long_prediction() -> None:
    pipeline = build(latent_shape=(4, 4, 4))
    clip = torch.rand(1, 3, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    found = pipeline.extend("FP5", condition=clip[0], num_frames=11, num_steps=2).clips
    first = pipeline("FP5", condition=clip, num_steps=2).clips
    given = torch.cat([first[:, :, 3:], first[:, :, -1:].expand(-1, -1, 3, -1, -1)], dim=2)
    second = pipeline("FP5", condition=given, num_steps=2, seed=[window_seed(0, 1)]).clips
    assert torch.equal(found, torch.cat([first, second[:, :, 5:]], dim=2))


def test_a_long_condition_goes_by_overlapping_windows(pipeline: MagvitPipeline) -> None:
    clip = torch.rand(2, 3, 7, 16, 16, generator=torch.Generator().manual_seed(2))
    found = pipeline.windows("OPC", condition=clip, overlap_frames=1, num_steps=2, seed=5)
    parts = [
        pipeline("OPC", condition=clip[:, :, start : start + 4], num_steps=2, seed=[window_seed(s, n) for s in (5, 6)])
        for n, start in enumerate((0, 3))
    ]
    # The later window has the weight 0 on the one frame that both have.
    assert torch.equal(found.clips, torch.cat([parts[0].clips, parts[1].clips[:, :, 1:]], dim=2))
    assert [window.tokens.tolist() for window in found.windows] == [part.decoded.tokens.tolist() for part in parts]
    alone = pipeline.windows("OPC", condition=clip[1], overlap_frames=1, num_steps=2, seed=6).clips
    torch.testing.assert_close(alone[0], found.clips[1], rtol=0, atol=1e-5)  # products of another batch size


def test_a_long_clip_is_reconstructed_by_windows(pipeline: MagvitPipeline) -> None:
    clip = torch.rand(1, 3, 6, 16, 16, generator=torch.Generator().manual_seed(3))
    first, second = (
        pipeline.tokenizer.detokenize(pipeline.tokenizer.tokenize(clip[:, :, start : start + 4])).detach()
        for start in (0, 2)
    )
    middle = (first[:, :, 2:3], 0.5 * first[:, :, 3:] + 0.5 * second[:, :, 1:2])
    expected = torch.cat([first[:, :, :2], *middle, second[:, :, 2:]], dim=2)
    torch.testing.assert_close(pipeline.reconstruct(clip[0], overlap_frames=2), expected, rtol=0, atol=1e-6)


def test_long_videos_that_cannot_be_are_refused(pipeline: MagvitPipeline) -> None:
    clip = random_clip()
    for words, ask in (
        ("OPC .*expected a frame prediction", lambda: pipeline.extend("OPC", condition=clip, num_frames=9)),
        ("0 frames, task FP starts from 1", lambda: pipeline.extend("FP", condition=clip[:, :, :0], num_frames=9)),
        ("num_frames=0", lambda: pipeline.extend("FP", condition=clip, num_frames=0)),
        ("CG .*has no condition", lambda: pipeline.windows("CG", condition=clip)),
        ("3 frames, expected at least the 4", lambda: pipeline.windows("FI", condition=clip[:, :, :3])),
        ("overlap_frames=4", lambda: pipeline.reconstruct(clip, overlap_frames=4)),
    ):
        with pytest.raises(Refusal, match=words):
            ask()
