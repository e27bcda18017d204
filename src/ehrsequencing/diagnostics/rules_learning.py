"""Rules about whether and how a training learned: losses beside floors, learning rate, stopping."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import fmean, median

from ehrsequencing.diagnostics.auroc import beside_chance, precision
from ehrsequencing.diagnostics.evidence import Evidence, Target
from ehrsequencing.diagnostics.findings import DoesNotApply, Finding, Missing

RISE = 0.02
"""Overfitting: the tuning loss ends this share of its floor above its lowest; a healthy one wanders by less within a
patience of three, and the overfitted run of the troubleshooting guide rose by 3.3 %."""
LOSS_GAP = 0.05
"""and the training loss lies this share of the floor below the tuning loss: gaps up to 5 % are healthy (the guide)."""
ACCURACY_GAP = 0.2
"""Or train is this much more accurate than tuning at the best epoch (the guide: above 20 points)."""
UNFITTED = 0.05
"""Underfitting: even the training loss lies no more than this share below the best floor."""
UNFITTED_LABELS = 0.01
"""For labels: at a prevalence of 5 % an AUROC of 0.7 is worth only 4 % of the entropy."""
FLAT_FLOORS = 0.02
"""Unlearnable: no floor beats the uniform one by this share; counts of real codes beat it by far more."""
USUAL_UPDATE = 1e-3
"""Size of a step beside its weights that trains well (Karpathy, CS231n notes, Neural Networks Part 3, "Ratio of
weights:updates"); a healthy run here has 3e-3."""
LOW_UPDATE = USUAL_UPDATE / 2
LEAST_MOVED = 0.1
"""Learning rate too low: all steps together move the weights by at most this share (the sum of their sizes; a healthy
run moves them by 0.5 and more)."""
LEAST_UPDATE = USUAL_UPDATE / 50
"""or each step by less than this, however many there are."""
HIGH_UPDATE = 2e-2
"""Measured on small models: 1.3e-2 still trains well, at 3.9e-2 the loss stays at its floor."""
CLIMB = 0.1
"""Learning rate too high: the training loss ends this share above its lowest, or five times it above where it began."""
BLOCKS = 8
"""Parts in which a training's loss is compared with itself,"""
NOISE = 6.0
"""and how many standard errors of a part, from the scatter of neighbours, a difference must have."""
SETTLED_STEPS = 40
"""Steps before which Adam's moments are too young for the size of a step to say much."""
NEAR_FLOOR = 0.05
"""Unlearnable: the loss has come within this share of the uniform floor: random codes that are learned by heart cost a
little more than guessing,"""
CONVERGED = 0.01
"""and the last epoch lowered it by less than this share."""
STILL_FALLING = 0.02
"""Stopped too soon: the last epoch still lowered the tuning loss by this share of its floor."""
FEW_BAD_EPOCHS = 2
MIN_SUBJECTS = 30
"""Fewer clusters make intervals by linearisation too narrow (Cochran 1977, section 6.9)."""
WIDE_AUROC = 0.1
"""Validation too small: an AUROC is known no better than to plus or minus this."""
WIDE_LOSS = 0.05
"""or a loss to plus or minus this share of its strongest floor."""


def target_of(run: Evidence) -> Target:
    """The figure that matters and its floors."""
    if not run.targets:
        if run.metadata.get("categories"):
            raise Missing("a multi-label loss has no single floor")
        raise Missing("the run names no floors")
    return run.targets[0]


def tuning_losses(run: Evidence) -> dict[int, float]:
    """{epoch: tuning loss}, at least one."""
    found = run.series("val_loss")
    if not found:
        raise Missing("no epoch is judged yet")
    return found


def at_floor(run: Evidence, target: Target) -> bool:
    """Whether the best tuning loss is no better than the strongest floor, within noise where that is known."""
    losses = run.series(f"val_{target.metric}")
    if not losses:
        raise Missing("no epoch is judged yet")
    interval = run.interval(target)
    best = min(losses.values()) if interval is None else interval[2]
    return best >= target.best_floor[1]


def _scale(run: Evidence) -> float:
    """What a difference in loss is measured by: the strongest floor, or the best loss where there is none."""
    if run.targets and len(run.targets) == 1:
        return run.targets[0].best_floor[1]
    return min(run.series("val_loss").values())


def non_finite(run: Evidence) -> Finding | None:
    """A loss or a gradient that is NaN or infinite."""
    strange = run.metadata.get("non_finite") or []
    steps = int(run.total("non_finite"))
    if not strange and not steps:
        if not run.history and not run.trace:
            raise Missing("nothing is logged yet")
        return None
    parts = [f"{item['metric']} was {item['value']} at epoch {item['epoch']}" for item in strange[:3]]
    parts += [f"the gradient was not finite in {steps} steps"] if steps else []
    rate = run.option("optim.lr")
    lower = f"--lr {rate / 10:g}" if rate else "a tenth of the learning rate"
    return Finding(
        "non-finite",
        "problem" if strange else "warning",
        "the loss or its gradient is not finite",
        "; ".join(parts) + (f" at a learning rate of {rate:g}" if rate else ""),
        f"{lower}, --set loop.precision=32-true, a lower optim.clip; `ehrseq inspect STORE` if inputs hold odd values",
    )


def overfitting(run: Evidence) -> Finding | None:
    """Tuning loss rises while training loss falls, or train is far more accurate than tuning."""
    tuning, train = tuning_losses(run), run.series("train_loss")
    best, last = run.best_epoch, max(tuning)
    if best is None or best not in train or last not in train:
        raise Missing("train losses are not logged")
    parts = []
    scale = _scale(run)
    rise = (tuning[last] - tuning[best]) / scale
    # A weighted or focal training loss lies on a scale of its own, and its gap says nothing.
    gap = not run.targets or not run.train_series(run.targets[0]) or tuning[last] - train[last] > LOSS_GAP * scale
    if rise > RISE and train[last] < train[best] and gap:
        parts.append(
            f"from epoch {best} to {last} the tuning loss rose from {tuning[best]:.3f} to {tuning[last]:.3f} "
            f"({tuning[last] / tuning[best] - 1:+.1%}) while the training loss fell from {train[best]:.3f} to "
            f"{train[last]:.3f}"
        )
    accuracy = run.series("train_accuracy").get(best), run.series("val_accuracy").get(best)
    if accuracy[0] is not None and accuracy[1] is not None and accuracy[0] - accuracy[1] > ACCURACY_GAP:
        parts.append(f"at the best epoch accuracy is {accuracy[0]:.1%} on train and {accuracy[1]:.1%} on tuning")
    if not parts:
        return None
    dropout = run.option("model.dropout")
    more = f"model.dropout={min(0.5, max(0.1, 2 * dropout)):g}" if isinstance(dropout, int | float) else "more dropout"
    if run.method == "lora":
        fewer = f", --lora-rank {max(1, int(run.option('lora.rank') or 8) // 2)}"
    else:
        fewer = ", --method lora" if run.method == "full" else ", --model-size one smaller"
    return Finding(
        "overfitting",
        "warning",
        "the model learns its training subjects and not what holds for others",
        "; ".join(parts) + f"; the model kept is that of epoch {best}",
        f"--set {more}, --set optim.weight_decay=0.05{fewer}; more subjects help most",
    )


def unlearnable(run: Evidence) -> Finding | None:
    """The loss stays at the floor of data in which not even a count of codes says anything."""
    if run.kind == "finetune":
        raise DoesNotApply("about pretraining")
    target = target_of(run)
    if "uniform" not in target.floors:
        raise DoesNotApply("about masked codes")
    uniform = target.floors["uniform"]
    _, best = target.best_floor
    if not at_floor(run, target) or best < uniform * (1 - FLAT_FLOORS):
        return None
    losses = run.series(f"val_{target.metric}")
    last = max(losses)
    if last - 1 not in losses:
        raise Missing("one epoch does not show whether the loss stays at its floor")
    if min(losses.values()) > uniform * (1 + NEAR_FLOOR) or losses[last - 1] - losses[last] > CONVERGED * uniform:
        return None
    return Finding(
        "unlearnable",
        "problem",
        "nothing in these records seems learnable: codes look drawn at random",
        f"the tuning loss is {min(losses.values()):.3f} nats at best, guessing evenly costs {uniform:.3f}, and neither "
        f"how often codes occur ({target.floors.get('unigram', math.nan):.3f}) nor what else a subject has "
        f"({target.floors.get('copy', math.nan):.3f}) makes it cheaper",
        "train on other records (`ehrseq synth OUT --mode realistic`); `ehrseq inspect STORE` shows whether codes were "
        "scrambled; no option of the training helps",
    )


def chance(run: Evidence) -> Finding | None:
    """The figure is no better than that of a predictor without a network, beyond noise."""
    if run.kind == "finetune":
        return _chance_auroc(run)
    target = target_of(run)
    interval = run.interval(target)
    if interval is None:
        raise Missing("the interval of the figure is known when the run ends")
    value, low, high = interval
    name, floor = target.best_floor
    if high < floor:
        return None
    return Finding(
        "chance-level",
        "problem",
        f"on {target.name} the model is no better than the floor '{name}', which needs no network",
        f"{value:.3f} nats on tuning (95 % interval {low:.3f} to {high:.3f}), {floor:.3f} of the floor",
        "train longer (--epochs), or with another --lr; see the other findings for the cause",
    )


def _chance_auroc(run: Evidence) -> Finding | None:
    auroc, half, what = beside_chance(run)
    if auroc - 0.5 > half:
        return None
    return Finding(
        "chance-level",
        "problem",
        "the model ranks subjects no better than a coin",
        f"{what}, where chance alone gives 0.5 plus or minus {half:.3f}",
        "check the labels (`ehrseq task audit STORE LABELS`), start from a pretrained run (--from), try another --lr",
    )


def small_validation(run: Evidence) -> Finding | None:
    """A tuning set whose figures have so wide an interval that they choose epochs and models by chance."""
    remedy = "prepare more subjects, or give tuning more of them; until then compare no two runs by this figure"
    if run.kind == "finetune":
        half, known = precision(run)
        if half <= WIDE_AUROC:
            return None
        return Finding(
            "small-validation",
            "warning",
            "the tuning set is too small to mean much",
            f"{known} is known to plus or minus {half:.2f} (95 %)",
            remedy,
        )
    target = target_of(run)
    interval = run.interval(target)
    if interval is None:
        raise Missing("the interval of the figure is known when the run ends")
    value, low, high = interval
    half = (high - low) / 2
    subjects = max((e.get("subjects") or 0 for m in run.summary["metrics"].values() for e in m.values()), default=0)
    if half <= WIDE_LOSS * abs(target.best_floor[1]) and subjects >= MIN_SUBJECTS:
        return None
    return Finding(
        "small-validation",
        "warning",
        "the tuning set is too small to mean much",
        f"{value:.3f} nats on {subjects} tuning subjects is known to plus or minus {half:.3f} (95 %), where the "
        f"floor has {target.best_floor[1]:.3f}"
        + ("" if subjects >= MIN_SUBJECTS else ", and from so few subjects even that is too sure"),
        remedy,
    )


def _median_update(run: Evidence) -> float:
    if run.update_ratio is None:
        raise Missing("the run recorded no sizes of updates")
    return run.update_ratio


def lr_high(run: Evidence) -> Finding | None:
    """Steps so large that the loss climbs, or stays at its floor."""
    ratio = _median_update(run)
    losses = [row["loss"] for row in run.trace]
    if len(losses) < BLOCKS:
        raise Missing("too few parts of epochs are recorded")
    size = len(losses) // BLOCKS
    blocks = [fmean(losses[start : start + size]) for start in range(0, size * BLOCKS, size)]
    blocks[-1] = fmean(losses[-size:])
    # The median difference of neighbours is 0.95 standard deviations of one, whatever the curve does as a whole.
    noise = NOISE * median(abs(a - b) for a, b in pairwise(losses)) / 0.95 / math.sqrt(size)
    begun, ended, lowest, highest = blocks[0], blocks[-1], min(blocks), max(blocks)
    parts = []
    if highest - begun > max(5 * CLIMB * begun, noise):
        parts.append(f"the training loss began at {begun:.3f}, reached {highest:.3f} and ended at {ended:.3f}")
    if ratio > HIGH_UPDATE and run.trace[-1]["step"] >= SETTLED_STEPS:
        if run.targets and run.series(f"val_{run.targets[0].metric}") and at_floor(run, run.targets[0]):
            parts.append("the tuning loss is still at its floor")
        if ended - lowest > max(CLIMB * lowest, noise) and not parts:
            parts.append(f"the training loss ended at {ended:.3f}, above the {lowest:.3f} it had reached")
    if not parts or ratio < USUAL_UPDATE:
        return None
    rate = run.option("optim.lr")
    return Finding(
        "lr-high",
        "problem",
        "the learning rate is too high",
        f"{' and '.join(parts)}; a step moves weights by {ratio:.1%} of their size, where {USUAL_UPDATE:.1%} is usual",
        f"--lr {rate / 10:g}" if rate else "a tenth of the learning rate",
    )


def lr_low(run: Evidence) -> Finding | None:
    """Steps so small that the loss has no time to leave its floor."""
    ratio = _median_update(run)
    moved = run.moved or 0.0
    if ratio >= LOW_UPDATE or (moved >= LEAST_MOVED and ratio >= LEAST_UPDATE):
        return None
    target = target_of(run)
    if not at_floor(run, target):
        return None
    steps = run.trace[-1]["step"]
    rate = run.option("optim.lr")
    value = min(run.series(f"val_{target.metric}").values())
    return Finding(
        "lr-low",
        "problem",
        "the learning rate is too low",
        f"a step moves weights by {ratio:.1e} of their size, where {USUAL_UPDATE:.0e} is usual, all {steps} by at "
        f"most {moved:.2g}; the tuning loss is {value:.3f}, no better than the floor '{target.best_floor[0]}' of "
        f"{target.best_floor[1]:.3f}",
        f"--lr {min(1.0, rate * 10):g}" if rate else "ten times the learning rate",
    )


def underfitting(run: Evidence) -> Finding | None:
    """Not even the training subjects are learned."""
    target = target_of(run)
    train = run.train_series(target)
    best = run.best_epoch
    if best is None or best not in train:
        raise Missing("no train loss beside the floor is logged")
    name, floor = target.best_floor
    if run.kind == "finetune":
        of_train = (run.metadata.get("floors") or {}).get(name, {}).get("train_loss")
        floor = run.label_entropy("train") or of_train or floor
    if train[best] < floor * (1 - (UNFITTED_LABELS if run.kind == "finetune" else UNFITTED)):
        return None
    tuning = run.series(f"val_{target.metric}")[best]
    return Finding(
        "underfitting",
        "warning",
        "the model has hardly learned even its training subjects",
        f"at the best epoch the training loss is {train[best]:.3f} and the tuning loss {tuning:.3f}; the train floor "
        f"'{name}' has {floor:.3f}",
        "--epochs 2 to 5 times as many, a larger --model-size, less dropout"
        + (", --lora-rank 32 or --method full" if run.method in ("lora", "probe") else ""),
    )


def stopped_soon(run: Evidence) -> Finding | None:
    """The run ended while the tuning loss was still falling, or patience ran out within noise."""
    if not run.ended:
        raise DoesNotApply("the run goes on")
    tuning = tuning_losses(run)
    last, best = max(tuning), min(tuning, key=lambda epoch: (tuning[epoch], epoch))
    patience = run.option("loop.patience")
    if run.status == "early_stopped" and isinstance(patience, int):
        target = run.targets[0] if run.targets else None
        interval = run.interval(target) if target else None
        noise = (interval[2] - interval[1]) / 2 if interval else None
        excess = max(tuning[epoch] - tuning[best] for epoch in tuning if epoch > best) if best != last else 0.0
        if patience <= FEW_BAD_EPOCHS and noise is not None and excess < noise:
            return Finding(
                "stopped-soon",
                "warning",
                "early stopping may have ended the run on noise",
                f"it ended after {patience} epochs without a better tuning loss; they lay {excess:.3f} above the best, "
                f"within the {noise:.3f} of its interval",
                "--set loop.patience=5",
            )
        return None
    if best != last or last == 0 or last - 1 not in tuning:
        if last == 0:
            raise Missing("one epoch shows no trend")
        return None
    gain = 1 - tuning[last] / tuning[last - 1]
    if tuning[last - 1] - tuning[last] < STILL_FALLING * _scale(run):
        return None
    return Finding(
        "stopped-soon",
        "warning",
        "the run ended while it was still getting better",
        f"epoch {last}, the last and the best, lowered the tuning loss from {tuning[last - 1]:.3f} to "
        f"{tuning[last]:.3f} ({-gain:.1%})",
        f"--epochs {2 * (last + 1)}",
    )
