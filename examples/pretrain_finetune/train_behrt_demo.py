"""Pretrain a BEHRT on synthetic records; with --use_lora, then adapt it to one-year onset of heart failure.

Without --realistic_data the records are random codes: the negative control, which nothing can learn.
See README.md beside this file.
"""

import argparse
import warnings
from pathlib import Path

from ehrsequencing.cli.common import observed, progress_bars, say
from ehrsequencing.config import FinetuneConfig, PretrainConfig, load_config
from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.labels import write_labels
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.synthetic import synthesise
from ehrsequencing.errors import EhrseqError
from ehrsequencing.tasks.cohorts import build_labels, parse_task
from ehrsequencing.tracking.report import write_report
from ehrsequencing.training.finetune import finetune
from ehrsequencing.training.pretrain import pretrain

TASK = "onset:ICD10CM//I50@365"


def arguments(description: str) -> argparse.ArgumentParser:
    """The flags that both example scripts share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model_size", choices=("small", "medium", "large"), default="small")
    parser.add_argument("--use_lora", action="store_true", help="after full pretraining, adapt with LoRA")
    parser.add_argument("--lora_rank", type=int, default=8)
    parser.add_argument("--num_patients", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--weight_decay", type=float, default=0.01)
    parser.add_argument("--early_stopping_patience", type=int, default=10)
    parser.add_argument("--realistic_data", action="store_true", help="records of the disease model")
    parser.add_argument("--experiment_name", default=None)
    parser.add_argument("--output_dir", type=Path, default=Path("experiments"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier experiment of this name")
    return parser


def options(args: argparse.Namespace) -> dict[str, object]:
    """The flags as dotted configuration keys."""
    return {
        "model.size": args.model_size,
        "model.dropout": args.dropout,
        "optim.lr": args.lr,
        "optim.weight_decay": args.weight_decay,
        "loop.epochs": args.epochs,
        "loop.max_examples": args.batch_size,
        "loop.token_budget": args.batch_size * 512,
        "loop.patience": args.early_stopping_patience,
        "loop.seed": args.seed,
    }


def synthetic_store(args: argparse.Namespace, folder: Path) -> Path:
    """Write the records and their token store; the random mode says what it is."""
    mode = "realistic" if args.realistic_data else "random"
    if mode == "random":
        warnings.warn(
            "without --realistic_data the records are independent random codes: no model can beat the unigram floor",
            UserWarning,
            stacklevel=2,
        )
    with progress_bars() as update:
        synthesise(
            folder / "data",
            subjects=args.num_patients,
            seed=args.seed,
            mode=mode,
            overwrite=args.overwrite,
            progress=lambda done, total: update("synthetic subjects", done, total),
        )
        prepare(
            folder / "data",
            folder / "store",
            overwrite=args.overwrite,
            progress=lambda done, total: update("prepare", done, total),
        )
    return folder / "store"


def onset_labels(folder: Path) -> Path:
    """Labels of one-year onset of heart failure."""
    frame, manifest = build_labels(MedsDataset.open(folder / "data"), parse_task(TASK))
    path = folder / "onset_heart_failure_365d.parquet"
    write_labels(path, frame, manifest)
    return path


def run_pretraining(args: argparse.Namespace, store: Path, out: Path) -> None:
    """Full pretraining with masked language modelling."""
    with observed("pretrain") as observer:
        pretrain(
            store,
            out,
            load_config(PretrainConfig, overrides=options(args)),
            overwrite=args.overwrite,
            observer=observer,
        )
    say(f"pretrained: {write_report(out)}")


def run_adaptation(args: argparse.Namespace, store: Path, labels: Path, base: Path, out: Path) -> None:
    """LoRA on a pretrained run."""
    overrides = {**options(args), "method": "lora", "lora.rank": args.lora_rank}
    del overrides["model.size"]  # the base's size holds
    with observed("finetune lora") as observer:
        finetune(
            store,
            labels,
            out,
            load_config(FinetuneConfig, overrides=overrides),
            from_run=base,
            overwrite=args.overwrite,
            observer=observer,
        )
    say(f"adapted: {write_report(out)}")


def main() -> None:
    args = arguments(__doc__.splitlines()[0]).parse_args()
    name = args.experiment_name or f"behrt_{args.model_size}_mlm" + (f"_lora{args.lora_rank}" if args.use_lora else "")
    out = args.output_dir / name
    side = args.output_dir / f"{name}-data"
    store = synthetic_store(args, side)
    if not args.use_lora:
        run_pretraining(args, store, out)
        return
    base = args.output_dir / f"{name}-pretrain"
    run_pretraining(args, store, base)
    run_adaptation(args, store, onset_labels(side), base, out)


if __name__ == "__main__":
    try:
        main()
    except EhrseqError as problem:
        raise SystemExit(f"error: {problem}") from None
