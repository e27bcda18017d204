"""Bad input through the command line: one line, exit code 2, no traceback, nothing half-written."""

import contextlib
import csv
import io
import json
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from ehrsequencing.cli.main import main
from ehrsequencing.tasks.cohorts import CohortRules


def ehrseq(*arguments: object, code: int = 2) -> str:
    """Run a command that must fail; returns its one line of error (a cohort's flow stands below it)."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return one_line(ended.value.code, errors.getvalue(), code)


def ehrseq_process(*arguments: object, code: int = 2) -> str:
    """The same as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "ehrsequencing", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    return one_line(done.returncode, done.stderr, code)


def one_line(ended: object, errors: str, code: int) -> str:
    assert ended == code, errors
    assert "Traceback" not in errors
    [line] = [line for line in errors.splitlines() if line.startswith("error: ")]
    return line


def no_trace(path: Path) -> None:
    """Neither the artefact nor a part of it is there."""
    assert not path.exists()
    assert not [other.name for other in path.parent.glob(f".{path.name}*")]


EVENTS = {
    "subject_id": [1, 1, 2, 2],
    "time": [datetime(1950, 1, 1), datetime(2020, 1, 1), datetime(1960, 1, 1), datetime(2021, 1, 1)],
    "code": ["MEDS_BIRTH", "ICD10CM//I10", "MEDS_BIRTH", "ICD10CM//I10"],
    "numeric_value": [None, None, None, None],
}


def meds(folder: Path, shards: dict[str, dict]) -> Path:
    for name, columns in shards.items():
        path = folder / "data" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pl.DataFrame(columns).write_parquet(path)
    return folder


def test_missing_files(tmp_path):
    assert "/nowhere" in ehrseq("import", "uci-diabetes", "/nowhere", tmp_path / "out")
    assert "/nowhere" in ehrseq("prepare", "/nowhere", tmp_path / "out")
    assert "/nowhere" in ehrseq_process("pretrain", "/nowhere", "--out", tmp_path / "out")
    assert "expected synthetic, uci-diabetes" in ehrseq("import", "csv", "/nowhere", tmp_path / "out")
    no_trace(tmp_path / "out")


def test_missing_labels(world, tmp_path):
    line = ehrseq("finetune", world.store, tmp_path / "none.parquet", "--method", "scratch", "--out", tmp_path / "out")
    assert "none.parquet" in line
    no_trace(tmp_path / "out")


def test_wrong_column(tmp_path):
    source = meds(tmp_path / "meds", {"train/0": {name: EVENTS[name] for name in ("subject_id", "time")}})
    assert "code" in ehrseq("prepare", source, tmp_path / "store")
    no_trace(tmp_path / "store")


def test_wrong_column_of_a_source(tmp_path):
    folder = tmp_path / "uci"
    folder.mkdir()
    with (folder / "diabetic_data.csv").open("w") as stream:
        csv.writer(stream).writerows([["encounter_id", "patient_nbr"], [1, 2]])
    (folder / "IDs_mapping.csv").write_text("admission_type_id,description\n1,Emergency\n")
    assert "diabetic_data.csv" in ehrseq("import", "uci-diabetes", folder, tmp_path / "out")
    no_trace(tmp_path / "out")


def test_unparsable_date(tmp_path):
    broken = {**EVENTS, "time": ["1950-01-01", "2020-13-45", "1960-01-01", "2021-01-01"]}
    source = meds(tmp_path / "meds", {"train/0": broken})
    line = ehrseq("prepare", source, tmp_path / "store")
    assert "time" in line
    assert "2020-13-45" in line
    no_trace(tmp_path / "store")


def test_negative_age(tmp_path):
    early = {**EVENTS, "time": [datetime(1950, 1, 1), datetime(1940, 1, 1), datetime(1960, 1, 1), datetime(2021, 1, 1)]}
    source = meds(tmp_path / "meds", {"train/0": early})
    assert "birth" in ehrseq("prepare", source, tmp_path / "store", "--min-count", 1)
    no_trace(tmp_path / "store")


def test_subject_in_two_splits(tmp_path):
    source = meds(tmp_path / "meds", {"train/0": EVENTS, "held_out/0": EVENTS})
    line = ehrseq("prepare", source, tmp_path / "store")
    assert "split" in line
    no_trace(tmp_path / "store")


def test_empty_cohort(world, tmp_path):
    line = ehrseq("task", "build", world.meds, "--task", "onset:NO//SUCH@365", "--out", tmp_path / "labels.parquet")
    assert "NO//SUCH" in line
    no_trace(tmp_path / "labels.parquet")


def test_where_labels_may_go(world, tmp_path):
    build = ("task", "build", world.meds, "--task", "onset:ICD10CM//I10@365", "--out")
    assert "a name that ends in .parquet" in ehrseq(*build, tmp_path / "labels.json")
    line = ehrseq(*build, tmp_path)
    assert f"got the folder {tmp_path}" in line
    assert "labels.parquet" in line
    (tmp_path / "labels.json").write_text("{}")
    line = ehrseq(*build, tmp_path / "labels.parquet")
    assert f"{tmp_path / 'labels.json'} exists already" in line
    assert "--overwrite" in line
    assert (tmp_path / "labels.json").read_text() == "{}"
    assert "spacing_days" in ehrseq(*build, tmp_path / "a.parquet", "--spacing-days", 0)
    assert "expected 1 to 36500 days" in ehrseq(
        "task", "build", world.meds, "--task", "onset:ICD10CM//I10@99999999999", "--out", tmp_path / "a.parquet"
    )
    no_trace(tmp_path / "a.parquet")
    line = ehrseq(*build, world.meds / "data" / "train" / "z.parquet")
    assert "overlaps the input" in line
    no_trace(world.meds / "data" / "train" / "z.parquet")


def test_options_without_effect(world, tmp_path):
    finetune = ("finetune", world.store, world.labels, "--out", tmp_path / "out", "--method")
    for method in ("scratch", "full", "probe"):
        line = ehrseq(*finetune, method, "--from", world.pretrained, "--lora-rank", 8)
        assert f"method {method} has no adapters" in line
    assert "no adapters" in ehrseq(*finetune, "scratch", "--set", "lora.alpha=2")
    assert "its fixed code book" in ehrseq("prepare", world.meds, tmp_path / "out", "--min-count", 5)
    no_trace(tmp_path / "out")


def test_the_options_of_task_build_are_the_cohort_rules(world, tmp_path):
    arguments = ["task", "build", world.meds, "--task", "onset:ICD10CM//I10@365", "--out"]
    for name, flags in (
        ("default", []),
        ("wide", ["--history-days", 100, "--spacing-days", 200, "--minimum-age-years", 30.5]),
    ):
        command = [sys.executable, "-m", "ehrsequencing", *map(str, (*arguments, tmp_path / f"{name}.parquet", *flags))]
        subprocess.run(command, capture_output=True, check=True)
    manifest = json.loads((tmp_path / "default.json").read_text())
    assert manifest["options"] == CohortRules().stated()
    assert set(manifest["options"]) == {"history_days", "spacing_days", "minimum_age_years"}
    manifest = json.loads((tmp_path / "wide.json").read_text())
    assert manifest["options"] == {"history_days": 100, "spacing_days": 200, "minimum_age_years": 30.5}


def test_the_greatest_age_is_an_option(world, tmp_path):
    line = ehrseq("prepare", world.meds, tmp_path / "store", "--max-age-years", 1)
    assert "age" in line
    no_trace(tmp_path / "store")


def test_overwrite_spares_what_is_not_ours(world, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for arguments in (("synth", tmp_path / "mine", "--subjects", 10), ("prepare", world.meds, tmp_path / "mine")):
        line = ehrseq(*arguments, "--overwrite")
        assert "mine exists already and is not" in line
        assert "Remedy: choose another folder" in line
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_one_class(world, tmp_path):
    labels = pl.read_parquet(world.labels).with_columns(boolean_value=pl.lit(True))
    labels.write_parquet(tmp_path / "labels.parquet")
    line = ehrseq(
        "finetune", world.store, tmp_path / "labels.parquet", "--method", "scratch", "--out", tmp_path / "out"
    )
    assert "one class" in line
    no_trace(tmp_path / "out")


def test_another_vocabulary(world, tmp_path):
    from ehrsequencing.data.prepare import prepare

    prepare(world.meds, tmp_path / "store", value_bins=3)
    line = ehrseq("finetune", tmp_path / "store", world.labels, "--from", world.pretrained, "--out", tmp_path / "out")
    assert "another vocabulary" in line
    assert "Remedy" in line


def test_truncated_store(world, tmp_path):
    shutil.copytree(world.store, tmp_path / "store")
    column = max((tmp_path / "store").rglob("*.npy"), key=lambda path: path.stat().st_size)
    with column.open("rb+") as stream:
        stream.truncate(column.stat().st_size // 2)
    line = ehrseq("pretrain", tmp_path / "store", "--out", tmp_path / "out")
    assert column.name in line
    assert "prepare" in line
    no_trace(tmp_path / "out")


def test_a_damaged_store_of_the_right_size(world, tmp_path):
    shutil.copytree(world.store, tmp_path / "store")
    column = tmp_path / "store" / "train" / "code.npy"
    with column.open("rb+") as stream:
        stream.seek(4_000)
        stream.write(b"\x07" * 400)
    assert "code.npy is damaged" in ehrseq("pretrain", tmp_path / "store", "--out", tmp_path / "out")
    no_trace(tmp_path / "out")


def test_a_damaged_page_of_a_shard(world, tmp_path):
    shutil.copytree(world.meds, tmp_path / "meds")
    shard = next((tmp_path / "meds" / "data" / "train").glob("*.parquet"))
    group = pq.read_metadata(shard).row_group(0)
    chunk = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "code")
    start = min(offset for offset in (chunk.dictionary_page_offset, chunk.data_page_offset) if offset)
    with shard.open("rb+") as stream:
        stream.seek(start + 40)
        stream.write(b"\x00" * (chunk.total_compressed_size - 60))
    labels = tmp_path / "labels.parquet"
    for command in (
        ["prepare", tmp_path / "meds", tmp_path / "out"],
        ["task", "build", tmp_path / "meds", "--task", "heart_failure_1y", "--out", labels],
    ):
        assert "is not readable parquet" in ehrseq(*command)
    no_trace(tmp_path / "out")
    no_trace(labels)


def test_json_of_another_type(world, tmp_path):
    content = "[1, 2]"
    shutil.copytree(world.meds, tmp_path / "meds")
    (tmp_path / "meds" / "metadata" / "dataset.json").write_text(content)
    assert "dataset.json holds no JSON object" in ehrseq("prepare", tmp_path / "meds", tmp_path / "out")
    shutil.copytree(world.pretrained, tmp_path / "run")
    (tmp_path / "run" / "model" / "config.json").write_text(content)
    line = ehrseq("finetune", world.store, world.labels, "--from", tmp_path / "run", "--out", tmp_path / "out")
    assert "config.json holds no JSON object" in line
    (tmp_path / "run" / "metadata.json").write_text(content)
    assert "metadata.json holds no JSON object" in ehrseq("evaluate", tmp_path / "run", world.store)
    no_trace(tmp_path / "out")


def test_numbers_beyond_what_is_meant(world, tmp_path):
    line = ehrseq("prepare", world.meds, tmp_path / "out", "--max-age-years", "inf")
    assert "max_age_years" in line
    no_trace(tmp_path / "out")
    assert "--seed" in ehrseq("evaluate", world.pretrained, world.store, "--seed", "99999999999999999999")


def test_damaged_checkpoint(world, tmp_path):
    shutil.copytree(world.pretrained, tmp_path / "run")
    weights = tmp_path / "run" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    line = ehrseq("finetune", world.store, world.labels, "--from", tmp_path / "run", "--out", tmp_path / "out")
    assert "model.safetensors" in line
    assert "damaged" in line


def test_all_config_problems_in_one_line(world, tmp_path):
    line = ehrseq("pretrain", world.store, "--out", tmp_path / "out", "--lr", "-1", "--set", "loop.epoch=3")
    assert "2 problems" in line
    no_trace(tmp_path / "out")


def test_unknown_options_and_commands():
    assert "--nope" in ehrseq("synth", "x", "--nope")
    assert "nope" in ehrseq("nope")


def test_a_killed_process_is_not_taken_for_a_whole_store(world, tmp_path):
    """A folder without its manifest, as a copy that was cut off leaves it, is refused."""
    shutil.copytree(world.store, tmp_path / "store")
    (tmp_path / "store" / "manifest.json").unlink()
    assert "store" in ehrseq("pretrain", tmp_path / "store", "--out", tmp_path / "out")


def test_debug_shows_the_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "ehrsequencing", "prepare", "/nowhere", "/nowhere2", "--debug"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" in done.stderr


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 600 kB; mounting one needs privileges."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(world, small_disk):
    for name, arguments in {
        "meds": ("synth", small_disk / "meds", "--subjects", 400, "--workers", 1),
        "store": ("prepare", world.meds, small_disk / "store"),
    }.items():
        line = ehrseq(*arguments)
        assert "full" in line
        no_trace(small_disk / name)


def test_full_disk_in_training_keeps_a_readable_run(world, small_disk):
    out = small_disk / "run"
    line = ehrseq("pretrain", world.store, "--out", out, "--epochs", 1, "--set", "loop.threads=1")
    assert "full" in line
    assert not (out / "model").exists()
    assert json.loads((out / "metadata.json").read_text())["status"] in ("failed", "running")
    assert not list(out.rglob("*.partial-*"))
