"""The same task with the labels of fewer subjects."""

from __future__ import annotations

import numpy as np
import polars as pl

from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import ConfigError

TUNING_SHARE = 0.2
"""Of the labelled subjects, those that stop the training and choose settings."""


def keep_labelled(store: TokenStore, labels: pl.DataFrame, subjects: int, seed: int) -> pl.DataFrame:
    """The labels of some train and tuning subjects, drawn at random, and of all held-out ones.

    Args:
        store: Says who is in which split.
        labels: Columns of `LABEL_SCHEMA`.
        subjects: Labelled subjects of train and tuning together, of which `TUNING_SHARE` are of tuning.
        seed: Of the draw; the smaller of two draws with one seed is part of the larger.

    Raises:
        ConfigError: a split has fewer labelled subjects than asked for.
    """
    ids = labels["subject_id"].unique().sort().to_numpy()
    tuning = round(subjects * TUNING_SHARE)
    chosen = [ids[store.split("held_out").index_of(ids) >= 0]]
    for split, number in (("train", subjects - tuning), ("tuning", tuning)):
        there = ids[store.split(split).index_of(ids) >= 0]
        if not 0 < number <= len(there):
            raise ConfigError(
                f"labelled subjects of {split}",
                got=f"{number} of the {subjects} asked for",
                expected=f"1 to {len(there)}",
                remedy="ask for another number of labelled subjects",
            )
        chosen.append(np.random.default_rng([seed, len(split)]).permutation(there)[:number])
    return labels.filter(pl.col("subject_id").is_in(np.concatenate(chosen)))


FEWEST_TUNING = 100
"""Subjects of tuning whose labels are kept at any share, or all there are: fewer choose an epoch at random."""


def keep_share(store: TokenStore, labels: pl.DataFrame, share: float, seed: int) -> pl.DataFrame:
    """The labels of a share of the train and of the tuning subjects, and of all held-out ones.

    Args:
        share: Above 0, up to 1; of two draws with one seed the smaller is part of the larger.

    Raises:
        ConfigError: not a single subject of train is left.
    """
    ids = labels["subject_id"].unique().sort().to_numpy()
    chosen = [ids[store.split("held_out").index_of(ids) >= 0]]
    for split, fewest in (("train", 0), ("tuning", FEWEST_TUNING)):
        there = ids[store.split(split).index_of(ids) >= 0]
        number = min(max(round(share * len(there)), fewest), len(there))
        if not number:
            raise ConfigError(
                f"share of the labelled subjects of {split}", got=f"{share:g} of {len(there)}", expected="one at least",
                remedy="ask for a larger share",
            )  # fmt: skip
        chosen.append(np.random.default_rng([seed, len(split)]).permutation(there)[:number])
    return labels.filter(pl.col("subject_id").is_in(np.concatenate(chosen)))
