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
    "validation": "Clips that were not trained on: cross-entropy in nats, lower is better; PSNR and SSIM, higher.",
    "mask": "How training asks, and how often the answer is right.",
    "codebook": "How much of the tokenizer's vocabulary is in use.",
    "gan": "How generator and discriminator stand against each other.",
    "optim": "How large the steps are.",
    "perf": "How fast it went.",
}
"""Group of curves -> one sentence; groups are drawn in this order."""

CURVE_WORDS = {
    "loss/reconstruction": "pixel error",
    "loss/perceptual": "difference in network features",
    "loss/generator": "generator against discriminator",
    "loss/generator_total": "all parts of the generator, weighted",
    "loss/discriminator": "real against generated",
    "loss/r1": "slope of the discriminator on real clips",
    "loss/lecam": "distance from the discriminator's averages",
    "loss/quantizer": "latents against their codes",
    "loss/refine": "tokens inside the condition",
    "loss/mask": "masked tokens",
    "loss/reconstruct": "tokens that were visible",
    "loss/commitment": "encoder towards the codebook",
    "loss/codebook": "codebook towards the encoder",
    "loss/entropy": "sharp choices, all codes in use",
    "loss/total": "all parts, weighted",
    "mask/accuracy": "share of masked tokens told right",
    "mask/ratio": "share of tokens that are masked",
    "validation/psnr": "reconstructions against their clips, dB",
    "validation/psnr_moving": "the same where it moves, dB",
    "validation/ssim": "likeness of structure, at most 1",
    "codebook/usage_batch": "share of codes used in a step",
    "codebook/usage_window": "share of codes used lately",
    "codebook/perplexity": "codes in even use",
    "codebook/dead_codes": "share of codes long not used",
    "codebook/oldest_age": "steps of the code that waited longest",
    "gan/accuracy_real": "real clips told to be real",
    "gan/accuracy_fake": "generated clips told to be generated",
    "gan/accuracy": "mean of both: 0.5 knows nothing",
    "gan/logits_real": "verdict on real clips",
    "gan/logits_fake": "verdict on generated clips",
    "gan/lecam_gap": "distance of the verdicts' averages",
    "gan/adaptive_weight": "factor of the adversarial loss",
    "optim/learning_rate": "size of a step",
    "optim/gradient_norm_generator": "generator's gradient before clipping",
    "optim/gradient_norm_discriminator": "discriminator's gradient before clipping",
    "optim/gradient_norm_transformer": "gradient before clipping",
    "optim/loss_scale_generator": "generator's factor of fp16",
    "optim/loss_scale_discriminator": "discriminator's factor of fp16",
    "optim/loss_scale_transformer": "factor of fp16",
    "optim/skipped_updates_generator": "generator's updates that overflowed",
    "optim/skipped_updates_discriminator": "discriminator's updates that overflowed",
    "optim/skipped_updates_transformer": "updates that overflowed",
    "perf/step_s": "seconds per step",
    "perf/samples_per_s": "samples per second",
    "perf/samples_per_s_per_rank": "samples per second and process",
    "perf/frames_per_s": "frames per second",
    "perf/data_wait_s": "seconds per step waiting for data",
    "perf/data_wait_share": "share of a step waiting for data",
    "perf/memory_peak_gb": "most memory, 10^9 bytes",
    "perf/rank_hours": "hours so far, of all processes",
    "perf/tflops": "10^12 operations per second and process",
    "perf/mfu": "share of the device's peak",
}
"""Curve -> what it measures, in a few words."""

RECONSTRUCTION_WORDS = {
    "trained": "Trained tokenizer",
    "inflated": "Inflated 2D tokenizer, before 3D training",
    "mean_image": "The clip's mean image (a still picture)",
}
"""Row of the reconstruction table -> its name."""

METRIC_WORDS = {
    "fvd": ("FVD", "lower"),
    "inception_score": ("Inception score", "higher"),
    "psnr": ("PSNR, dB", "higher"),
    "ssim": ("SSIM", "higher"),
    "lpips": ("LPIPS", "lower"),
}
"""Metric of a protocol -> its name, and which way is better."""
