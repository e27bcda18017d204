"""What each input and each part of the encoder is worth: one change at a time, judged on tuning subjects.

    python benchmarks/inputs.py OUT --dataset uci=MEDS:labels/readmission_30d --dataset synthetic=MEDS:vertigo_1y

Every configuration is pretrained with masked language modelling on the same number of tokens and fine-tuned with LoRA,
for every seed; what is done already is kept, and several processes that are started alike share the work. A task is the
name of one, or of a label file of the dataset. The table gives tuning figures: defaults are chosen on them, and
held-out subjects are not looked at.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ehrsequencing.benchmarks.cells import Claim, is_done
from ehrsequencing.config import FinetuneConfig, PretrainConfig, load_config
from ehrsequencing.data.batching import BatchSource
from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.labels import write_labels
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore
from ehrsequencing.io import read_json
from ehrsequencing.tasks.cohorts import build_labels, parse_task
from ehrsequencing.training.finetune import finetune
from ehrsequencing.training.pretrain import pretrain

NO_VALUES = "no value tokens"
CONFIGURATIONS: dict[str, tuple[str, ...]] = {
    "defaults": (),
    "age: continuous": ("model.age=continuous",),
    "age: none": ("model.age=none",),
    "calendar": ("model.calendar=true",),
    "gaps": ("model.gaps=true",),
    "gaps instead of times": ("model.gaps=true", "model.times=false"),
    "no times": ("model.times=false",),
    "visit-causal": ("model.attention=visit_causal",),
    "positions: learned": ("model.position=learned",),
    "positions: sinusoidal": ("model.position=sinusoidal",),
    "positions: none": ("model.position=none",),
    "separators": ("model.separators=true",),
    "no kinds": ("model.kinds=false",),
    "values: continuous": ("model.values=true",),
    NO_VALUES: (),
    "SwiGLU": ("model.activation=swiglu",),
    "post-norm": ("model.norm=post",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dataset", action="append", required=True, metavar="NAME=MEDS:TASK")
    parser.add_argument("--only", default=",".join(CONFIGURATIONS), help="configurations, comma-separated")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=3_000_000, help="that each pretraining reads")
    parser.add_argument("--pretrain-set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--finetune-set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    chosen = [name.strip() for name in options.only.split(",")]
    for item in options.dataset:
        name, _, rest = item.partition("=")
        meds, _, task = rest.rpartition(":")
        place = Place(options.out / name, Path(meds), task)
        for seed in range(options.seeds):
            for configuration in chosen:
                place.train(configuration, seed, options)
        place.print_table(name, chosen, options.seeds)


class Place:
    """A dataset with its stores and labels under `root`."""

    def __init__(self, root: Path, meds: Path, task: str) -> None:
        self.root, self.meds = root, meds
        self.labels = meds / f"{task}.parquet"
        with Claim(root / "prepare.lock") as mine:
            if not mine:
                raise SystemExit("another process prepares this dataset; start again when it is done")
            for store, values in ((root / "store", None), (root / "store_no_values", "none")):
                if not store.exists():
                    prepare(meds, store, values=values)
            if not self.labels.exists():
                self.labels = root / f"{parse_task(task).name.replace(':', '_')}.parquet"
                if not self.labels.exists():
                    write_labels(self.labels, *build_labels(MedsDataset.open(meds), parse_task(task)))

    def folder(self, configuration: str, seed: int, stage: str) -> Path:
        return self.root / configuration.replace(":", "").replace(" ", "-") / f"{stage}-{seed}"

    def train(self, configuration: str, seed: int, options: argparse.Namespace) -> None:
        """Pretrain and fine-tune, unless done or in another process's hands."""
        store = self.root / ("store_no_values" if configuration == NO_VALUES else "store")
        base, tuned = (self.folder(configuration, seed, stage) for stage in ("pretrain", "lora"))
        with Claim(base.with_name(f".{seed}.lock")) as mine:
            if not mine:
                return
            if not is_done(base):
                sets = [*options.pretrain_set, *CONFIGURATIONS[configuration], f"loop.seed={seed}"]
                epochs = self._epochs(store, load_config(PretrainConfig, sets=sets), options.tokens)
                config = load_config(PretrainConfig, sets=[*sets, f"loop.epochs={epochs}", f"loop.patience={epochs}"])
                pretrain(store, base, config, resume=(base / "metadata.json").exists())
            if not is_done(tuned):
                config = load_config(FinetuneConfig, sets=[*options.finetune_set, f"loop.seed={seed}"])
                resume = (tuned / "metadata.json").exists()
                finetune(store, self.labels, tuned, config, from_run=base, resume=resume)

    @staticmethod
    def _epochs(store: Path, config: PretrainConfig, tokens: int) -> int:
        opened = TokenStore.open(store)
        split = opened.split("train")
        source = BatchSource(
            split,
            Examples.whole_histories(split),
            opened.values,
            max_length=config.model.max_length,
            token_budget=config.loop.token_budget,
            separators=config.model.separators,
        )
        return max(1, round(tokens / int(source.lengths.sum())))

    def print_table(self, name: str, chosen: list[str], seeds: int) -> None:
        """Mean and range over seeds of what is done, each beside its difference from the defaults by seed."""
        print(f"| {name} | masked loss | masked accuracy | tuning AUROC | minus defaults, by seed |")
        print("|---|---|---|---|---|")
        own = {}
        for configuration in chosen:
            runs = [seed for seed in range(seeds) if is_done(self.folder(configuration, seed, "lora"))]
            best = {
                stage: [
                    read_json(self.folder(configuration, seed, stage) / "summary.json")["best"]["metrics"]
                    for seed in runs
                ]
                for stage in ("pretrain", "lora")
            }
            own[configuration] = {seed: row["val_auroc"] for seed, row in zip(runs, best["lora"], strict=True)}
            if not runs:
                continue
            loss, accuracy = ([row[key] for row in best["pretrain"]] for key in ("val_loss", "val_accuracy"))
            against = [
                f"{auroc - own['defaults'][seed]:+.3f}"
                for seed, auroc in own[configuration].items()
                if seed in own.get("defaults", {}) and configuration != "defaults"
            ]
            cells = [
                configuration, f"{np.mean(loss):.3f}", f"{np.mean(accuracy):.1%}",
                f"{np.mean(list(own[configuration].values())):.3f}", ", ".join(against),
            ]  # fmt: skip
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
