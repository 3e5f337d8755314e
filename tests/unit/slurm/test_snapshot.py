"""What of the checkout and of the configuration files a queued job keeps."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from magvit_scale.config import LaunchConfig, load
from slurm import snapshot
from slurm.plan import plan
from slurm.stages import Stage
from tests.unit.slurm.conftest import Chain


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "checkout"
    for name in snapshot.COPIED:
        (folder / name).mkdir(parents=True)
        (folder / name / "a.py").write_text(f"{name}\n")
    (folder / "magvit_scale" / "__pycache__").mkdir()
    (folder / "magvit_scale" / "__pycache__" / "a.pyc").write_bytes(b"compiled")
    (folder / "notes.txt").write_text("not code")
    monkeypatch.setattr(snapshot, "CHECKOUT", folder)
    return folder


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_the_copy_has_the_code_and_nothing_else(checkout: Path, tmp_path: Path) -> None:
    taken = snapshot.take(tmp_path / "code")
    assert files(taken) == {f"{name}/a.py": f"{name}\n" for name in snapshot.COPIED}
    assert not list(taken.rglob("__pycache__"))
    assert taken == snapshot.path_of(tmp_path / "code")
    assert taken.is_absolute()


def test_the_same_content_is_copied_once(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = snapshot.take(tmp_path / "code")
    (checkout / "slurm" / "__pycache__").mkdir()
    (checkout / "slurm" / "__pycache__" / "a.pyc").write_bytes(b"compiled")
    monkeypatch.setattr(shutil, "copytree", None)
    assert snapshot.take(tmp_path / "code") == first


def test_another_content_or_name_or_place_of_a_byte_is_another_folder(checkout: Path, tmp_path: Path) -> None:
    code = tmp_path / "code"
    taken = [snapshot.take(code)]
    (checkout / "slurm" / "a.py").write_text("SLURM\n")
    taken.append(snapshot.take(code))
    (checkout / "slurm" / "a.py").rename(checkout / "slurm" / "b.py")
    taken.append(snapshot.take(code))
    (checkout / "slurm" / "b.py").write_text("SLURM")
    taken.append(snapshot.take(code))
    assert len(set(taken)) == 4
    assert [files(path).get("slurm/a.py") for path in taken] == ["slurm\n", "SLURM\n", None, None]


def test_a_half_made_copy_of_a_killed_launcher_does_no_harm(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_source: Path, target: Path, **_settings: object) -> None:
        target.mkdir(parents=True)
        (target / "stray.py").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", killed)
        with pytest.raises(KeyboardInterrupt):
            snapshot.take(tmp_path / "code")
    assert not snapshot.path_of(tmp_path / "code").exists()
    taken = snapshot.take(tmp_path / "code")
    assert files(taken) == {f"{name}/a.py": f"{name}\n" for name in snapshot.COPIED}
    assert list((tmp_path / "code").iterdir()) == [taken]


@pytest.fixture
def stage(chain: Chain, tmp_path: Path) -> Stage:
    config = tmp_path / "train.yaml"
    config.write_text("size_px: 1\n")
    chain.add("train", "a=b/c.yaml", configs=[str(config)])
    chain.add_then("look", configs=[str(config)])
    return plan(load(LaunchConfig, [chain.config]))[0]


def test_configuration_files_are_replaced_by_copies_that_later_edits_leave_alone(stage: Stage, tmp_path: Path) -> None:
    folder = tmp_path / "rate=0.1" / "configs"
    preserved = snapshot.preserve(stage, folder)
    original, *settings = stage.calls[0].argv
    copy, *kept = preserved.calls[0].argv
    assert kept == settings == [f"output={stage.root}/train", "a=b/c.yaml"]
    assert Path(copy).parent == folder
    assert Path(copy).name.endswith("_train.yaml")
    Path(original).write_text("size_px: 2\n")
    assert Path(copy).read_text() == "size_px: 1\n"
    assert preserved.calls[1].argv == (copy, f"output={stage.root}/look")
    assert replace(preserved, calls=stage.calls) == stage, "the digest too is the original's"
    edited = snapshot.preserve(stage, folder).calls[0].argv[0]
    assert edited != copy
    assert Path(edited).read_text() == "size_px: 2\n"
    again = snapshot.preserve(preserved, folder).calls[0].argv[0]
    assert again.endswith(f"{Path(copy).name.partition('_')[0]}_{Path(copy).name}")
