"""Small RUN folders for the report: a road's root with a training run, samples and a judgement."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from magvit_scale.config import TASKS
from magvit_scale.metrics.protocols import PROTOCOLS
from magvit_scale.metrics.results import build_result, write_result
from magvit_scale.report import main

RANDOM = np.random.default_rng(0)
GATES = [
    {
        "id": "a",
        "claim": "moving pixels",
        "value": 18.0,
        "baseline": 14.0,
        "unit": "dB",
        "higher_is_better": True,
        "passed": True,
    },
    {
        "id": "d",
        "claim": "class <only>",
        "value": 3.6,
        "baseline": 3.5,
        "unit": "nats",
        "higher_is_better": False,
        "passed": False,
    },
]


def clips(count: int, frames: int = 3, size: int = 8) -> np.ndarray:
    return RANDOM.integers(0, 256, (count, frames, size, size, 3), dtype=np.uint8)


def write_samples(folder: Path, **changes: Any) -> None:
    folder.mkdir(exist_ok=True)
    arrays: dict[str, Any] = {"classes": np.array(["fall", "spin & go"]), "fps": np.int64(8)}
    for task in TASKS:
        arrays |= {f"{task}/{part}": clips(2) for part in ("condition", "generated", "real")}
        arrays[f"{task}/label"] = np.array([1, 0])
    arrays |= {"trajectory/FP/clips": clips(4), "trajectory/FP/fixed": np.ones((4, 2, 2, 2), bool)}
    arrays = {key: value for key, value in (arrays | changes).items() if value is not None}
    np.savez(folder / "samples.npz", **arrays)


def write_judgement(folder: Path, results: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    panels = {name: clips(2) for name in ("original", "reconstruction", "inflated")}
    np.savez(folder / "reconstructions.npz", label=np.array([0, 1]), classes=np.array(["fall", "spin & go"]), **panels)
    (folder / "results.json").write_text(json.dumps(results))


def full_results(gates: list[dict[str, Any]]) -> dict[str, Any]:
    scores = {"psnr": 22.5, "psnr_moving": float("nan"), "psnr_static": 24.25, "ssim": 0.8125}
    return {
        "protocol": {"id": "demo-claims-v1", "clips": 2},
        "models": {"tokenizer": "abc"},
        "reconstruction": {"trained": scores, "mean_image": scores},
        "codebook": {"used": 0.75, "perplexity": 2.5, "counts": [5, 0, 1, 2]},
        "cross_entropy": {task: {"commit": 3.25, "per_position": 3.5, "unigram": 4.75} for task in TASKS},
        "class_conditional": {"commit": 3.625, "per_position": 3.5},
        "gates": gates,
    }


def write_run(folder: Path, lines: list[str], config: str = "run: {}\n") -> None:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    (folder / "config.yaml").write_text(config)


def write_evaluation(root: Path, name: str, fvd: list[float], weights: str = "aa", **changes: Any) -> None:
    protocol = PROTOCOLS["magvit-bair-fp"]
    result = build_result(
        protocol,
        folds={"FP/fvd": fvd},
        weights={"feature_network": weights},
        models={"tokenizer": "abc"},
        decoding=protocol.decoding,
        seeds={"clips": 0},
        data={"shards": "0f"},
        device="cpu",
    )
    (root / "evaluation").mkdir(exist_ok=True)
    write_result(root / "evaluation" / f"{name}.json", replace(result, **changes))


def write_root(root: Path) -> Path:
    """Everything that a road leaves behind, as far as the report reads it."""
    root.mkdir(exist_ok=True)
    lines = [json.dumps({"step": step, "time": 0.0, "loss/mask": 3.0 / (step + 1)}) for step in range(40)]
    write_run(root / "commit", lines, "tokens: elsewhere\n")
    write_samples(root / "generated")
    write_judgement(root / "judgement", full_results(GATES[:1]))
    return root


def text_of(root: Path) -> str:
    """The page that is made of a RUN folder."""
    main([str(root)])
    return (root / "report.html").read_text()
