"""What must start fast and run on machines without a GPU stack imports neither torch nor DeepSpeed."""

import importlib.util
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
TORCH_FREE = ["magvit_scale.cli", "magvit_scale.config", "magvit_scale.progress", "magvit_scale.video"]
TORCH_FREE += ["magvit_scale.data.sources", "magvit_scale.weights", "magvit_scale.fetch_weights"]
TORCH_FREE += ["magvit_scale.compare_results"]
TORCH_FREE += [f"magvit_scale.metrics.{name}" for name in ("protocols", "results", "selection")]
TORCH_FREE += [f"magvit_scale.training.{name}" for name in ("heartbeat", "retention", "rollback", "signals")]
TORCH_FREE += [
    f"{package}.{m.name}"
    for package in ("slurm", "data_prep")
    for m in pkgutil.iter_modules([str(REPOSITORY / package)])
]
CHECK = "import sys, importlib; importlib.import_module(sys.argv[1]); print(*{'torch', 'deepspeed'} & set(sys.modules))"
WITHOUT_ENGINES = ["pipeline", "precompute_tokens", "generate", "evaluate", "judge", "inflate", "export"]


@pytest.mark.parametrize("module", TORCH_FREE)
def test_module_reaches_neither_torch_nor_deepspeed(module: str) -> None:
    assert imported_by(module) == ""


@pytest.mark.parametrize("module", WITHOUT_ENGINES)
def test_what_trains_nothing_reaches_no_deepspeed(module: str) -> None:
    assert imported_by(f"magvit_scale.{module}") == "torch"


def imported_by(module: str) -> str:
    """Which of the two a fresh process has after it."""
    assert importlib.util.find_spec(module), f"{module} is gone; take it off this list"
    answer = subprocess.run(
        [sys.executable, "-c", CHECK, module], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return answer.stdout.strip()
