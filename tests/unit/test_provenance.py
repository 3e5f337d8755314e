"""The commit of a checkout, and of nothing that merely lies in one."""

import subprocess
from pathlib import Path

import pytest

from magvit_scale.provenance import git_state, machine

NOBODY = {"commit": None, "is_modified": None}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    git(folder, "init", "-q")
    git(folder, "add", "a.txt")
    git(folder, "-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "a")
    return folder


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_and_whether_files_are_changed(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert git_state(checkout) == {"commit": commit, "is_modified": False}
    (checkout / "new.txt").write_text("results and the like are no change")
    assert git_state(checkout) == {"commit": commit, "is_modified": False}
    (checkout / "a.txt").write_text("b")
    assert git_state(checkout) == {"commit": commit, "is_modified": True}


def test_a_folder_within_somebody_elses_checkout_has_no_commit(checkout: Path) -> None:
    (checkout / "site-packages").mkdir()
    assert git_state(checkout / "site-packages") == NOBODY


def test_without_a_checkout_a_commit_or_git_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_state(tmp_path) == NOBODY
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) == NOBODY
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) == NOBODY


def test_a_machine_names_its_device_and_versions() -> None:
    facts = machine("one GPU")
    assert facts["device"] == "one GPU"
    assert facts["torch"][0].isdigit()
