"""Uploads are stored under their digest, whatever they are called."""

import io
from hashlib import blake2b
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import UserError
from server.uploads import MAX_NAME_BYTES, MAX_NAME_CHARACTERS, Upload, Uploads, clean_name


@given(st.text(max_size=300))
def test_a_clean_name_is_one_path_component_or_an_error(name: str) -> None:
    try:
        cleaned = clean_name(name)
    except UserError:
        return
    assert cleaned == clean_name(cleaned)
    assert Path("/a", cleaned).parent == Path("/a")
    assert cleaned not in (".", "..")
    assert not set(cleaned) & set("/\\\0\r\n")
    assert len(cleaned) <= MAX_NAME_CHARACTERS
    assert len(cleaned.encode()) <= MAX_NAME_BYTES


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("劳动合同法（试行）.docx", "劳动合同法（试行）.docx"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Windows\\a.txt", "a.txt"),
        ("%2e%2e%2fa.txt", "%2e%2e%2fa.txt"),
        ("．．／a.txt", "．．_a.txt"),
        ("a\u202etxt.exe", "a_txt.exe"),
        ("e\u0301.txt", "é.txt"),
    ],
)
def test_readable_names_stay_unchanged(name: str, cleaned: str) -> None:
    assert clean_name(name) == cleaned


@pytest.mark.parametrize("name", ["", ".", "..", "a/..", "a/", "a\0.txt", "\u202e", "长" * 201])
def test_a_name_that_is_empty_after_cleaning_is_an_error(name: str) -> None:
    with pytest.raises(UserError):
        clean_name(name)


def test_an_upload_is_complete_and_has_its_digest_as_name(tmp_path: Path) -> None:
    originals, noted = Uploads(tmp_path), []

    def note(stored: Upload) -> None:
        noted.append(stored)
        assert not originals.path(stored.digest).exists()

    stored = originals.save("a.txt", io.BytesIO(b"abc"), limit=3, register=note)
    assert noted == [stored]
    assert stored == Upload("a.txt", blake2b(b"abc", digest_size=32).hexdigest(), 3)
    assert originals.path(stored.digest).read_bytes() == b"abc"
    assert list(originals.unused(set())) == [stored.digest]
    assert list(originals.unused({stored.digest})) == []


def test_an_upload_that_is_too_large_or_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    originals = Uploads(tmp_path)
    with pytest.raises(UserError, match=r"a\.txt is larger than 3e-06 MB"):
        originals.save("a.txt", io.BytesIO(b"abcd"), limit=3, register=lambda stored: None)

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        originals.save("a.txt", Broken(b"a"), limit=3, register=lambda stored: None)
    assert list(originals.folder.iterdir()) == []


@pytest.mark.parametrize("digest", ["", "../x", "a" * 63, "G" * 64, "/etc/passwd"])
def test_an_upload_is_found_only_by_a_digest(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ValueError, match="not a digest"):
        Uploads(tmp_path).path(digest)
    Uploads(tmp_path).delete(digest)
