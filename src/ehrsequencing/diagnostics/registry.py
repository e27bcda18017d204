"""Every rule of the doctor, causes first. docs/doctor.md holds the same table."""

from __future__ import annotations

from ehrsequencing.diagnostics import rules_data as data
from ehrsequencing.diagnostics import rules_learning as learning
from ehrsequencing.diagnostics import rules_model as model
from ehrsequencing.diagnostics.findings import Rule

_CAUSES = ("non-finite", "lr-high", "lr-low", "frozen-random", "dead-adapter")
"""Findings about the training itself: where one holds, figures of the outcome say nothing of data or size."""

RULES: tuple[Rule, ...] = (
    Rule(
        "non-finite",
        "exploding or NaN loss",
        "values that were not finite; steps whose gradient was not",
        "any",
        "a tenth of `--lr`, `loop.precision=32-true`",
        learning.non_finite,
    ),
    Rule(
        "lr-high",
        "learning rate too high",
        "training loss within epochs; size of a step beside its weights",
        f"loss {5 * learning.CLIMB:.0%} above where it began, or steps above {learning.HIGH_UPDATE:g} (from step "
        f"{learning.SETTLED_STEPS}) with the loss at its floor or {learning.CLIMB:.0%} above its lowest; beyond "
        f"{learning.NOISE:g} standard errors",
        "a tenth of `--lr`",
        learning.lr_high,
        explained_by=("non-finite",),
    ),
    Rule(
        "lr-low",
        "learning rate too low",
        "size of a step beside its weights; tuning loss beside its floor",
        f"loss at its floor and steps below {learning.LOW_UPDATE:g} that move weights by {learning.LEAST_MOVED:.0%} at "
        f"most together, or below {learning.LEAST_UPDATE:g}",
        "ten times `--lr`",
        learning.lr_low,
        explained_by=("non-finite",),
    ),
    Rule(
        "frozen-random",
        "frozen random embeddings, encoder or head",
        "parameters that neither train nor come from a pretraining",
        "any",
        "`--from RUN`, or `--method scratch`",
        model.frozen_random,
    ),
    Rule(
        "dead-adapter",
        "adapter without gradient or effect",
        "norm of what each adapter adds beside the weights it adapts; gradients",
        f"below {model.LEAST_EFFECT:g}, or a matrix without a gradient",
        "`lora.alpha`, a higher `--lr`, `--method full`",
        model.adapters,
        explained_by=("non-finite",),
    ),
    Rule(
        "trainable-share",
        "trainable share other than intended",
        "parameters that train, by part of the model and method",
        f"LoRA above {model.MOST_TRAINABLE:.0%} or with the encoder; a probe with more than the head; frozen parts "
        "in full, scratch or pretraining",
        "`--lora-rank`, `lora.train_embeddings=false`",
        model.trainable_share,
    ),
    Rule(
        "no-gradient",
        "parts that train in name only",
        "trainable parameters whose gradient was never other than 0",
        "any outside adapters",
        "another objective or model option",
        model.no_gradient,
        explained_by=("non-finite",),
    ),
    Rule(
        "leak",
        "a split that leaks",
        "rows of the audit; subjects of tuning and held-out that a run it comes from trained on",
        "an error, accepted or not; one subject",
        "`ehrseq task audit`; pretrain on the same splits",
        data.leak,
    ),
    Rule(
        "small-validation",
        "a validation set too small to mean anything",
        "95 % interval of the tuning AUROC (Hanley and McNeil; of several labels DeLong, over subjects) or loss (over "
        "subjects)",
        f"half width above {learning.WIDE_AUROC:g}, or above {learning.WIDE_LOSS:.0%} of the floor; fewer than "
        f"{learning.MIN_SUBJECTS} subjects",
        "more subjects",
        learning.small_validation,
        explained_by=("non-finite", "lr-high"),
    ),
    Rule(
        "unlearnable",
        "unlearnable data",
        "floors of masked codes beside each other, and the tuning loss beside them",
        f"no floor {learning.FLAT_FLOORS:.0%} below the uniform one, the loss within {learning.NEAR_FLOOR:.0%} of it, "
        f"changed by less than {learning.CONVERGED:.0%} in the last epoch",
        "other records; `ehrseq inspect STORE`",
        learning.unlearnable,
        explained_by=_CAUSES,
    ),
    Rule(
        "chance-level",
        "chance level",
        "95 % interval of the tuning loss beside the strongest floor, or of AUROC beside 0.5",
        "the interval reaches the floor",
        "`--epochs`, `--lr`, the labels",
        learning.chance,
        explained_by=(*_CAUSES, "unlearnable", "small-validation"),
    ),
    Rule(
        "overfitting",
        "overfitting",
        "tuning and training loss since the best epoch; accuracies at it",
        f"tuning loss up by {learning.RISE:.0%} of its floor while training falls to {learning.LOSS_GAP:.0%} of it "
        f"below, or train {100 * learning.ACCURACY_GAP:.0f} points more accurate",
        "`model.dropout`, `optim.weight_decay`, `--lora-rank`, more subjects",
        learning.overfitting,
        explained_by=("non-finite", "lr-high", "unlearnable"),
    ),
    Rule(
        "stopped-soon",
        "early stopping too soon",
        "tuning loss of the last epochs, patience",
        f"the last epoch is the best and lowered the loss by {learning.STILL_FALLING:.0%} of its floor, or a patience "
        f"of at most {learning.FEW_BAD_EPOCHS} ran out within noise",
        "`--epochs`, `loop.patience`",
        learning.stopped_soon,
        explained_by=("non-finite", "lr-high", "lr-low", "frozen-random", "unlearnable", "overfitting"),
    ),
    Rule(
        "underfitting",
        "underfitting",
        "training loss at the best epoch beside the strongest floor",
        f"not {learning.UNFITTED:.0%} below it (labels: {learning.UNFITTED_LABELS:.0%})",
        "`--epochs`, `--model-size`, `--lora-rank`, less `model.dropout`",
        learning.underfitting,
        explained_by=(*_CAUSES, "unlearnable", "chance-level", "overfitting", "stopped-soon"),
    ),
    Rule(
        "collapse",
        "embedding collapse",
        "mean cosine and effective rank of code embeddings; effective rank of pretrained states of histories",
        f"cosine above {model.COLLAPSED_COSINE:g}, rank of codes below {model.COLLAPSED_RANK:.0%} of the largest, of "
        f"histories below {model.FLAT_RANK:g}",
        "a lower `--lr`, another objective beside",
        model.collapse,
        explained_by=("non-finite", "lr-high"),
    ),
    Rule(
        "dead-heads",
        "dead heads",
        "what each attention head adds that differs between tokens",
        f"below {model.DEAD_HEAD:.0%} of the mean of its layer",
        "a lower `--lr`, `optim.warmup_share`",
        model.dead_heads,
        explained_by=("non-finite", "lr-high"),
    ),
    Rule(
        "unknown-codes",
        "UNK share",
        "events that read as [UNK], per split",
        f"above {data.MOST_UNKNOWN:.0%}",
        "`ehrseq prepare --min-count`, `--extend-vocabulary`",
        data.unknown,
    ),
    Rule(
        "shift",
        "shifted distributions",
        "population stability index of token counts beside that of random parts of train; shares of positives; audit",
        f"{data.LARGE_PSI:g} and {data.PSI_NOISE:g} standard deviations above chance",
        "random splits, or report it as another population",
        data.shift,
    ),
    Rule(
        "padding",
        "padding share",
        "tokens and padded tokens of all steps",
        f"above {data.MOST_PADDING:.0%}",
        "`loop.token_budget`, `loop.max_examples`, `model.max_length`",
        data.padding,
    ),
    Rule(
        "small-batch",
        "batch too small for the device",
        "padded tokens of a mean batch",
        f"below {', '.join(f'{count} on {name}' for name, count in data.SMALL_BATCH.items())}, in epochs of "
        f"{data.FEW_STEPS} steps and more",
        "`loop.token_budget`, `loop.max_examples`",
        data.small_batch,
    ),
    Rule(
        "loader-bound",
        "loader-bound steps",
        "share of time spent building batches",
        f"above {data.MOST_WAITING:.0%}",
        "a local disk; `loop.token_budget`",
        data.loader_bound,
    ),
    Rule(
        "no-transfer",
        "pretraining that did not transfer",
        "the base run beside its floor; paired differences of an evaluation; a run from scratch in the same folder",
        "base at its floor; interval of the gain in AUROC that reaches 0; no gain",
        "another objective, longer pretraining, `--method full`",
        data.transfer,
        explained_by=(*_CAUSES, "small-validation"),
    ),
)
