"""Times to an event, judged like a survival paper: networks beside Cox, forest and boosting on real and made outcomes.

    python benchmarks/survival_tasks.py OUT --data DATA --only support2,pbc2,gibleed,physionet2012
    python benchmarks/survival_tasks.py OUT --only signal,heart_failure,dialysis,death --subjects 5000

Every step is a command of `ehrseq`, printed before it runs: import, prepare, labels, pretraining without labels,
fine-tuning of every arm under every seed, and `ehrseq evaluate`, whose report lies in `OUT/TASK/RUN`. What is done is
kept: run it again to go on. `--table` prints what is there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ehrsequencing.benchmarks.cells import is_done
from ehrsequencing.cli.main import main as ehrseq
from ehrsequencing.io import read_json
from ehrsequencing.tracking.summary import format_estimate

SHARED = ("loop.token_budget=2048",)
PRETRAIN = ("model.dropout=0.0", "mlm.rate=0.3", "optim.lr=3e-3")
ARMS = {
    "lora-mlm": ("--method", "lora", "--from", "mlm"),
    "lora-mlm-nvp": ("--method", "lora", "--from", "mlm", "--set", "survival.nvp=0.1"),
    "lora-joint": ("--method", "lora", "--from", "joint"),
    "full-mlm": ("--method", "full", "--from", "mlm"),
    "scratch": ("--method", "scratch"),
    "lstm": ("--model", "lstm", "--method", "scratch"),
}
ONE_VISIT = tuple(name for name in ARMS if "nvp" not in name and "joint" not in name)


@dataclass(frozen=True)
class Task:
    """One table.

    Attributes:
        source: What is imported, under `--data`, with kind and options; None for synthetic records.
        label: The task and options of `ehrseq task build`, or a label file of the import.
        days: Where it is judged.
        arms: Which of `ARMS`; a history of one visit has no next one.
        length: Tokens of a history.
        epochs: Of pretraining and fine-tuning.
        pretrain, finetune: Further options.
    """

    source: tuple[str, ...] | None
    label: tuple[str, ...]
    days: str
    arms: tuple[str, ...] = tuple(ARMS)
    length: int = 192
    epochs: tuple[int, int] = (10, 12)
    pretrain: tuple[str, ...] = ()
    finetune: tuple[str, ...] = ()


PBC = ("table", "survival/pbc2.csv", "--mapping", "pbc2")
GIBLEED = ("omop", "omop_gibleed")
LABELLED = {
    "support2": Task(
        ("table", "survival/support2.csv", "--mapping", "support2"), ("time_to:death", "--history-days", "0"),
        "30,180,365,730", ONE_VISIT, 64, (20, 20),
    ),
    "pbc2_1y": Task(PBC, ("time_to:death|PBC//Transplant", "--at-days", "365.25"), "730,1826", epochs=(60, 60)),
    "pbc2_3y": Task(PBC, ("time_to:death|PBC//Transplant", "--at-days", "1095.75"), "730,1826", epochs=(60, 60)),
    "pbc2_5y": Task(PBC, ("time_to:death|PBC//Transplant", "--at-days", "1826.25"), "730,1826", epochs=(60, 60)),
    "gibleed": Task(GIBLEED, ("time_to:SNOMED//74474003", "--at-age-years", "35"), "730,1826,3650", epochs=(10, 10)),
    "physionet2012": Task(
        ("physionet2012", "physionet2012", "--horizon-days", "30"), ("labels/time_to_death.parquet",), "3,7,14,27",
        ONE_VISIT, 512, (4, 6),
    ),
    "mimic_demo": Task(("mimic-iv", "mimic_iv_demo"), ("time_to:death", "--history-days", "0"), "", epochs=(2, 3)),
    "signal": Task(None, ("time_to:death@1825", "--best-c", "0.8"), "365,730,1095,1460", epochs=(10, 8)),
    "heart_failure": Task(None, ("time_to:ICD10CM//I50",), "365,730,1095"),
    "dialysis": Task(None, ("time_to:ICD10CM//Z99.2,ICD10PCS//5A1D",), "365,730,1095"),
    "death": Task(None, ("time_to:death",), "365,730,1095"),
}  # fmt: skip


def run(*arguments: str | Path) -> None:
    """One command of `ehrseq`; whatever ends it in error ends the benchmark."""
    words = [str(argument) for argument in arguments]
    print("ehrseq", *words, flush=True)
    try:
        ehrseq(words)
    except SystemExit as ended:
        if ended.code:
            raise


def sets(*options: str) -> list[str]:
    """`--set` before each."""
    return [word for option in options for word in ("--set", option)]


def prepare_data(task: Task, out: Path, data: Path | None, subjects: int, seed: int) -> Path:
    """Folder with `meds` and `store` of a task's records, made where they are not."""
    kind = "synthetic" if task.source is None else "_".join([task.source[0], Path(task.source[1]).stem])
    place = out / "data" / kind
    if not (place / "meds").exists():
        if task.source is None:
            run("synth", place / "meds", "--subjects", str(subjects), "--seed", str(seed))
        elif data is None:
            raise SystemExit(f"{kind} is read from --data")
        else:
            run("import", task.source[0], data / task.source[1], place / "meds", *task.source[2:])
    if not (place / "store").exists():
        run("prepare", place / "meds", place / "store")
    return place


def do(name: str, task: Task, options: argparse.Namespace) -> None:
    """Everything of one table."""
    place = prepare_data(task, options.out, options.data, options.subjects, options.seed)
    root = options.out / name
    labels = root / "labels.parquet"
    if task.label[0].startswith("labels/"):
        labels = place / "meds" / task.label[0]
    elif not labels.exists():
        run("task", "build", place / "meds", "--task", task.label[0], *task.label[1:], "--out", labels)
    loop = sets(*SHARED, f"loop.threads={options.threads}", f"loop.seed={options.seed}")
    arms = [arm for arm in task.arms if not options.arms or arm in options.arms.split(",")]
    for objective in ("mlm", "joint"):
        base = place / objective
        if is_done(base) or not any(objective == word for arm in arms for word in ARMS[arm]):
            continue
        again = ["--resume"] if base.exists() else []
        given = sets(*PRETRAIN, f"model.max_length={task.length}", *task.pretrain)
        epochs = ["--epochs", str(task.epochs[0])]
        run("pretrain", place / "store", "--out", base, "--objective", objective, *epochs, *given, *loop, *again)
    for arm in arms:
        folder = root / arm
        if is_done(folder):
            continue
        words = [str(place / word) if word in ("mlm", "joint") else word for word in ARMS[arm]]
        own = [] if "--from" in words else sets(f"model.max_length={task.length}")
        again = ["--resume"] if folder.exists() else []
        run(
            "finetune", place / "store", labels, "--out", folder, *words, "--seeds", str(options.seeds),
            "--epochs", str(task.epochs[1]), *own, *sets(*task.finetune), *loop, *again,
        )  # fmt: skip
    first, *others = [root / arm for arm in arms]
    if "differences" not in read_json(first / "summary.json"):
        beside = [word for other in others for word in ("--with", str(other))]
        known = [] if task.source is not None else ["--oracle", str(place / "meds")]
        at = ["--at", task.days] if task.days else []
        run("evaluate", first, place / "store", labels, *beside, *at, *known, "--threads", str(options.threads))


def table(root: Path, arms: Sequence[str]) -> list[str]:
    """Markdown of one table: concordance, integrated Brier score and calibration of everybody."""
    summary = read_json(root / arms[0] / "summary.json")
    keys = [key for key in next(iter(summary["metrics"].values())) if ":competing" not in key]
    wanted = ("c_uno", "c_harrell", "c_wolbers", "c_antolini", "ibs")
    shown = [key for key in keys if key.rpartition("/")[2] in wanted or key.rpartition("/")[2].startswith("ici@")]
    lines = ["| model | " + " | ".join(key.rpartition("/")[2] for key in shown) + " |"]
    lines.append("|---" * (len(shown) + 1) + "|")
    for model, entries in summary["metrics"].items():
        cells = [format_estimate(entries[key]) if key in entries else "" for key in shown]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, help="folder of the real data sets")
    parser.add_argument("--only", default=",".join(LABELLED), help="tables, comma-separated")
    parser.add_argument("--arms", default="", help="arms, comma-separated; all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--subjects", type=int, default=5000, help="of the synthetic records")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the tables that are there")
    options = parser.parse_args()
    for name in options.only.split(","):
        if not options.table:
            do(name, LABELLED[name], options)
        print("\n".join(["", f"### {name}", "", *table(options.out / name, LABELLED[name].arms)]))


if __name__ == "__main__":
    main()
