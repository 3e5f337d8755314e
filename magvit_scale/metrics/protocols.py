"""The protocols by name, as the papers and the code that they come with state them. No torch.

A protocol is never edited: a change is a new name, because figures under the old one are in the world.
"""

import difflib
from dataclasses import replace

from magvit_scale.config import TASKS, DecodingConfig, Refusal, load
from magvit_scale.metrics.protocol import (
    MAGVIT_SCORE,
    STYLEGAN_V_SCORE,
    Protocol,
    Published,
    RealClips,
    Resize,
)

MAGVIT = "MAGVIT, arXiv 2212.05199"
TO_I3D = Resize(size_px=224, rule="tf1")
UCF101_TRAIN_VIDEOS = 9_537  # split 1
BAIR_TEST_VIDEOS = 256
SSV2_TRAIN_VIDEOS, SSV2_TEST_VIDEOS = 168_913, 24_777


def _crop(size_px: int) -> tuple[Resize, ...]:
    return (Resize(size_px=size_px, rule="half_pixel", antialias=True, fit="centre_crop"),)


def _published(task: str, source: str, **models: dict[str, float | tuple[float, float]]) -> tuple[Published, ...]:
    """Figures of models whose names have `_` for `-`; a pair is a value and its spread."""
    return tuple(
        Published(
            figure=f"{task}/{metric}",
            model=model.replace("_", "-"),
            value=value[0] if isinstance(value, tuple) else value,
            spread=value[1] if isinstance(value, tuple) else None,
            source=source,
        )
        for model, figures in models.items()
        for metric, value in figures.items()
    )


UCF101_CG = Protocol(
    name="magvit-ucf101-cg",
    data_set="UCF-101",
    tasks=("CG",),
    real=RealClips(split="train", num_videos=UCF101_TRAIN_VIDEOS, rule="random_windows", num_clips=10_000),
    num_generated=10_000,
    num_folds=4,
    condition_frames=0,
    size_px=128,
    data_resize=_crop(128),
    feature_resize=(TO_I3D,),
    quantiser="float",
    feature_network="i3d-ts",
    divisor="n-1",
    inception_score=MAGVIT_SCORE,
    classifier="c3d-chainer",
    decoding=DecodingConfig(),
    published=_published(
        "CG",
        f"{MAGVIT}, class-conditional generation on UCF-101",
        MAGVIT_L={"fvd": (76, 2), "inception_score": (89.27, 0.15)},
        MAGVIT_B={"fvd": (159, 2), "inception_score": (83.55, 0.14)},
        TATS={"fvd": (332, 18), "inception_score": (79.28, 0.38)},
    ),
    assumptions="Classes are those of the real clips. The release lacks its UCF-101 loader: frames are taken to be cut "
    "from the centre and not flipped.",
)

BAIR_FP = Protocol(
    name="magvit-bair-fp",
    data_set="BAIR robot pushing, camera image_aux1",
    tasks=("FP",),
    real=RealClips(split="test", num_videos=BAIR_TEST_VIDEOS, rule="even_windows", num_clips=25_600),
    num_generated=25_600,
    num_folds=4,
    condition_frames=1,
    size_px=64,
    data_resize=(),
    feature_resize=(TO_I3D,),
    quantiser="float",
    feature_network="i3d-ts",
    divisor="n-1",
    psnr_best_of=100,
    decoding=DecodingConfig(choice_temperature=400.0, schedule="exp"),
    published=_published(
        "FP",
        f"{MAGVIT}, frame prediction on BAIR",
        MAGVIT_L={"fvd": (62, 0.1), "psnr": 19.3, "ssim": 0.787, "lpips": 0.123},
        MAGVIT_B={"fvd": (76, 0.1)},
        RaMViD={"fvd": 84},
        MCVD={"fvd": 90, "psnr": 16.9, "ssim": 0.780},
    ),
    assumptions="Each of the 256 clips is the condition of 100 samples in a fold, and counts 100 times.",
)

BAIR_FP_DEBIASED = replace(
    BAIR_FP,
    name="magvit-bair-fp-debiased",
    real=replace(BAIR_FP.real, windows=15),
    psnr_best_of=1,
    decoding=DecodingConfig(),
    published=_published(
        "FP",
        f"{MAGVIT}, frame prediction on BAIR, debiased",
        MAGVIT_L={"fvd": (31, 0.2)},
        MAGVIT_B={"fvd": (48, 0.1)},
    ),
    assumptions="A fold is 6 2/3 passes over the 3,840 clips in random orders. The appendix prints 47 for B.",
)

BAIR_MT8_FIGURES: dict[str, tuple[float, ...]] = {
    "MAGVIT_L": (31.4, 26.4, 21.3, 21.2, 19.5, 20.9, 21.3, 20.3),
    "MAGVIT_B": (47.2, 36.0, 28.1, 29.0, 27.8, 32.1, 31.1, 31.0),
}
SSV2_FIGURES: dict[str, tuple[float, ...]] = {
    "MAGVIT_L": (33.8, 25.0, 21.1, 16.8, 17.0, 23.5, 13.5, 15.0, 79.1, 28.5),
    "MAGVIT_B": (71.5, 38.0, 38.8, 23.3, 26.1, 33.4, 23.3, 25.3, 94.7, 59.3),
}


def _multi_task_figures(source: str, models: dict[str, tuple[float, ...]]) -> tuple[Published, ...]:
    """FVDs of several tasks, in the order of `TASKS`."""
    return tuple(
        Published(figure=f"{task}/fvd", model=model.replace("_", "-"), value=value, source=f"{MAGVIT}, {source}")
        for model, values in models.items()
        for task, value in zip(TASKS, values, strict=False)
    )


BAIR_MT8 = replace(
    BAIR_FP_DEBIASED,
    name="magvit-bair-mt8",
    tasks=TASKS[:8],
    condition_frames=None,
    published=_multi_task_figures("eight tasks on BAIR", BAIR_MT8_FIGURES),
    assumptions="A fold is 6 2/3 passes over the 3,840 clips in random orders. Without classes, so without CG and CFP.",
)

K600_FP5 = Protocol(
    name="magvit-k600-fp5",
    data_set="Kinetics-600",
    tasks=("FP5",),
    real=RealClips(split="test", rule="even_windows", num_clips=50_000, windows=2, crops=3),
    num_generated=50_000,
    num_folds=4,
    condition_frames=5,
    size_px=128,
    data_resize=_crop(128),
    feature_resize=(Resize(size_px=64, rule="tf1"), TO_I3D),
    quantiser="float",
    feature_network="i3d-ts",
    divisor="n-1",
    decoding=DecodingConfig(choice_temperature=7.5, schedule="uniform"),
    published=_published(
        "FP5",
        f"{MAGVIT}, frame prediction on Kinetics-600",
        MAGVIT_L={"fvd": (9.9, 0.3)},
        MAGVIT_B={"fvd": (24.5, 0.9)},
        VDM={"fvd": (16.2, 0.3)},
        Phenaki={"fvd": (36.4, 0.2)},
    ),
    assumptions="No copy of the data set is complete (29K videos). Windows come in a random order. The step to 64 px "
    "is taken by the rule of the official tool for stored clips.",
)

SSV2_MT10 = Protocol(
    name="magvit-ssv2-mt10",
    data_set="Something-Something-v2",
    tasks=TASKS,
    real=RealClips(split="test", num_videos=SSV2_TEST_VIDEOS, rule="even_windows", num_clips=50_000, windows=2),
    real_of_classes=RealClips(split="train", num_videos=SSV2_TRAIN_VIDEOS, rule="random_windows", num_clips=50_000),
    num_generated=50_000,
    num_folds=4,
    size_px=128,
    data_resize=_crop(128),
    feature_resize=(TO_I3D,),
    quantiser="float",
    feature_network="i3d-ts",
    divisor="n-1",
    decoding=DecodingConfig(),
    published=_multi_task_figures("multi-task generation on SSv2", SSV2_FIGURES),
    assumptions="`test` is the data set's validation split, which has labels. Windows come in a random order.",
)

RECONSTRUCTION = replace(
    UCF101_CG,
    name="magvit-recon",
    tasks=("reconstruction",),
    num_folds=1,
    condition_frames=None,
    inception_score=replace(MAGVIT_SCORE, num_repeats=1),
    decoding=None,
    published=_published(
        "reconstruction",
        f"{MAGVIT}, tables 7 and 14, 3D-VQ by central inflation",
        MAGVIT_L={"fvd": 25, "inception_score": 88.9, "psnr": 22.0, "ssim": 0.701, "lpips": 0.099},
        MAGVIT_B={"fvd": 58, "inception_score": 87.0},
    )
    + _published(
        "reconstruction",
        f"{MAGVIT}, tables 7 and 14, 3D-VQ from scratch",
        MAGVIT_L={"fvd": 45, "inception_score": 87.1, "psnr": 21.8, "ssim": 0.690, "lpips": 0.113},
        MAGVIT_B={"fvd": 127, "inception_score": 82.1},
    ),
    assumptions="One fold of 10,000 as in the configurations of the release; which windows is not said, they are "
    "taken at random as for generation.",
)

STYLEGAN_V_2048 = Protocol(
    name="stylegan-v-2048",
    data_set="UCF-101",
    tasks=("CG",),
    real=RealClips(split="train+test", num_videos=13_320, rule="first_k", num_clips=2_048),
    num_generated=2_048,
    num_folds=1,
    condition_frames=0,
    size_px=256,
    data_resize=(Resize(size_px=256, rule="lanczos", antialias=True, fit="centre_crop"),),
    feature_resize=(Resize(size_px=224, rule="half_pixel"),),
    quantiser="uint8_round",
    feature_network="i3d-ts",
    divisor="n",
    inception_score=STYLEGAN_V_SCORE,
    classifier="c3d-ts",
    assumptions="The first 2,048 videos by name are 16 of UCF-101's 101 classes. Its frames are JPEG of quality 75; "
    "Latte's figures by the same tool have real clips of stride 3. Its cut of x * 127.5 + 128 is a rounding.",
)

LARP_10K = Protocol(
    name="larp-10k",
    data_set="UCF-101",
    tasks=("CG",),
    real=RealClips(split="train", num_videos=UCF101_TRAIN_VIDEOS, rule="tiles_without_replacement", num_clips=10_000),
    num_generated=10_000,
    num_folds=1,
    seed=42,
    condition_frames=0,
    size_px=128,
    data_resize=_crop(128),
    feature_resize=(Resize(size_px=224, rule="half_pixel"),),
    quantiser="float",
    feature_network="i3d-ts",
    divisor="n",
    published=_published("CG", "README of LARP", LARP_L_Long={"fvd": 57}),
    assumptions="Classes are those of the real clips. Seed 42 draws by this program's generator, not by LARP's.",
)

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        UCF101_CG,
        BAIR_FP,
        BAIR_FP_DEBIASED,
        BAIR_MT8,
        K600_FP5,
        SSV2_MT10,
        RECONSTRUCTION,
        STYLEGAN_V_2048,
        LARP_10K,
    )
}


def find_protocol(name: str) -> Protocol:
    """The protocol of a name, or the one in a YAML file with the fields of `Protocol`.

    Raises:
        Refusal: there is none, or the file has another protocol under the name of one of these.
    """
    if name.endswith((".yaml", ".yml")):
        own = load(Protocol, [name])
        if own.name in PROTOCOLS and own.hash != PROTOCOLS[own.name].hash:
            published = PROTOCOLS[own.name].hash[:12]
            raise Refusal(
                f"{name}: {own.name} with hash {own.hash[:12]}, expected {published}; a protocol is never edited, give "
                "yours another name"
            )
        return own
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name, PROTOCOLS, n=1)
        hint = f"did you mean {near[0]}? They are" if near else "they are"
        raise Refusal(f"no protocol {name!r}; {hint} {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
