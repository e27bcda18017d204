"""What a LoRA run really trained: share, size on disk, effect of every adapter, and the loss after a reload.

    python benchmarks/lora.py RUN

`RUN` is a finished `ehrseq finetune --method lora`; store, labels and base are read from it. The base is loaded afresh
in this process, the adapters from `RUN/adapter`, and the tuning loss stands beside the one noted while training.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from ehrsequencing.config import FinetuneConfig, read_config
from ehrsequencing.data.labels import read_labels
from ehrsequencing.data.store import TokenStore
from ehrsequencing.models.behrt import BEHRTForSequenceClassification
from ehrsequencing.models.lora import count_parameters, load_lora_weights
from ehrsequencing.training.examples import binary_examples
from ehrsequencing.training.plans import ClassificationPlan
from ehrsequencing.training.runs import batch_source, load_base, require_run


def output_change(model: BEHRTForSequenceClassification, batch: dict[str, torch.Tensor], training: bool) -> list[float]:
    """Largest change of a logit after noise of 0.1 in one pair of adapters at a time; dropout draws are repeated."""
    model.train(training)
    changes = []
    with torch.no_grad():
        torch.manual_seed(0)
        before = model(**batch).logits
        for name, module in model.named_modules():
            if not hasattr(module, "lora_B"):
                continue
            weights = [pair["default"].weight for pair in (module.lora_A, module.lora_B)]
            kept = [weight.clone() for weight in weights]
            generator = torch.Generator().manual_seed(1)
            for weight in weights:
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
            torch.manual_seed(0)
            changes.append((model(**batch).logits - before).abs().max().item())
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)
            if changes[-1] == 0:
                raise SystemExit(f"adapter {name} has no effect")
    return changes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    facts = json.loads((run / "metadata.json").read_text())
    history = json.loads((run / "logs" / "metrics_history.json").read_text())
    config = read_config(FinetuneConfig, run / "config.toml")
    # One thread or two split a sum differently; the run's own number is part of what makes it repeatable.
    torch.set_num_threads(config.loop.threads)
    store = TokenStore.open(facts["store"])
    labels, _ = read_labels(facts["labels"])
    tuning = binary_examples(store, labels, facts["labels"], ("tuning",))["tuning"]
    model = load_base(
        BEHRTForSequenceClassification, require_run(Path(facts["from_run"])), store, pooling=config.model.pooling
    )
    load_lora_weights(model, run / "adapter")
    source = batch_source(store, "tuning", tuning, config.loop, model.config.max_length)
    plan = ClassificationPlan(model.config, source, source)
    counts = count_parameters(model)
    adapter = sum(file.stat().st_size for file in (run / "adapter").iterdir())
    full = sum(file.stat().st_size for file in (run / "model").glob("*.safetensors"))
    print(f"trainable         {counts['trainable']:,} of {counts['total']:,} ({counts['trainable_percent']:.2f} %)")
    print(f"adapter folder    {adapter:,} bytes, beside {full:,} of the merged weights")
    batch = source.batch(0, 0).inputs(model.config.input_names)
    for mode in ("train", "eval"):
        changes = output_change(model, batch, mode == "train")
        print(f"perturbed, {mode:5}  largest logit change per adapter {min(changes):.4f} to {max(changes):.4f}, "
              f"{len(changes)} adapters")  # fmt: skip
    noted = min(entry["value"] for entry in history["val_loss"])
    reloaded = plan.validate(model.eval(), torch.device("cpu"))["loss"]
    print(f"tuning loss       {noted!r} noted by the run, {reloaded!r} after reload, difference {reloaded - noted:g}")


if __name__ == "__main__":
    main()
