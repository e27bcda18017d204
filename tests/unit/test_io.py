import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ehrsequencing.errors import ConfigError, RunError
from ehrsequencing.io import (
    Mark,
    atomic_directory,
    atomic_path,
    hash_bytes,
    hash_file,
    read_json,
    refuse_overlap,
    resumable_directory,
    write_json,
    write_text,
)

MARK = Mark("about.json", "version", "a test folder")


def writing(path, overwrite=False):
    return atomic_directory(path, overwrite=overwrite, mark=MARK)


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
        write_json(folder / MARK.file, {"version": 1})
    with pytest.raises(RunError, match="exists already.*pass --overwrite"), writing(target):
        pass
    with writing(target, overwrite=True) as folder:
        (folder / "b").write_text("2")
    assert [path.name for path in target.iterdir()] == ["b"]
    assert leftovers(tmp_path) == []


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize("about", [None, "{", "[1]", '{"other": 1}'])
def test_a_folder_of_others_is_never_replaced(tmp_path, about):
    target = tmp_path / "mine"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    if about is not None:
        (target / MARK.file).write_text(about)
    message = "mine exists already and is not a test folder.*no about.json of this program.*choose another folder"
    with pytest.raises(RunError, match=message), writing(target, overwrite=True):
        pass
    assert (target / "thesis.txt").read_text() == "years of work"
    assert leftovers(tmp_path) == []


def test_a_file_is_never_replaced_by_a_folder(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(RunError, match="got a file"), writing(tmp_path / "a", overwrite=True):
        pass
    assert (tmp_path / "a").read_text() == "x"


def test_what_appears_during_the_writing_stays(tmp_path):
    target = tmp_path / "store"
    with pytest.raises(RunError, match="exists already"), writing(target, overwrite=True) as folder:
        (folder / "a").write_text("1")
        target.mkdir()
        (target / "b").write_text("2")
    assert [path.name for path in target.iterdir()] == ["b"]
    assert leftovers(tmp_path) == []


def test_an_empty_folder_and_a_link_are_written_to(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far")
    with atomic_directory(tmp_path / "link") as folder:
        (folder / "a").write_text("1")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "a").exists()


def retired(folder, name, content):
    aside = folder / f".store.retired-{name}"
    aside.mkdir()
    (aside / "a").write_text(content)
    write_json(aside / MARK.file, {"version": 1})


def test_a_kill_between_the_renames_loses_nothing(tmp_path):
    retired(tmp_path, "0123abcd", "old")
    with pytest.raises(RunError, match="exists already"), writing(tmp_path / "store"):
        pass
    assert (tmp_path / "store" / "a").read_text() == "old"
    retired(tmp_path, "0123abcd", "older")
    with writing(tmp_path / "store", overwrite=True) as folder:
        (folder / "a").write_text("new")
    assert (tmp_path / "store" / "a").read_text() == "new"
    assert leftovers(tmp_path) == []


def test_of_several_old_folders_none_is_chosen_or_lost(tmp_path):
    for name in ("0123abcd", "4567abcd"):
        retired(tmp_path, name, name)
    with pytest.raises(OSError, match="No space"), writing(tmp_path / "store"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert len(leftovers(tmp_path)) == 2


def test_a_failing_second_rename_puts_the_old_folder_back(tmp_path):
    with writing(tmp_path / "store") as folder:
        write_json(folder / MARK.file, {"version": 1})
    with pytest.raises(FileNotFoundError), writing(tmp_path / "store", overwrite=True) as folder:
        folder.rmdir()
    assert MARK.on(tmp_path / "store")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(("source", "output"), [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a", "c/../a")])
def test_input_and_output_are_apart(tmp_path, source, output):
    with pytest.raises(ConfigError, match=f"the output .*{output} overlaps the input .*{source};"):
        refuse_overlap(tmp_path / source, tmp_path / output)
    refuse_overlap(tmp_path / "a", tmp_path / "ab")


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


def test_ctrl_c_leaves_what_the_same_request_finds_again(tmp_path, caplog):
    target = tmp_path / "store"
    with pytest.raises(KeyboardInterrupt), resumable_directory(target, {"of": 1}) as folder:
        (folder / "part").write_text("x")
        (folder / ".scratch").mkdir()
        (folder / ".part.partial-0").write_text("half")
        raise KeyboardInterrupt
    assert not target.exists()
    with resumable_directory(target, {"of": 1}) as folder:
        assert sorted(path.name for path in folder.iterdir()) == [".scratch", "part"]
    assert [path.name for path in target.iterdir()] == ["part"]
    assert list(tmp_path.iterdir()) == [target]
    assert f"taking up {target} where a killed command left it" in caplog.text


@pytest.mark.parametrize(
    ("request_now", "reason"),
    [
        ({"of": 2, "file": {"a": "1", "b": "1"}}, "of was 1 and is 2"),
        ({"of": 1, "file": {"a": "1", "b": "2"}}, "file b was 1 and is 2"),
        ({"of": 1, "file": {"a": "1"}}, "file b was 1 and is None"),
        ({"of": 1}, "its request says more than this one"),
    ],
)
def test_what_another_request_left_is_discarded_and_why(tmp_path, caplog, request_now, reason):
    with (
        pytest.raises(KeyboardInterrupt),
        resumable_directory(tmp_path / "store", {"of": 1, "file": {"a": "1", "b": "1"}}) as folder,
    ):
        (folder / "part").write_text("x")
        raise KeyboardInterrupt
    with resumable_directory(tmp_path / "store", request_now) as folder:
        assert not list(folder.iterdir())
        assert len(list(tmp_path.iterdir())) == 1
    assert f"what a killed command left of {tmp_path / 'store'} is discarded: {reason}" in caplog.text


HOLD = """
import sys
from ehrsequencing.io import resumable_directory
with resumable_directory(sys.argv[1], {"of": int(sys.argv[2])}):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("other", [1, 2])
def test_two_processes_cannot_write_the_same_folder(tmp_path, other):
    target = tmp_path / "store"
    arguments = [sys.executable, "-c", HOLD, str(target), "1"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        message = f"{target} is being written by another process. Remedy: wait for it or stop it"
        with pytest.raises(RunError, match=message), resumable_directory(target, {"of": other}):
            pass
        assert len(list(tmp_path.iterdir())) == 1
        process.communicate("")
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == [target]


def test_an_error_leaves_nothing_to_take_up(tmp_path):
    with pytest.raises(OSError, match="No space"), resumable_directory(tmp_path / "store", {"of": 1}) as folder:
        (folder / "part").write_text("x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ['{"a": ' + "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_json_that_is_too_deep_or_too_long(tmp_path, content):
    file = tmp_path / "a.json"
    file.write_text(content)
    with pytest.raises(RunError, match="a.json is not readable JSON; got "):
        read_json(file)
    assert not Mark("a.json", "a", "a test folder").on(tmp_path)
