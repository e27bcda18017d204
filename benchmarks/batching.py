"""How fast batches are built, and how much of them is padding, by length and in random order.

    python benchmarks/batching.py STORE [--token-budget 8192] [--max-length 512]

The random order fills batches with the same number of examples on average, as a fixed batch size would.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from ehrsequencing.data.batching import BatchSource
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--token-budget", type=int, default=8192)
    parser.add_argument("--max-length", type=int, default=512)
    arguments = parser.parse_args()

    start = time.perf_counter()
    store = TokenStore.open(arguments.store)
    split, values = store.split("train"), store.values
    opened = time.perf_counter() - start
    source = BatchSource(
        split, Examples.whole_histories(split), values,
        max_length=arguments.max_length, token_budget=arguments.token_budget, max_examples=2**31,
    )  # fmt: skip
    print(f"{len(split):,} subjects, {split.offsets[-1]:,} events; opened in {1000 * opened:.0f} ms")

    lengths, count = source.lengths, source.num_batches(0)
    order = np.random.default_rng(0).permutation(len(lengths))
    at_random = [np.sort(part) for part in np.array_split(order, count)]
    by_length = [source.batch(0, index).example_ids.numpy() for index in range(count)]
    padded = {name: _padded(lengths, plan) for name, plan in (("by length", by_length), ("random", at_random))}
    seconds = {name: _seconds(source, plan) for name, plan in (("by length", by_length), ("random", at_random))}

    tokens = int(lengths.sum())
    print(f"{'plan':<10} {'batches':>8} {'padding':>9} {'cells':>13} {'seconds':>8} {'tokens/s':>12}")
    for name in padded:
        share = 1 - tokens / padded[name]
        print(
            f"{name:<10} {count:>8,} {share:>9.1%} {padded[name]:>13,} {seconds[name]:>8.2f}"
            f" {tokens / seconds[name]:>12,.0f}"
        )
    print(
        f"ratio      cells computed {padded['random'] / padded['by length']:.2f}x,"
        f" building {seconds['random'] / seconds['by length']:.2f}x (random over by length)"
    )


def _padded(lengths: np.ndarray, plan: list[np.ndarray]) -> int:
    return sum(len(chosen) * int(lengths[chosen].max()) for chosen in plan)


def _seconds(source: BatchSource, plan: list[np.ndarray]) -> float:
    start = time.perf_counter()
    for chosen in plan:
        source.build(chosen)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
