"""How fast and how large preparation is, from MEDS to a store that trains, beside a bare polars pass.

    python benchmarks/prepare.py DATA [--events 10000000] [--workers 2] [--skip-polars]

DATA is a folder for made-up datasets, kept for the next call. Every measurement runs in a fresh process; memory is the
sum over its process tree, CPU seconds are those of all its processes.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SHARD_EVENTS = 1_000_000
EVENTS_PER_SUBJECT = 100
CODES, LABS = 6_000, 1_200
ELSEWHERE = (
    # Events per CPU second and gigabytes, on 10 million events of another machine.
    ("MEDS-Transforms and its torch loader", 279e3, 1.1),
    ("ehr2vec", 91e3, 3.2),
    ("PyHealth", 54e3, 2.2),
    ("bare polars pass", 2.46e6, 1.2),
)
DAY = 86_400_000_000

POLARS_PASS = """
import sys
import polars as pl
events = pl.scan_parquet(f"{sys.argv[1]}/data/**/*.parquet")
codes = events.select(pl.col("code").unique()).sort("code").collect().with_row_index("token")
births = events.filter(code="MEDS_BIRTH").select("subject_id", birth="time")
(events.join(codes.lazy(), on="code").join(births, on="subject_id", how="left")
    .with_columns(age=(pl.col("time") - pl.col("birth")).dt.total_days() / 365.25)
    .select("subject_id", "time", "token", "age", "numeric_value", "visit_id")
    .sink_parquet(sys.argv[2]))
"""
LOAD = """
import sys, time
import numpy as np
from ehrsequencing.data.store import TokenStore
start = time.perf_counter()
store = TokenStore.open(sys.argv[1])
train = store.split("train")
opened = time.perf_counter() - start
start = time.perf_counter()
store.vocabulary
vocabulary = time.perf_counter() - start
start = time.perf_counter()
store.values
values = time.perf_counter() - start
random = np.random.default_rng(0).integers(len(train), size=50_000).tolist()
columns = (train.code, train.visit, train.time, train.value, train.statistic, train.kind)
def read(index):
    rows = slice(train.offsets[index], train.offsets[index + 1])
    return [column[rows] for column in columns]
for index in random:
    read(index)
start = time.perf_counter()
for index in random:
    read(index)
subject = (time.perf_counter() - start) / len(random)
start = time.perf_counter()
for index in random:
    [column.copy() for column in read(index)]
copied = (time.perf_counter() - start) / len(random)
from ehrsequencing.data.batching import BatchSource
from ehrsequencing.data.sequences import Examples
source = BatchSource(train, Examples.whole_histories(train), store.values, max_examples=2**31)
tokens, cpu, start, index = 0, time.process_time(), time.perf_counter(), 0
while tokens < 5_000_000 and index < source.num_batches(0):
    tokens += int(source.batch(0, index).mask.sum())
    index += 1
wall, cpu = time.perf_counter() - start, time.process_time() - cpu
print(opened, vocabulary, values, subject, copied, tokens / wall, tokens / cpu)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--skip-polars", action="store_true")
    arguments = parser.parse_args()

    meds = make(arguments.data / f"meds-{arguments.events}", arguments.events)
    size = sum(path.stat().st_size for path in meds.rglob("*.parquet"))
    print(f"{arguments.events:,} events, {size / arguments.events:.1f} bytes an event as MEDS (zstd)")
    with tempfile.TemporaryDirectory(dir=arguments.data) as scratch:
        store = Path(scratch) / "store"
        command = [sys.executable, "-m", "ehrsequencing", "prepare", str(meds), str(store), "--overwrite"]
        command += ["--workers", str(arguments.workers)]
        rows = [("ehrseq prepare", *measured(command)) for _ in range(arguments.repeats)]
        if not arguments.skip_polars:
            polars_pass = [sys.executable, "-c", POLARS_PASS, str(meds), str(Path(scratch) / "polars.parquet")]
            rows.append(("bare polars pass", *measured(polars_pass)))
        ours = min(cpu for name, _, cpu, _ in rows if name == "ehrseq prepare")
        print(f"{'':<40} {'events/s':>12} {'per CPU s':>12} {'peak GB':>8} {'ours over it, per CPU s':>24}")
        for name, wall, cpu, peak in rows:
            rates = f"{arguments.events / wall:>12,.0f} {arguments.events / cpu:>12,.0f} {peak / 1e9:>8.2f}"
            print(f"{name:<40} {rates} {cpu / ours:>24.2f}")
        for name, rate, peak in ELSEWHERE:
            ratio = arguments.events / ours / rate
            print(f"{name + ' (cited)':<40} {'':>12} {rate:>12,.0f} {peak:>8.2f} {ratio:>24.2f}")
        disk = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
        loaded = subprocess.run([sys.executable, "-c", LOAD, store], check=True, capture_output=True, text=True).stdout
        opened, vocabulary, values, subject, copied, tokens, tokens_cpu = map(float, loaded.split())
    print(f"on disk               {disk / arguments.events:.1f} bytes an event")
    print(f"opening a store       {1000 * opened:.1f} ms; when asked for, vocabulary {1000 * vocabulary:.1f} ms more, "
          f"value statistics {1000 * values:.1f} ms")  # fmt: skip
    print(f"a random subject      {1e6 * subject:.1f} us mapped, {1e6 * copied:.1f} us copied")
    print(f"batches               {tokens:,.0f} tokens/s, {tokens_cpu:,.0f} per CPU second")


def measured(command: list[str]) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds, and the peak of the resident bytes of the whole process tree."""
    # Everything in the page cache, written pages on disk: otherwise one measurement pays for another.
    os.sync()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak = [0]
    watcher = threading.Thread(target=_watch, args=(process.pid, peak))
    watcher.start()
    _, problem = process.communicate()
    wall = time.perf_counter() - start
    watcher.join()
    if process.returncode:
        raise SystemExit(problem)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, peak[0]


def _watch(root: int, peak: list[int]) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    while True:
        parents, resident = {}, {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    stat = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                parents[int(entry.name)], resident[int(entry.name)] = int(stat[1]), int(stat[21]) * page
        if root not in parents or not resident[root]:
            return
        tree, found = {root}, True
        while found:
            found = {child for child, parent in parents.items() if parent in tree} - tree
            tree |= found
        peak[0] = max(peak[0], sum(resident[process] for process in tree))
        time.sleep(0.05)


def make(folder: Path, events: int) -> Path:
    """A dataset of so many events: 100 a subject in visits, 30 % with a number, 1 % births; written once."""
    if folder.exists():
        return folder
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    subjects = events // EVENTS_PER_SUBJECT
    splits = {"train": int(subjects * 0.8), "tuning": int(subjects * 0.1)}
    splits["held_out"] = subjects - sum(splits.values())
    first = 1
    for split, count in splits.items():
        (partial / "data" / split).mkdir(parents=True)
        most = SHARD_EVENTS // EVENTS_PER_SUBJECT
        for shard, start in enumerate(range(0, count, most)):
            ids = np.arange(first + start, first + min(start + most, count), dtype=np.int64)
            pq.write_table(_shard(ids), partial / "data" / split / f"{shard}.parquet", compression="zstd")
        first += count
    partial.rename(folder)
    return folder


def _shard(ids: np.ndarray) -> pa.Table:
    random = np.random.default_rng([7, int(ids[0])])
    many = len(ids) * EVENTS_PER_SUBJECT
    subject = np.repeat(ids, EVENTS_PER_SUBJECT)
    # Ten visits a subject, of nine or ten events: one in five has no identifier and is told by its day.
    place = np.arange(many) % EVENTS_PER_SUBJECT
    visit = np.arange(many) // 10
    starts = np.sort(random.integers(0, 3650, (len(ids), EVENTS_PER_SUBJECT // 10)), axis=1).ravel()
    base = (40 * 365 + starts) * DAY + random.integers(0, 86_400, len(starts)) * 1_000_000
    within = np.sort(random.integers(0, 8, (len(starts), 10)), axis=1).ravel() * 1_800_000_000
    time_us = base[visit] + within
    named = random.random(len(starts)) < 0.8
    rank = np.minimum(random.pareto(0.7, many) * 12, CODES - 1).astype(np.int64)
    # Spread over the code book, so that labs and others are among the frequent ones.
    code = (rank * 2_741) % CODES
    lab = random.random(many) < 0.3
    code = np.where(lab, code % LABS, LABS + code % (CODES - LABS))
    value = np.exp(random.normal(code % 7, 0.4, many)).astype(np.float32)
    value = np.where(code % 3 == 0, np.round(value, 1), value).astype(np.float32)
    birth, static = place == 0, place == 1
    time_us = np.where(birth, (np.repeat(random.integers(0, 30 * 365, len(ids)), EVENTS_PER_SUBJECT)) * DAY, time_us)
    order = np.lexsort((np.where(static, np.iinfo(np.int64).min, time_us), subject))
    code = np.where(birth, CODES, np.where(static, CODES + 1 + subject % 2, code))
    systems = ("ICD10CM", "RXNORM", "ICD10PCS")
    names = [f"LOINC//{index}-{index % 9}" for index in range(LABS)]
    names += [f"{systems[index % 3]}//{index:05}" for index in range(LABS, CODES)]
    names += ["MEDS_BIRTH", "GENDER//F", "GENDER//M"]
    numbered = (code < LABS) & ~birth & ~static
    unit = np.where(code % 11 == 0, code % 2, code % 17)
    units = [f"unit/{index}" for index in range(17)]
    with_visit = named[visit] & ~birth & ~static
    return pa.table(
        {
            "subject_id": subject[order],
            "time": pa.array(time_us[order], mask=static[order]).cast(pa.timestamp("us")),
            "code": pa.DictionaryArray.from_arrays(code[order].astype(np.int32), names).cast(pa.string()),
            "numeric_value": pa.array(value[order], mask=~numbered[order]),
            "visit_id": pa.array(visit[order], mask=~with_visit[order]),
            "unit": pa.DictionaryArray.from_arrays(
                pa.array(unit[order].astype(np.int32), mask=~numbered[order]), units
            ).cast(pa.string()),
        }
    )


if __name__ == "__main__":
    main()
