"""What the page says about tasks and curves, for a reader who knows neither."""

from magvit_scale.config import Task

TASK_WORDS: dict[Task, tuple[str, str]] = {
    "FP": ("Frame prediction", "Only the first frame is given; the model continues it."),
    "FI": ("Frame interpolation", "The first and the last frame are given; the model finds the way between them."),
    "OPC": ("Central outpainting", "Only the middle of every frame is given; the model paints the surroundings."),
    "OPV": (
        "Vertical outpainting",
        "A vertical strip of every frame is given; the model paints what is left and right of it.",
    ),
    "OPH": (
        "Horizontal outpainting",
        "A horizontal strip of every frame is given; the model paints above and below it.",
    ),
    "OPD": ("Dynamic outpainting", "A strip that travels from left to right is given; the model paints the rest."),
    "IPC": ("Central inpainting", "The middle of every frame is cut out; the model fills the hole."),
    "IPD": ("Dynamic inpainting", "A hole travels from left to right; the model fills it."),
    "CG": (
        "Class-conditional generation",
        "No pixel is given, only the class's name; the real clip is just one other of that class.",
    ),
    "CFP": (
        "Class-conditional frame prediction",
        "The first frame and the class's name are given; the model continues the frame.",
    ),
    "FP5": ("Frame prediction from five", "The first five frames are given; the model continues them."),
}
"""Task -> (full name, one sentence)."""

GROUP_WORDS = {
    "loss": "What training makes smaller.",
    "validation": "Cross-entropy in nats on clips that were not trained on; lower is better.",
    "codebook": "How much of the tokenizer's vocabulary is in use.",
    "optim": "How large the steps are.",
}
"""Group of curves -> one sentence; groups are drawn in this order."""

CURVE_WORDS = {
    "loss/reconstruction": "pixel error",
    "loss/perceptual": "difference in network features",
    "loss/generator": "generator against discriminator",
    "loss/discriminator": "real against generated",
    "loss/r1": "slope of the discriminator on real clips",
    "loss/lecam": "distance from the discriminator's averages",
    "loss/quantizer": "latents against their codes",
    "loss/refine": "tokens inside the condition",
    "loss/mask": "masked tokens",
    "loss/reconstruct": "tokens that were visible",
    "codebook/used": "share of codes in use",
    "codebook/perplexity": "codes in even use",
}
"""Curve -> what it measures, in a few words."""

RECONSTRUCTION_WORDS = {
    "trained": "Trained tokenizer",
    "inflated": "Inflated 2D tokenizer, before 3D training",
    "mean_image": "The clip's mean image (a still picture)",
}
"""Row of the reconstruction table -> its name."""
