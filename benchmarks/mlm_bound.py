"""How far masked language modelling of synthetic records is from what could be known.

    python benchmarks/mlm_bound.py DATA STORE [RUN] [--subjects 200] [--replicates 256]

`DATA` are realistic synthetic records, `STORE` their token store, `RUN` a finished `ehrseq pretrain`. Floors, model and
clairvoyant emission bound (docs/oracle.md) stand beside each other on the same hidden codes: the fixed masks of the
tuning split, of as many subjects as stated, drawn at random.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ehrsequencing.config import PretrainConfig, read_config
from ehrsequencing.data.batching import BatchSource
from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.sequences import Examples, truncated
from ehrsequencing.data.store import TokenStore
from ehrsequencing.data.synthetic_clairvoyant import NAME, REPLICATES, clairvoyant_bound
from ehrsequencing.data.vocabulary import MASK
from ehrsequencing.models.behrt import BEHRTConfig, BEHRTForMLM
from ehrsequencing.objectives.mlm import IGNORE_INDEX
from ehrsequencing.training.plans import FIXED_EPOCH, MLMPlan, rates
from ehrsequencing.training.pretrain import FLOOR_NAMES
from ehrsequencing.training.runs import batch_source, load_base, require_run


def some_subjects(examples: Examples, count: int) -> Examples:
    """As many examples as asked for, drawn at random, the same every time."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(examples))[:count])
    return Examples(examples.index[chosen], examples.until[chosen], None, examples.subject_id[chosen])


def hidden_rows(plan: MLMPlan, source: BatchSource) -> np.ndarray:
    """Rows of the split whose codes show the mask under the plan's fixed masks, int64."""
    windows = truncated(source.split, source.examples.index, source.examples.until, plan.config.max_length - 1)
    found = []
    for batch in source.fixed():
        inputs, labels = plan.masked(batch, FIXED_EPOCH)
        hidden = ((inputs["codes"] == MASK) & (labels != IGNORE_INDEX)).numpy()
        example, place, row = windows.rows(batch.example_ids.numpy())
        # Column 0 of a batch is CLS.
        found.append(row[hidden[example, place + 1]])
    return np.concatenate(found)


def line(name: str, loss: float, accuracy: float, top10: float) -> None:
    print(f"{loss:7.3f}  {accuracy:8.1%}  {top10:7.1%}   {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--subjects", type=int, default=200)
    parser.add_argument("--replicates", type=int, default=REPLICATES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, store = MedsDataset.open(options.data), TokenStore.open(options.store)
    config = PretrainConfig() if options.run is None else read_config(PretrainConfig, options.run / "config.toml")
    model: Any = None
    built = BEHRTConfig.small(len(store.vocabulary))
    if options.run is not None:
        model = load_base(BEHRTForMLM, require_run(options.run), store).eval()
        built = model.config
    examples = some_subjects(Examples.whole_histories(store.split("tuning")), options.subjects)
    source = batch_source(store, "tuning", examples, config.loop, built.max_length)
    plan = MLMPlan(built, source, source, store.vocabulary, rate=config.mlm.rate, seed=config.loop.seed)
    hidden = hidden_rows(plan, source)
    print(
        f"{len(hidden):,} hidden codes of {len(examples)} tuning subjects, histories of up to {built.max_length} tokens"
    )
    print("   loss  accuracy   top 10")
    for name, floor in plan.floors().items():
        line(FLOOR_NAMES[name], floor["loss"], floor["accuracy"], floor["top10"])
    if model is not None:
        sums = {name: float(found.sum()) for name, found in plan.subject_statistics(model, torch.device("cpu")).items()}
        line(f"model of {options.run}", **rates(sums))
    bound = clairvoyant_bound(data, store, "tuning", hidden, replicates=options.replicates)
    line(NAME, bound.loss.mean(), bound.correct.mean(), bound.top10.mean())
    print(f"calibration of the bound: it expects {bound.confidence.mean():.1%} of its first guesses to be right")


if __name__ == "__main__":
    main()
