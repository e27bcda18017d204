"""How much of what could be known do the models know? Synthetic tasks beside their oracle.

    python benchmarks/synthetic_tasks.py OUT --subjects 5000

Makes records, store and labels in `OUT`, pretrains one BEHRT without labels, fine-tunes it with LoRA on every task,
judges it beside the tuned count models on held-out subjects, and prints the table. What is done already is kept: a
killed run is taken up again, and several processes may work on different `--tasks` once the model is pretrained.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ehrsequencing.benchmarks.evaluate import evaluate_run
from ehrsequencing.benchmarks.oracle import ATTAINABLE, CEILING
from ehrsequencing.config import FinetuneConfig, PretrainConfig, load_config
from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.labels import write_labels
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.synthetic import synthesise
from ehrsequencing.io import read_json
from ehrsequencing.tasks.cohorts import build_labels, parse_task
from ehrsequencing.training.finetune import finetune
from ehrsequencing.training.pretrain import pretrain

ORDERED = ("vertigo_1y", "angioedema_1y", "lupus_flare_1y")
"""Tasks that hang on the order of the record alone, with an exact attainable optimum."""
TASKS = (*ORDERED, "heart_failure_1y", "readmission_30d")
COUNTS = ("logistic_regression", "random_forest", "xgboost")


def is_done(run: Path) -> bool:
    """Whether a training ended."""
    file = run / "metadata.json"
    return file.exists() and read_json(file).get("status") == "completed"


def figure(summary: dict[str, Any], model: str, metric: str) -> dict[str, Any] | None:
    """A model's metric on all held-out rows and categories."""
    for key, entry in summary["metrics"].get(model, {}).items():
        task, _, name = key.rpartition("/")
        if name == metric and not task.endswith(("]", ":new", ":seen")):
            return entry
    return None


def row(task: str, summary: dict[str, Any]) -> str:
    """One line of the table; the share of the way counts from logistic regression to the attainable optimum."""
    metric = "f1_macro" if task.startswith("phenotype") else "auroc"
    kinds = ("oracle", "copy", "prevalence")
    trained = next(name for name in summary["metrics"] if name not in COUNTS and not name.startswith(kinds))
    found = [figure(summary, name, metric) for name in (CEILING, ATTAINABLE, *COUNTS, trained)]
    cells = [f"{e['value']:.3f} ({e['low']:.3f} to {e['high']:.3f})" if e else "" for e in found]
    _, high, low, *_, mine = found
    way = f"{(mine['value'] - low['value']) / (high['value'] - low['value']):.0%}" if mine and low and high else ""
    population = f"{mine['n']:,}, {mine['positives']:,}" if mine else ""
    return "| " + " | ".join([f"{task}, {metric}", population, *cells, way]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--subjects", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--stage", choices=("pretrain", "tune", "judge", "table", "all"), default="all")
    parser.add_argument("--method", default="lora", choices=("lora", "full", "scratch"))
    parser.add_argument("--pretrain-set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--finetune-set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    out, tasks = options.out, options.tasks.split(",")
    seed = [f"loop.seed={options.seed}", f"loop.threads={options.threads}"]
    if not (out / "data").exists():
        synthesise(out / "data", subjects=options.subjects, seed=options.seed)
    if not (out / "store").exists():
        prepare(out / "data", out / "store")
    dataset = MedsDataset.open(out / "data")
    if options.stage in ("pretrain", "all") and not is_done(out / "pretrain"):
        config = load_config(PretrainConfig, sets=[*PRETRAIN, *seed, *options.pretrain_set])
        pretrain(out / "store", out / "pretrain", config, resume=(out / "pretrain").exists())
    for task in tasks:
        labels = out / "labels" / f"{task.replace(':', '_')}.parquet"
        run = out / f"{options.method}-{labels.stem}"
        if not labels.exists():
            write_labels(labels, *build_labels(dataset, parse_task(task)))
        if options.stage in ("tune", "all") and not is_done(run):
            sets = [f"method={options.method}", *FINETUNE, *seed, *options.finetune_set]
            base = None if options.method == "scratch" else out / "pretrain"
            config = load_config(FinetuneConfig, sets=sets)
            finetune(out / "store", labels, run, config, from_run=base, resume=run.exists())
        if options.stage in ("judge", "all") and "differences" not in read_json(run / "summary.json"):
            oracle = None if task.startswith("phenotype") else out / "data"
            evaluate_run(run, out / "store", labels, oracle=oracle, threads=options.threads)
    if options.stage in ("table", "all"):
        print("| task, metric | held-out rows, positives | ceiling | attainable | LR | RF | XGBoost | BEHRT | way |")
        print("|---|---|---|---|---|---|---|---|---|")
        for task in tasks:
            print(row(task, read_json(out / f"{options.method}-{task.replace(':', '_')}" / "summary.json")))


PRETRAIN = (
    "model.max_length=192",
    "model.dropout=0.0",
    "mlm.rate=0.3",
    "loop.epochs=10",
    "loop.token_budget=2048",
    "optim.lr=3e-3",
)
FINETUNE = ("loop.epochs=3", "loop.token_budget=2048", "optim.lr=2e-3")

if __name__ == "__main__":
    main()
