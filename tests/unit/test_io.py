import errno
import os
from pathlib import Path

import pytest

from ehrsequencing.errors import RunError
from ehrsequencing.io import atomic_directory, atomic_path, hash_bytes, hash_file, read_json, write_json, write_text


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if "partial" in path.name or "retired" in path.name]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(OSError, match="No space"), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert target.read_text() == "old"
    assert leftovers(tmp_path) == []


def test_a_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="No space"), atomic_directory(tmp_path / "store") as folder:
        (folder / "part").write_text("x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_folders_are_replaced_only_when_asked(tmp_path):
    target = tmp_path / "store"
    with atomic_directory(target) as folder:
        (folder / "a").write_text("1")
    with pytest.raises(RunError, match="exists already.*--overwrite"), atomic_directory(target):
        pass
    with atomic_directory(target, overwrite=True) as folder:
        (folder / "b").write_text("2")
    assert [path.name for path in target.iterdir()] == ["b"]
    assert leftovers(tmp_path) == []


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(("content", "message"), [(None, "missing"), ("{", "not readable JSON")])
def test_unreadable_json_names_the_file(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content:
        path.write_text(content)
    with pytest.raises(RunError, match=f"a.json.*{message}"):
        read_json(path)


def test_hashes_see_boundaries_and_content(tmp_path):
    assert hash_bytes(b"ab", b"c") != hash_bytes(b"a", b"bc")
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "b").write_bytes(b"y")
    assert hash_file(tmp_path / "a") != hash_file(tmp_path / "b")
