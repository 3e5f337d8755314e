"""In place of the package huggingface_hub, which is optional: records what it is told."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


class StandIn(ModuleType):
    """Knows as much of the package as magvit_scale.hub calls."""

    def __init__(self, cache: Path) -> None:
        super().__init__("huggingface_hub")
        self.cache = cache
        self.error: Exception | None = None
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.errors = ModuleType("huggingface_hub.errors")
        self.errors.HTTPError = type("HTTPError", (Exception,), {})  # type: ignore[attr-defined]
        self.constants = ModuleType("huggingface_hub.constants")
        self.constants.ENDPOINT = "https://hub"  # type: ignore[attr-defined]

    def create_repo(self, repo_id: str, **told: Any) -> None:
        self._note("create_repo", repo_id=repo_id, **told)

    def upload_folder(self, **told: Any) -> None:
        self._note("upload_folder", **told)

    def snapshot_download(self, repo_id: str, **told: Any) -> str:
        """A folder of the cache, by its name; as the package answers where it is not there."""
        self._note("snapshot_download", repo_id=repo_id, **told)
        if not (self.cache / repo_id).exists():
            raise FileNotFoundError("Cannot find an appropriate cached snapshot folder\nfor the specified revision")
        return str(self.cache / repo_id)

    def _note(self, name: str, **told: Any) -> None:
        if self.error:
            raise self.error
        self.calls.append((name, told))


def install(monkeypatch: pytest.MonkeyPatch, cache: Path) -> StandIn:
    """What `import huggingface_hub` gives until the test ends; the cache holds a folder for each name."""
    stand_in = StandIn(cache)
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", stand_in.errors)
    return stand_in
