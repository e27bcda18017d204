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
from test_physionet2012_source import RECORDS
from test_physionet2012_source import folder as physionet_folder
from test_uci_source import encounters
from test_uci_source import folder as uci_folder
from typer.testing import CliRunner

from ehrsequencing.cli.main import app
from ehrsequencing.data.dataset import MedsWriter
from ehrsequencing.data.sources import import_source
from ehrsequencing.data.sources.spool import EventSpool
from ehrsequencing.data.sources.spool_files import SpoolFiles
from ehrsequencing.data.sources.tables import Table
from ehrsequencing.errors import RunError

IMPORT = """
import os, signal, sys
from ehrsequencing import io
from ehrsequencing.data.dataset import MedsWriter
from ehrsequencing.data.sources import import_source
from ehrsequencing.data.sources.spool_files import SpoolFiles

kind, raw, out, moment, wanted = sys.argv[1:]
owner, name = {
    "append": (SpoolFiles, "append"), "table": (SpoolFiles, "table_done"), "events": (MedsWriter, "write_events"),
    "shard": (SpoolFiles, "shard_done"), "finish": (MedsWriter, "finish"), "labels": (MedsWriter, "write_labels"),
    "appear": (io, "_appear"),
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


def kill(kind, raw, out, moment, call):
    """Run an import in a process that kills itself before or after a call of the function of that moment."""
    run = subprocess.run(
        [sys.executable, "-c", IMPORT, kind, str(raw), str(out), moment, str(call)], capture_output=True, text=True
    )
    assert run.returncode == -signal.SIGKILL, (moment, run.stderr)
    assert not out.exists()


def recorded(monkeypatch, owner, name, what):
    """What is called from here on, told by `what` of the arguments."""
    calls, real = [], getattr(owner, name)

    def record(*arguments, **options):
        calls.append(what(*arguments))
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, record)
    return calls


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
        kill(kind, raw, out, moment, call)
    (left,) = tmp_path.glob(".killed.*")
    whole_tables = {json.loads(file.read_text())["name"] for file in left.glob("content/.spool/???.json")}
    assert len(whole_tables) > 2
    read = recorded(monkeypatch, Table, "read", lambda table, *_: table.name)
    assert contents(import_source(kind, raw, out).path) == whole
    assert not whole_tables & set(read), "a table that was spooled whole is read again"
    assert not list(tmp_path.glob(".*"))


def test_a_kill_after_the_dataset_has_its_name(tmp_path, monkeypatch, caplog):
    """The same command then succeeds; of other input, with other options or where a file is gone, it is refused."""
    raw, out = sixty_patients(tmp_path / "raw"), tmp_path / "killed"
    command = [sys.executable, "-c", IMPORT, "uci-diabetes", str(raw), str(out), "appear", "1"]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert out.exists() and list(tmp_path.glob(".killed.*")), "killed between the renaming and the end"
    before = contents(out)
    spooled = recorded(monkeypatch, EventSpool, "add", lambda _, piece, *__: piece.table)
    assert import_source("uci-diabetes", raw, out).path == out
    assert contents(out) == before and not list(tmp_path.glob(".*")) and not spooled
    assert f"{out} is there already, whole, made by the same request of the same input" in caplog.text
    assert contents(import_source("uci-diabetes", raw, tmp_path / "whole").path) == before
    told = CliRunner().invoke(app, ["import", "uci-diabetes", str(raw), str(out)])
    assert told.exit_code == 0 and "diabetic_data" in told.output
    with pytest.raises(RunError, match="killed exists already"):
        import_source("uci-diabetes", raw, out, strict=True)
    (out / "labels/readmission_30d.parquet").rename(tmp_path / "aside")
    with pytest.raises(RunError, match="killed exists already"):
        import_source("uci-diabetes", raw, out)
    (tmp_path / "aside").rename(out / "labels/readmission_30d.parquet")
    import_source("uci-diabetes", raw, out)
    (raw / "IDs_mapping.csv").write_text((raw / "IDs_mapping.csv").read_text() + "9,Court\n")
    with pytest.raises(RunError, match="killed exists already"):
        import_source("uci-diabetes", raw, out)


def two_sets(path):
    """Records in all splits, of two sets with outcomes of one."""
    records = {number: f"00:00,Age,{50 + number % 30}\n07:30,HR,{number}" for number in range(1, 61)}
    physionet_folder(path)
    return physionet_folder(
        path, "set-b.zip", {number: text for number, text in records.items() if number not in RECORDS}
    )


def sixty_patients(path):
    return uci_folder(path, encounters(*((number, number % 60, {"diag_1": str(number)}) for number in range(1, 100))))


@pytest.mark.parametrize(
    ("kind", "make", "kills", "spooled", "written"),
    [
        ("physionet2012", two_sets, [("append-before", 1), ("table", 1)], ["set-b"], 3),
        ("physionet2012", two_sets, [("shard", 1)], [], 2),
        ("uci-diabetes", sixty_patients, [("events-before", 2), ("events", 2)], [], 1),
        ("uci-diabetes", sixty_patients, [("labels-before", 1)], [], 0),
    ],
)
def test_sources_whose_subjects_stand_among_their_rows(tmp_path, monkeypatch, kind, make, kills, spooled, written):
    """They are read again; what is spooled whole is not spooled again, and what is written is not written again."""
    raw, out = make(tmp_path / "raw"), tmp_path / "killed"
    whole = contents(import_source(kind, raw, tmp_path / "whole").path)
    assert len([name for name in whole if name.startswith("data/")]) == 3
    for moment, call in kills:
        kill(kind, raw, out, moment, call)
    added = recorded(monkeypatch, EventSpool, "add", lambda _, piece, *__: piece.table)
    shards = recorded(monkeypatch, MedsWriter, "write_events", lambda _, split, *__: split)
    assert contents(import_source(kind, raw, out).path) == whole
    assert sorted(set(added)) == spooled
    assert len(shards) == written
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
