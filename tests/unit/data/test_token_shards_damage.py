"""Every kind of damage of a token folder gives one line that names the file and says what to do."""

import io
import json
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magvit_scale.config import Refusal
from magvit_scale.data.token_facts import hash_of, token_shard_name
from magvit_scale.data.token_shards import TokenShards
from magvit_scale.data.token_writer import is_token_shard_done
from magvit_scale.files import npy_bytes, sha256
from tests.unit.data.test_token_shards import FACTS, write

SHARD = token_shard_name(0)
STEM = SHARD.removesuffix(".tar")
Members = list[tuple[tarfile.TarInfo, bytes]]


def members_of(path: Path) -> Members:
    with tarfile.open(path) as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def write_tar(path: Path, members: Members, form: int = tarfile.USTAR_FORMAT) -> None:
    with tarfile.open(path, "w", format=form) as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))


def packed(name: str, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(f"{STEM}.{name}")
    member.size = len(data)
    return member, data


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def head(shape: str, dtype: str = "<u2", order: str = "False") -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}, }}"


def of_type(member: tuple[tarfile.TarInfo, bytes], kind: bytes, target: str) -> tuple[tarfile.TarInfo, bytes]:
    member[0].type, member[0].linkname = kind, target
    member[0].size = 0
    return member[0], b""


def renamed(member: tuple[tarfile.TarInfo, bytes], name: str) -> tuple[tarfile.TarInfo, bytes]:
    member[0].name = name
    return member


def oversized(member: tuple[tarfile.TarInfo, bytes]) -> Any:
    """A header that claims eight gigabytes."""

    def change(path: Path, members: Members) -> None:
        write_tar(path, members)
        data = bytearray(path.read_bytes())
        member[0].size = 8**11 - 1
        data[:512] = member[0].tobuf(tarfile.USTAR_FORMAT)
        path.write_bytes(data)

    return change


TOKENS, LABELS, KEYS = 0, 1, 2
DAMAGE: dict[str, tuple[Callable[[Members], Members], str]] = {
    "missing member": (lambda m: m[:2], r"no tokens-000000\.keys\.json: end of file header"),
    "missing first member": (lambda m: m[1:], r"member 'tokens-000000\.labels\.npy' of type b'0', expected the file"),
    "duplicate member": (lambda m: [m[0], m[0], *m[1:]], r"member 'tokens-000000\.tokens\.npy' of type"),
    "duplicate at the end": (lambda m: [*m, m[0]], r"nothing after tokens-000000\.keys\.json"),
    "name that climbs": (lambda m: [renamed(m[0], "../tokens.npy"), *m[1:]], r"member '\.\./tokens\.npy'"),
    "symlink": (lambda m: [of_type(m[0], tarfile.SYMTYPE, "/etc/passwd"), *m[1:]], r"of type b'2'"),
    "hard link": (lambda m: [m[0], of_type(m[1], tarfile.LNKTYPE, m[0][0].name), m[2]], r"of type b'1'"),
    "device": (lambda m: [of_type(m[0], tarfile.CHRTYPE, ""), *m[1:]], r"of type b'3'"),
    "no clips of the header": (lambda m: [m[0], packed("labels.npy", npy_bytes(np.zeros(4, int))), m[2]], "expected 5"),
    "absurd shape": (
        lambda m: [packed("tokens.npy", npy(head("(4611686018427387904, 3, 2, 2, 3, 4)"))), *m[1:]],
        r"in 128 bytes, expected <u2 in 13281",
    ),
    "shape that overflows to nothing": (
        lambda m: [packed("tokens.npy", npy(head("(4294967296, 4294967296, 2, 2, 3, 4)"))), *m[1:]],
        r"in 128 bytes, expected",
    ),
    "negative shape": (lambda m: [packed("tokens.npy", npy(head("(-1, 3, 2, 2, 3, 4)"))), *m[1:]], "no .npy header"),
    "another shape": (
        lambda m: [packed("tokens.npy", npy_bytes(np.zeros((5, 3, 2, 3, 4), np.uint16))), *m[1:]],
        r"shape \(5, 3, 2, 3, 4\), expected \(clips, 3, 2, 2, 3, 4\)",
    ),
    "Fortran order": (
        lambda m: [packed("tokens.npy", npy(head("(5, 3, 2, 2, 3, 4)", order="True"), bytes(1440))), *m[1:]],
        r"no \.npy header of a plain array",
    ),
    "pickled objects": (
        lambda m: [packed("tokens.npy", npy(head("(5, 3, 2, 2, 3, 4)", "|O"), b"cos\nsystem\n(S'true'\ntR.")), *m[1:]],
        r"\|O \(5, 3, 2, 2, 3, 4\) in \d+ bytes, expected <u2",
    ),
    "pickled labels": (lambda m: [m[0], packed("labels.npy", npy(head("(5,)", "|O"), b"N.")), m[2]], "expected <i8"),
    "header that is code": (
        lambda m: [packed("tokens.npy", npy("__import__('os').system('true')")), *m[1:]],
        r"tokens-000000\.tokens\.npy: ",
    ),
    "nested header": (lambda m: [packed("tokens.npy", npy("(" * 900)), *m[1:]], r"tokens-000000\.tokens\.npy: "),
    "signs without end": (lambda m: [packed("tokens.npy", npy("-" * 890 + "1")), *m[1:]], r"tokens\.npy: "),
    "no npy at all": (lambda m: [packed("tokens.npy", b"PK" * 700), *m[1:]], r"tokens-000000\.tokens\.npy: "),
    "class beyond the classes": (
        lambda m: [m[0], packed("labels.npy", npy_bytes(np.full(5, 3))), m[2]],
        "not 5 labels of 3 classes",
    ),
}


def believed(folder: Path) -> None:
    """Makes dataset.json agree with the shard's size and checksum, as someone with bad intentions would."""
    content = json.loads((folder / "dataset.json").read_text())
    content["shards"][0] |= {"bytes": (folder / SHARD).stat().st_size, "sha256": sha256(folder / SHARD)}
    (folder / "dataset.json").write_text(json.dumps(content | {"hash": hash_of(content)}))


def refusal_of(folder: Path, *, verify: bool = False) -> str:
    with pytest.raises(Refusal) as refused:
        TokenShards.open(folder, verify=verify)
    said = str(refused.value)
    assert "\n" not in said
    assert "magvit precompute-tokens" in said
    return said


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_named(tmp_path: Path, kind: str) -> None:
    write(tmp_path)
    change, expected = DAMAGE[kind]
    write_tar(tmp_path / SHARD, change(members_of(tmp_path / SHARD)))
    believed(tmp_path)
    with pytest.raises(Refusal, match=expected):
        TokenShards.open(tmp_path)
    assert refusal_of(tmp_path).startswith(f"{tmp_path / SHARD}: damaged (")


def test_sizes_beyond_the_file_are_not_believed(tmp_path: Path) -> None:
    write(tmp_path)
    members = members_of(tmp_path / SHARD)
    oversized(members[0])(tmp_path / SHARD, members)
    believed(tmp_path)
    assert f"{8**11 - 1} bytes in a file of 10240" in refusal_of(tmp_path)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_headers_of_headers_are_not_followed(tmp_path: Path, form: int) -> None:
    write(tmp_path)
    members = members_of(tmp_path / SHARD)
    members[0][0].name = "n" * 300
    write_tar(tmp_path / SHARD, members, form)
    believed(tmp_path)
    assert "expected the file tokens-000000.tokens.npy" in refusal_of(tmp_path)


@pytest.mark.parametrize(
    "keys",
    [b"[" * 100_000, b'["a", "b"]', b'{"a": 1}', b"[1, 2, 3, 4, 5]", b"\xff\xfe", b'"' + b"x" * 30_000 + b'"'],
)
def test_damaged_keys_are_told_when_they_are_asked_for(tmp_path: Path, keys: bytes) -> None:
    write(tmp_path)
    write_tar(tmp_path / SHARD, [*members_of(tmp_path / SHARD)[:2], packed("keys.json", keys)])
    believed(tmp_path)
    shards = TokenShards.open(tmp_path)
    with pytest.raises(Refusal, match=r"damaged \(tokens-000000\.keys\.json: .*; delete it and run"):
        _ = shards.keys


def test_every_truncation_is_refused_by_size(tmp_path: Path) -> None:
    write(tmp_path)
    data = (tmp_path / SHARD).read_bytes()
    for length in (0, 1, 511, 512, 600, 2048, len(data) - 1):
        (tmp_path / SHARD).write_bytes(data[:length])
        assert refusal_of(tmp_path).startswith(f"{tmp_path / SHARD}: {length} bytes, expected {len(data)} bytes; ")
        believed(tmp_path)
        assert refusal_of(tmp_path).startswith(f"{tmp_path / SHARD}: damaged (")
        (tmp_path / SHARD).unlink()
        write(tmp_path)


def test_flipped_bits_are_found_by_verify(tmp_path: Path) -> None:
    write(tmp_path)
    data, random = (tmp_path / SHARD).read_bytes(), np.random.default_rng(0)
    for place in random.integers(0, 8 * len(data), 50).tolist():
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        (tmp_path / SHARD).write_bytes(flipped)
        assert "its bytes are not those that were written (sha256)" in refusal_of(tmp_path, verify=True)
    (tmp_path / SHARD).write_bytes(data)
    assert TokenShards.open(tmp_path, verify=True).num_clips == 9


def changed(key: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda content: content | {key: value}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (changed("views", 0), "no valid views"),
        (changed("codebook_size", 1 << 17), "no valid codebook_size"),
        (changed("latent_shape", [2, 3]), "no valid latent_shape"),
        (changed("latent_shape", [2, 3, 1 << 62]), r"tokens-000000\.tar: damaged"),
        (changed("canvases", []), "no valid canvases"),
        (changed("canvases", ["z", 7]), "no valid canvases"),
        (changed("clips", {}), "no valid clips"),
        (changed("shards", [{"name": "x"}]), "no valid shards"),
        (changed("num_shards", 2), "lists 3 shards, expected all 2"),
        (changed("num_shards", 4), "lists 3 shards, expected all 4"),
        (lambda content: content | {"shards": content["shards"][:2]}, "lists 2 shards, expected all 3"),
        (lambda content: content | {"shards": content["shards"][::-1]}, "lists 3 shards, expected all 3 in turn"),
        (
            lambda content: content | {"shards": [content["shards"][0] | {"name": "../x.tar"}, *content["shards"][1:]]},
            "lists 3 shards, expected all 3 in turn",
        ),
    ],
)
def test_a_false_manifest_is_refused(tmp_path: Path, change: Callable[[Any], Any], expected: str) -> None:
    write(tmp_path)
    path = tmp_path / "dataset.json"
    content = change(json.loads(path.read_text()))
    path.write_text(json.dumps(content))
    if "no valid" not in expected:
        assert "its hash does not fit" in refusal_of(tmp_path)
    path.write_text(json.dumps(content | {"hash": hash_of(content)}))
    with pytest.raises(Refusal, match=expected):
        TokenShards.open(tmp_path)
    refusal_of(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "[" * 100_000, '{"tokenizer_hash": ', "7", "[]", "{}", '{"a": ' * 50_000, '{"views": 1' + "0" * 5000 + "}"],
)
def test_a_manifest_that_is_no_manifest(tmp_path: Path, text: str) -> None:
    write(tmp_path)
    (tmp_path / "dataset.json").write_text(text)
    assert refusal_of(tmp_path).startswith(f"{tmp_path / 'dataset.json'}: ")


def test_a_manifest_too_large_to_read(tmp_path: Path) -> None:
    with (tmp_path / "dataset.json").open("wb") as file:
        file.truncate(1 << 40)
    assert "1099511627776 bytes, expected at most" in refusal_of(tmp_path)


def test_a_writer_takes_up_what_is_whole_and_removes_the_rest(tmp_path: Path) -> None:
    write(tmp_path)
    path, index = tmp_path / SHARD, (tmp_path / SHARD).with_suffix(".json")
    written = path.read_bytes(), index.read_bytes()
    for left in (b"", b"{", b"[]", b"[" * 100_000, b'{"bytes": 1}'):  # what a dying disk leaves of an index
        index.write_bytes(left)
        assert is_token_shard_done(path, FACTS)
        assert (path.read_bytes(), index.read_bytes()) == written
    path.write_bytes(written[0][:5000])
    assert not is_token_shard_done(path, FACTS)
    assert not path.exists()
    assert not index.exists()
