"""Training speed of the encoder, and what each choice in it is worth.

    python benchmarks/encoder.py --size medium --vocab 10000

All arms run in turn, round after round, so that whatever else the machine does hits all of them; the table shows
medians over rounds and ratios to the first arm of the same round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from ehrsequencing.models.behrt import BEHRTConfig, BEHRTForMLM
from ehrsequencing.objectives.mlm import mask_tokens, mlm_loss


def make_batch(tokens: int, length: int, vocab_size: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A batch without padding, and its labels."""
    rows = max(1, tokens // length)
    codes = torch.randint(5, vocab_size, (rows, length))
    inputs, labels = mask_tokens(
        codes,
        torch.ones_like(codes, dtype=torch.bool),
        torch.arange(rows),
        vocab_size=vocab_size,
        mask_id=4,
        num_special=5,
        seed=0,
        epoch=0,
    )
    batch = {
        "codes": inputs,
        "ages": torch.randint(20, 90, codes.shape),
        "visit_ids": torch.arange(length).expand(rows, -1) // 5,
        "mask": torch.ones_like(codes, dtype=torch.bool),
    }
    return batch, labels


def masked_only(model: BEHRTForMLM, batch: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Loss from logits at masked positions."""
    loss = model(**batch, labels=labels).loss
    assert loss is not None
    return loss


def everywhere(model: BEHRTForMLM, batch: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Loss from logits at all positions."""
    return mlm_loss(model(**batch).logits, labels)


def step(model: BEHRTForMLM, loss: torch.Tensor, optimiser: torch.optim.Optimizer) -> None:
    """Backward and update."""
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def matmul_rate(width: int = 1024, repeats: int = 10) -> float:
    """Floating-point operations per second of a large float32 product on this machine, now."""
    left, right = torch.randn(width, width), torch.randn(width, width)
    left @ right
    started = time.perf_counter()
    for _ in range(repeats):
        left @ right
    return repeats * 2 * width**3 / (time.perf_counter() - started)


def training_flops(model: BEHRTForMLM, rows: int, length: int, masked: int) -> float:
    """Operations of the matrix products of one step: two per weight and token forward, twice that backward."""
    config = model.config
    encoder = sum(p.numel() for p in model.behrt.encoder.parameters() if p.ndim == 2)
    projection = config.embedding_dim * config.hidden_dim
    attention = 2 * length * config.hidden_dim * config.num_layers
    head = projection + config.embedding_dim * config.vocab_size
    return 6.0 * (rows * length * (encoder + projection + attention) + masked * head)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "medium", "large"), default="medium")
    parser.add_argument("--vocab", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens a batch")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bf16", action="store_true", help="also under autocast; slow on CPUs without bf16 products")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    make_config = getattr(BEHRTConfig, options.size)
    batch, labels = make_batch(options.tokens, options.length, options.vocab)
    padded = {**batch, "mask": batch["mask"].clone()}
    padded["mask"][0, -1] = False
    bf16 = torch.autocast("cpu", torch.bfloat16)

    def bf16_masked_only(model: BEHRTForMLM, data: dict[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        with bf16:
            return masked_only(model, data, targets)

    arms: dict[str, tuple[float, dict[str, torch.Tensor], Callable[..., torch.Tensor]]] = {
        "as trained": (0.0, batch, masked_only),
        "logits at all positions": (0.0, batch, everywhere),
        "attention dropout 0.1": (0.1, batch, masked_only),
        "both": (0.1, batch, everywhere),
        "one token of padding": (0.0, padded, masked_only),
    }
    if options.bf16:
        arms["bf16 autocast"] = (0.0, batch, bf16_masked_only)
    models = {name: BEHRTForMLM(make_config(options.vocab, attention_dropout=arm[0])) for name, arm in arms.items()}
    optimisers = {name: torch.optim.AdamW(model.parameters(), lr=1e-4) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    shares: list[float] = []
    for number in range(options.rounds + 1):
        for name, (_, data, loss_of) in arms.items():
            started = time.perf_counter()
            step(models[name], loss_of(models[name], data, labels), optimisers[name])
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
        if number:
            flops = training_flops(models["as trained"], *batch["codes"].shape, int((labels != -100).sum()))
            shares.append(flops / seconds["as trained"][-1] / matmul_rate())
    count = models["as trained"].count_parameters()
    print(
        f"{options.size}, vocabulary {options.vocab:,}, {count:,} parameters, batches of {batch['codes'].numel():,} "
        f"tokens of length {options.length}, {options.threads} thread(s), {options.rounds} rounds"
    )
    print(f"{'arm':<26}{'tokens/s':>12}{'time, relative':>18}")
    for name, times in seconds.items():
        ratio = statistics.median(mine / base for mine, base in zip(times, seconds["as trained"], strict=True))
        print(f"{name:<26}{batch['codes'].numel() / statistics.median(times):>12,.0f}{ratio:>17.2f}x")
    print(f"matrix products of a step as a share of the machine's matmul rate: {statistics.median(shares):.0%}")


if __name__ == "__main__":
    main()
