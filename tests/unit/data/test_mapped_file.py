import os
from pathlib import Path

import numpy as np
import pytest

from magvit_scale.data.mapped_file import map_file


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def test_a_mapping_outlives_its_descriptor_and_goes_with_its_last_array(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 40)
    before = os.listdir("/proc/self/fd")
    with path.open("rb") as file:
        memory = map_file(file)
    assert os.listdir("/proc/self/fd") == before
    part = memory[5000:5004].view("<u2")
    del memory
    assert is_mapped(path)
    assert part.tolist() == [0x8988, 0x8B8A]
    with path.open("r+b") as file:  # what it shows is the file itself, not a copy
        os.pwrite(file.fileno(), b"\1\0", 5000)
    assert part.tolist() == [1, 0x8B8A]
    del part
    assert not is_mapped(path)


def test_a_mapping_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    with (tmp_path / "file").open("rb") as file:
        memory = map_file(file)
    with pytest.raises(ValueError, match="read-only"):
        memory[0] = 0
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        memory.flags.writeable = True
    assert np.array_equal(memory, [97, 98, 99])


def test_what_cannot_be_mapped_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (tmp_path / "file").open("rb") as file, pytest.raises(OSError, match=r"\[Errno 22\] .*/file'"):
        map_file(file)
