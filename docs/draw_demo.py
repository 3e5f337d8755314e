"""The README's moving picture, from a finished demo.

    python -m docs.draw_demo runs/demo/generated/samples.npz docs/demo.webp

Rows: frame prediction, frame interpolation, central outpainting, class-conditional generation. Columns: for the first
samples, what is given | what was generated | the real clip.
"""

import sys
from pathlib import Path

import numpy as np
from einops import rearrange, repeat

from magvit_scale.page.pictures import animated_webp

TASKS = ("FP", "FI", "OPC", "CG")
KINDS = ("condition", "generated", "real")
NUM_SAMPLES = 4
SCALE = 2
GAP_PX = 4


def main(samples: str, output: str) -> None:
    """Draws the picture."""
    with np.load(samples, allow_pickle=False) as arrays:
        clips = np.stack([[arrays[f"{task}/{kind}"][:NUM_SAMPLES] for kind in KINDS] for task in TASKS])
        fps = int(arrays["fps"])
    large = repeat(clips, "task kind n t h w c -> task kind n t (h sh) (w sw) c", sh=SCALE, sw=SCALE)
    gaps = [(0, 0)] * 4 + [(0, GAP_PX), (0, GAP_PX), (0, 0)]
    spaced = np.pad(large, gaps, constant_values=255)
    picture = rearrange(spaced, "task kind n t h w c -> t (task h) (n kind w) c")
    Path(output).write_bytes(animated_webp(picture, fps))


if __name__ == "__main__":
    main(*sys.argv[1:])
