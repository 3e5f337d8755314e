"""Videos longer than a model's clip, out of windows of its length: slid on by a prediction's own frames, or overlapped
and cross-faded (spec section 11). A video is 'b c t h w' float.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from magvit_scale.config import Refusal
from magvit_scale.data.order import keyed_generator


def window_seed(seed: int, window: int) -> int:
    """The seed of a video's window: the first has the video's own, so a video begins as the clip of that seed does."""
    return seed if window == 0 else int(keyed_generator("window", seed, window).integers(1 << 62))


def window_starts(num_frames: int, length: int, overlap: int) -> list[int]:
    """First frames of the windows that cover a video, `overlap` frames shared by neighbours. The last window ends where
    the video does, and so may share more.

    Raises:
        Refusal: the video is shorter than a window, or the overlap leaves nothing new to a window.
    """
    if num_frames < length:
        raise Refusal(f"a video of {num_frames} frames, expected at least the {length} of the models' clips")
    if not 0 <= overlap < length:
        raise Refusal(f"overlap_frames={overlap}: expected at least 0 and less than the {length} frames of a window")
    return [*range(0, num_frames - length, length - overlap), num_frames - length]


def cross_fade(windows: Sequence[Tensor], starts: Sequence[int]) -> Tensor:
    """Joins windows 'b c t h w' that begin at `starts`, in order. Of n shared frames, the later window has the weights
    0, 1/n, ..., (n-1)/n, and what lies before it the rest (spec section 11).
    """
    video = windows[0]
    for window, start in zip(windows[1:], starts[1:], strict=True):
        shared = video.shape[2] - start
        weight = (torch.arange(shared, device=video.device, dtype=video.dtype) / shared)[:, None, None]
        faded = (1 - weight) * video[:, :, start:] + weight * window[:, :, :shared]
        video = torch.cat([video[:, :, :start], faded, window[:, :, shared:]], dim=2)
    return video


def slide(condition: Tensor, num_given: int, num_frames: int, predict: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Predicts on and on: the last frames of what there is are what the next window is given.

    Args:
        condition: 'b c t h w', of which the first `num_given` frames are given to the first window.
        num_given: frames that a prediction starts from.
        num_frames: of the video.
        predict: ('b c num_given h w', number of the window) -> the window 'b c length h w', which begins with the
            given frames as the model sees them; of later windows only what comes after them is taken.

    Returns:
        'b c num_frames h w'.
    """
    video, window = predict(condition[:, :, :num_given], 0), 0
    while video.shape[2] < num_frames:
        window += 1
        predicted = predict(video[:, :, -num_given:], window)
        video = torch.cat([video, predicted[:, :, num_given:]], dim=2)
    return video[:, :, :num_frames]


def lengthened(frames: Tensor, length: int) -> Tensor:
    """Frames 'b c t h w' with the last repeated up to `length`."""
    return torch.cat([frames, frames[:, :, -1:].expand(-1, -1, length - frames.shape[2], -1, -1)], dim=2)
