"""Pretrain a BEHRT on synthetic records; with --use_lora, then adapt it to one-year onset of heart failure.

Without --realistic_data the records are random codes: the negative control, which nothing can learn.
See README.md beside this file.
"""

import argparse
import warnings
from pathlib import Path
from typing import NoReturn

from ehrsequencing.cli.common import exit_codes, observed, progress_bars, say
from ehrsequencing.config import FinetuneConfig, PretrainConfig, load_config
from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.labels import read_labels, write_labels
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.store import TokenStore
from ehrsequencing.data.synthetic import synthesise
from ehrsequencing.errors import ConfigError, RunError
from ehrsequencing.io import read_json
from ehrsequencing.tasks.cohorts import build_labels, parse_task
from ehrsequencing.tracking.report import write_report
from ehrsequencing.tracking.rundir import refuse_existing, refuse_foreign, refuse_name
from ehrsequencing.training.examples import binary_examples
from ehrsequencing.training.finetune import finetune
from ehrsequencing.training.pretrain import pretrain
from ehrsequencing.training.runs import require_run

TASK = "onset:ICD10CM//I50@365"


class Parser(argparse.ArgumentParser):
    """Reports a wrong flag as any other error: in one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, remedy=f"see {self.prog} --help")


def arguments(description: str, use_lora: str) -> argparse.ArgumentParser:
    """The flags that both example scripts share."""
    parser = Parser(description=description)
    parser.add_argument("--model_size", choices=("small", "medium", "large"), help="small by default")
    parser.add_argument("--use_lora", action="store_true", help=use_lora)
    parser.add_argument("--lora_rank", type=int, help="8 by default")
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
        "model.size": args.model_size or "small",
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
    """Write the records and their token store, over those of an earlier attempt; the random mode says what it is."""
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
            overwrite=True,
            progress=lambda done, total: update("synthetic subjects", done, total),
        )
        prepare(
            folder / "data",
            folder / "store",
            overwrite=True,
            progress=lambda done, total: update("prepare", done, total),
        )
    return folder / "store"


def onset_labels(folder: Path) -> Path:
    """Labels of one-year onset of heart failure, found fit for training."""
    frame, manifest = build_labels(MedsDataset.open(folder / "data"), parse_task(TASK))
    path = folder / "onset_heart_failure_365d.parquet"
    write_labels(path, frame, manifest)
    binary_examples(TokenStore.open(folder / "store"), read_labels(path)[0], str(path), ("train", "tuning"))
    return path


def refuse_taken(run: Path, overwrite: bool, *, finished: bool = True) -> None:
    """Refuse a folder that this experiment may not write: a finished run (if asked), or none of ours."""
    if overwrite:
        refuse_foreign(run)
    elif not (run / "metadata.json").is_file():
        refuse_existing(run)
    elif finished and read_json(run / "metadata.json").get("status") in ("completed", "early_stopped"):
        raise RunError(
            f"{run} holds a finished run",
            remedy="another --experiment_name keeps it, --overwrite replaces it",
        )


def pretraining(args: argparse.Namespace, name: str) -> None:
    """Records, then full pretraining with masked language modelling; all flags are checked before anything is written.

    The same command takes up what a killed one left.
    """
    config, out = load_config(PretrainConfig, overrides=options(args)), args.output_dir / name
    refuse_name(name)
    refuse_taken(out, args.overwrite)
    run_pretraining(args, config, synthetic_store(args, args.output_dir / f"{name}-data"), out)


def adaptation(args: argparse.Namespace, name: str, base: Path | None = None) -> None:
    """Records and labels, full pretraining unless there is a base, then training on the labels; as `pretraining`."""
    config = load_config(PretrainConfig, overrides=options(args))
    overrides = {**options(args), "method": "lora" if args.use_lora else "probe", "lora.rank": args.lora_rank}
    del overrides["model.size"]  # the base's size holds
    tuned = load_config(FinetuneConfig, overrides=overrides)
    refuse_name(name)
    out, side, own = args.output_dir / name, args.output_dir / f"{name}-data", args.output_dir / f"{name}-pretrain"
    refuse_taken(out, args.overwrite)
    if base is None:
        refuse_taken(own, args.overwrite, finished=False)
    else:
        require_run(base)
    store = synthetic_store(args, side)
    labels = onset_labels(side)
    if base is None:
        run_pretraining(args, config, store, own)
    with observed(f"finetune {tuned.method}") as observer:
        finetune(
            store,
            labels,
            out,
            tuned,
            from_run=base or own,
            resume=not args.overwrite,
            overwrite=args.overwrite,
            observer=observer,
        )
    say(f"adapted: {write_report(out)}")


def run_pretraining(args: argparse.Namespace, config: PretrainConfig, store: Path, out: Path) -> None:
    """Full pretraining with masked language modelling."""
    with observed("pretrain") as observer:
        pretrain(store, out, config, resume=not args.overwrite, overwrite=args.overwrite, observer=observer)
    say(f"pretrained: {write_report(out)}")


def read_flags(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command; a flag without effect is refused."""
    args = parser.parse_args()
    if args.lora_rank is not None and not args.use_lora:
        raise ConfigError("--lora_rank would have no effect", remedy="add --use_lora, or leave --lora_rank out")
    return args


def main() -> None:
    args = read_flags(arguments(__doc__.splitlines()[0], "after full pretraining, adapt with LoRA"))
    name = f"behrt_{args.model_size or 'small'}_mlm" + (f"_lora{args.lora_rank or 8}" if args.use_lora else "")
    name = name if args.experiment_name is None else args.experiment_name
    if args.use_lora:
        adaptation(args, name)
    else:
        pretraining(args, name)


if __name__ == "__main__":
    with exit_codes():
        main()
