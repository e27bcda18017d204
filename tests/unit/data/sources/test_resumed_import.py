"""An import killed at any moment and taken up again writes the bytes of one that was never killed."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_mimic_iv_source import folder as mimic_folder
from test_omop_source import folder as omop_folder

from ehrsequencing.data.sources import import_source
from ehrsequencing.data.sources.spool_files import SpoolFiles
from ehrsequencing.data.sources.tables import Table

IMPORT = """
import os, signal, sys
from ehrsequencing import io
from ehrsequencing.data.dataset import MedsWriter
from ehrsequencing.data.sources import import_source
from ehrsequencing.data.sources.spool_files import SpoolFiles

kind, raw, out, moment, wanted = sys.argv[1:]
owner, name = {
    "append": (SpoolFiles, "append"), "table": (SpoolFiles, "table_done"), "events": (MedsWriter, "write_events"),
    "shard": (SpoolFiles, "shard_done"), "finish": (MedsWriter, "finish"), "appear": (io, "_appear"),
}[moment.split("-")[0]]
calls, real = 0, getattr(owner, name)

def deadly(*arguments, **options):
    global calls
    calls += 1
    if calls == int(wanted) and moment.endswith("before"):
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(*arguments, **options)
    if calls == int(wanted):
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, name, deadly)
import_source(kind, raw, out)
"""


def contents(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    about = json.loads(found.pop("metadata/dataset.json"))
    del about["created_at"]
    return found | {"about": json.dumps(about).encode()}


@pytest.mark.parametrize(
    ("kind", "make", "kills"),
    [
        (
            "mimic-iv",
            mimic_folder,
            [("appear-before", 1), ("append", 4), ("table-before", 5), ("events-before", 2), ("finish", 1)],
        ),
        ("omop", omop_folder, [("table", 3), ("events", 1), ("shard-before", 1), ("shard", 1)]),
    ],
    ids=["mimic-iv", "omop"],
)
def test_a_killed_import_is_taken_up(tmp_path, monkeypatch, kind, make, kills):
    raw, out = make(tmp_path / "raw"), tmp_path / "killed"
    whole = contents(import_source(kind, raw, tmp_path / "whole").path)
    for moment, call in kills:
        run = subprocess.run(
            [sys.executable, "-c", IMPORT, kind, str(raw), str(out), moment, str(call)], capture_output=True, text=True
        )
        assert run.returncode == -signal.SIGKILL, (moment, run.stderr)
        assert not out.exists()
    (left,) = tmp_path.glob(".killed.*")
    whole_tables = {json.loads(file.read_text())["name"] for file in left.glob("content/.spool/???.json")}
    assert len(whole_tables) > 2
    read = []
    real = Table.read

    def recorded(self, *arguments, **options):
        read.append(self.name)
        return real(self, *arguments, **options)

    monkeypatch.setattr(Table, "read", recorded)
    assert contents(import_source(kind, raw, out).path) == whole
    assert not whole_tables & set(read), "a table that was spooled whole is read again"
    assert not list(tmp_path.glob(".*"))


def test_what_an_import_of_other_input_left_is_discarded(tmp_path, caplog):
    raw, out = mimic_folder(tmp_path / "raw"), tmp_path / "out"
    run = subprocess.run([sys.executable, "-c", IMPORT, "mimic-iv", str(raw), str(out), "table", "2"])
    assert run.returncode == -signal.SIGKILL
    (before,) = tmp_path.glob(".out.*")
    (raw / "hosp/emar.csv").unlink()
    dataset = import_source("mimic-iv", raw, out)
    assert "hosp/emar" in dataset.manifest["tables_missing"]
    assert not before.exists()
    assert f"what a killed command left of {out} is discarded: file hosp/emar.csv was" in caplog.text
    assert "ns and is None" in caplog.text


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SpoolFiles, "table_done", full)
    raw = mimic_folder(tmp_path / "raw")
    with pytest.raises(OSError, match="No space"):
        import_source("mimic-iv", raw, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
