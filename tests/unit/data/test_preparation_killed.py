"""Preparation that is killed, repeated, run twice at once, or run on another engine."""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from small_data import day

from ehrsequencing.data import stages
from ehrsequencing.data.parallel import refuse_unreachable, task_map
from ehrsequencing.data.prepare import prepare
from ehrsequencing.errors import ConfigError, DataError, RunError

KILLED = """
import os, signal, sys
from ehrsequencing.data import prepare as module
meds, store, moment = sys.argv[1:]
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
def progress(done, total):
    if moment.isdigit() and done == int(moment):
        die()
if hasattr(module, moment):
    setattr(module, moment, die)
module.prepare(meds, store, min_count=1, workers=1, progress=progress)
"""
WAITING = """
import sys
from ehrsequencing.data.prepare import prepare
def progress(done, total):
    if done == 1:
        print("under way", flush=True)
        sys.stdin.read()
prepare(sys.argv[1], sys.argv[2], min_count=1, progress=progress)
"""


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def events(subjects, seed=0):
    random = np.random.default_rng(seed)
    rows = []
    for subject in subjects:
        rows.append((subject, day(-9000 - subject), "MEDS_BIRTH"))
        for _ in range(int(random.integers(1, 40))):
            code = f"{('ICD10CM', 'LOINC')[int(random.integers(2))]}//{random.integers(9)}"
            value = float(np.float32(random.normal())) if code.startswith("LOINC") else None
            rows.append((subject, day(int(random.integers(90)) / 4), code, value, None, "mg"))
    return rows


@pytest.fixture
def meds(write_meds):
    return write_meds(
        train=[events(range(0, 40, 2)), events(range(1, 40, 2), 1), events(range(40, 50), 2)],
        tuning=[events(range(50, 60), 3)],
        held_out=[events(range(60, 70), 4)],
    )


@pytest.fixture
def done(monkeypatch):
    """Names of the outputs of the tasks that run."""
    names = []

    def counted(step, function):
        def run(task):
            names.append(f"{step} {task.output.stem}")
            return function(task)

        monkeypatch.setattr(stages, step, run)

    counted("scan", stages.scan)
    counted("encode", stages.encode)
    return names


def killed(meds, store, moment):
    found = subprocess.run([sys.executable, "-c", KILLED, meds, store, str(moment)], capture_output=True, text=True)
    assert found.returncode == -signal.SIGKILL, found.stderr
    assert not store.exists()
    (content,) = store.parent.glob(".store.unfinished-*/content")
    return content


def test_a_killed_preparation_continues_and_gives_the_same_bytes(meds, tmp_path, done, caplog):
    """Killed in the scan, while rows are written, and before the store gets its name; each time the rest is done."""
    whole = prepare(meds, tmp_path / "whole", min_count=1, workers=2)
    assert len(done) == 8
    done.clear()
    store = tmp_path / "store"
    work = killed(meds, store, 2) / ".work"
    assert sorted(path.name for path in (work / "scanned").glob("*.npz")) == ["0.npz", "1.npz"]
    killed(meds, store, 6)
    assert len(list((work / "encoded").glob("*.npz"))) == 1
    killed(meds, store, "write_manifest")
    caplog.clear()
    prepare(meds, store, min_count=1)
    assert done == []
    assert caplog.messages == [f"taking up {store} where a killed command left it"]
    assert contents(store) == contents(whole.path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meds", "store", "whole"]


def test_a_kill_after_the_store_has_its_name(meds, write_meds, tmp_path, done, caplog):
    """The same command then succeeds; with other options, of other data or where a file is gone, it is refused."""
    store, again = tmp_path / "store", "there already, whole, made of the same dataset and options"
    code = KILLED.replace("module.prepare(", "module.TokenStore.open = die\nmodule.prepare(")
    found = subprocess.run([sys.executable, "-c", code, meds, store, "none"], capture_output=True, text=True)
    assert found.returncode == -signal.SIGKILL, found.stderr
    assert store.exists()
    before, caplog_before = contents(store), len(caplog.messages)
    assert prepare(meds, store, min_count=1, workers=2).path == store
    assert done == [] and again in caplog.messages[caplog_before]
    assert contents(store) == before == contents(prepare(meds, tmp_path / "whole", min_count=1).path)
    other = write_meds("other", train=[events(range(5))])
    for changed, options in ((meds, {"min_count": 2}), (meds, {"min_count": 1, "visits": "day"}), (other, {})):
        with pytest.raises(RunError, match="store exists already"):
            prepare(changed, store, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meds", "other", "store", "whole"]
    (store / "train/code.npy").unlink()
    with pytest.raises(RunError, match="store exists already"):
        prepare(meds, store, min_count=1)
    done.clear()
    prepare(meds, store, min_count=1, overwrite=True)
    assert len(done) == 8 and contents(store) == before


def test_only_what_is_missing_or_damaged_is_done_again(meds, tmp_path, done):
    whole = prepare(meds, tmp_path / "whole", min_count=1)
    store = tmp_path / "store"
    content = killed(meds, store, "write_manifest")
    for name in (".work/scanned/1.time", ".work/scanned/2.npz", "train/value.npy"):
        old = (content / name).read_bytes()
        (content / name).write_bytes(old[: len(old) // 2] + b"\0" * (len(old) - len(old) // 2))
    (content / ".work/scanned/3.pair").unlink()
    done.clear()
    prepare(meds, store, min_count=1, workers=1)
    assert done == ["scan 1", "scan 2", "scan 3", "encode train-0"]
    assert contents(store) == contents(whole.path)


def test_what_another_preparation_left_is_discarded_and_said(meds, write_meds, tmp_path, caplog):
    said = "what a killed command left of {} is discarded: {}"
    store = tmp_path / "store"
    killed(meds, store, 3)
    changed = prepare(meds, store, min_count=2)
    assert caplog.messages == [said.format(store, "min_count was 1 and is 2")]
    assert contents(store) == contents(prepare(meds, tmp_path / "fresh", min_count=2).path)
    changed.path.rename(tmp_path / "other")
    killed(meds, store, 3)
    caplog.clear()
    prepare(write_meds("more", train=[events(range(5))]), store, min_count=1)
    assert caplog.messages[0].startswith(said.format(store, "dataset was "))
    assert not list(tmp_path.glob(".store*"))


def test_two_at_once_are_refused(meds, tmp_path):
    command = [sys.executable, "-c", WAITING, meds, tmp_path / "store"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "under way\n"
        with pytest.raises(RunError, match=r"store is being written by another process\. Remedy: wait for it"):
            prepare(meds, tmp_path / "store", min_count=2)
        other.communicate("")
    assert other.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meds", "store"]


def test_an_error_leaves_nothing_and_an_interrupt_what_is_done(meds, tmp_path, done):
    def stop(count, total):
        if count == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(meds, tmp_path / "store", min_count=1, workers=1, progress=stop)
    assert len(done) == 4
    prepare(meds, tmp_path / "store", min_count=1, workers=1)
    assert len(done) == 8
    with pytest.raises(DataError, match="no code of the train split has a token"):
        prepare(meds, tmp_path / "none", min_count=10**6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meds", "store"]


def test_a_store_may_be_a_link(meds, tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far")
    prepare(meds, tmp_path / "link", min_count=1)
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far", "link", "meds"]


def test_threads_give_results_in_order_and_end_before_an_error_leaves():
    seen = []

    def work(number):
        time.sleep(0.02 * (5 - number))
        seen.append(number)
        if number == 1:
            raise DataError("one")
        return number

    with task_map("local", 3) as run:
        results = run(work, range(5))
        assert next(results) == 0
        with pytest.raises(DataError, match="one"):
            next(results)
        after = len(seen)
        time.sleep(0.1)
        assert len(seen) == after


def test_an_unknown_engine_is_refused(meds, tmp_path):
    with pytest.raises(ConfigError, match="engine; got dask; expected local or ray"):
        prepare(meds, tmp_path / "store", engine="dask")
    with pytest.raises(ConfigError, match="workers is out of range; got 0"):
        prepare(meds, tmp_path / "store", workers=0)


def test_without_ray_the_remedy_is_said(meds, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r'needs the package ray; got not installed. Remedy: pip install "ehrsequenc'):
        prepare(meds, tmp_path / "store", engine="ray")


def closed_port():
    """A port of this machine at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize("address", ["foo", "127.0.0.1", ":6379", "host:x", "host:0", "host:70000", "ray://host"])
def test_addresses_that_name_no_cluster(address):
    with pytest.raises(
        ConfigError, match="RAY_ADDRESS names no cluster; got .*; expected HOST:PORT, ray://HOST:PORT, a"
    ):
        refuse_unreachable(address)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://localhost:{}", "[::1]:{}", "no-such-host.invalid:{}"])
def test_addresses_where_nobody_listens(form):
    address = form.format(closed_port())
    with pytest.raises(ConfigError, match="no Ray cluster at .*; got .*Remedy: set RAY_ADDRESS") as problem:
        refuse_unreachable(address)
    assert address in str(problem.value) and len(str(problem.value).splitlines()) == 1


def test_addresses_where_somebody_listens():
    with socket.create_server(("127.0.0.1", 0)) as server:
        for form in ("127.0.0.1:{}", "ray://localhost:{}", "ray://127.0.0.1:{}/"):
            refuse_unreachable(form.format(server.getsockname()[1]))
    for address in ("auto", "local"):
        refuse_unreachable(address)


@pytest.mark.parametrize("address", ["foo", "127.0.0.1:{}", "auto"])
def test_a_wrong_address_of_a_cluster_is_told_soon(meds, tmp_path, address):
    pytest.importorskip("ray", reason="the package ray is not installed")
    environment = {**os.environ, "RAY_ADDRESS": address.format(closed_port()), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-m", "ehrsequencing", "prepare", meds, tmp_path / "store", "--engine", "ray"]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert found.returncode == 2 and "Traceback" not in found.stderr
    assert "Ray cluster at" in found.stderr or "names no cluster" in found.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meds"]


def test_a_ray_cluster_gives_the_same_bytes_and_errors(meds, write_meds, tmp_path):
    """A local cluster of two workers, in a process of its own, since it changes signal handlers and threads."""
    pytest.importorskip("ray", reason="the package ray is not installed")
    prepare(meds, tmp_path / "local", min_count=1)
    bad = write_meds("bad", train=[events(range(5)), [(9, day(1), "LOINC//1", float("inf"))]])
    code = (
        "import sys\nfrom ehrsequencing.data.prepare import prepare\nfrom ehrsequencing.errors import DataError\n"
        "prepare(sys.argv[1], sys.argv[2], min_count=1, engine='ray', workers=2)\n"
        "try:\n    prepare(sys.argv[3], sys.argv[2] + 'x', engine='ray', workers=2)\n"
        "except DataError as problem:\n    print(problem)"
    )
    command = [sys.executable, "-c", code, meds, tmp_path / "ray", bad]
    found = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"})
    assert found.returncode == 0, found.stderr
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    assert "infinite values in train; got 1, of code LOINC//1" in found.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "local", "meds", "ray"]
