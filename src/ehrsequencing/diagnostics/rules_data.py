"""Rules about what a training is fed, how fast, and what it is compared with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ehrsequencing.diagnostics.auroc import Z
from ehrsequencing.diagnostics.evidence import Evidence
from ehrsequencing.diagnostics.findings import DoesNotApply, Finding, Missing
from ehrsequencing.diagnostics.rules_learning import at_floor
from ehrsequencing.evaluation.sample_size import auroc_standard_error

MOST_UNKNOWN = 0.05
"""Share of events that read as [UNK]; rare codes of a vocabulary with a minimum count are 1 to 2 %."""
MOST_PADDING = 0.3
"""Share of padding; batches by length have below 5 %, batches as they come 70 % and more."""
SMALL_BATCH = {"cpu": 512, "mps": 2048, "cuda": 8192}
"""Padded tokens in a mean batch below which a step costs almost the same as one of fewer tokens."""
MOST_WAITING = 0.3
"""Share of a training's time spent building batches."""
FEW_STEPS = 20
LARGE_PSI = 0.1
"""Population stability index above which populations differ (Siddiqi 2006, Credit Risk Scorecards: 0.1 to 0.25 a small
shift, above a large one)."""
PSI_NOISE = 4.0
"""and above the mean of random parts of train by this many of their standard deviations."""


def unknown(run: Evidence) -> Finding | None:
    """Events whose codes the vocabulary does not have."""
    splits: dict[str, Any] = run.metadata.get("tokens") or {}
    if not splits:
        raise Missing("the run recorded no counts of tokens")
    high = {
        name: split["unknown"] / split["events"]
        for name, split in splits.items()
        if split["events"] and split["unknown"] > MOST_UNKNOWN * split["events"]
    }
    if not high:
        return None
    shares = ", ".join(
        f"{share:.1%} of {splits[name]['events']:,} events in {name.replace('_', '-')}" for name, share in high.items()
    )
    return Finding(
        "unknown-codes",
        "warning",
        "many events are of codes that the model does not know",
        f"[UNK] are {shares}",
        "`ehrseq prepare MEDS STORE --min-count 1` or --rollup for a vocabulary that covers them; of another site "
        "--vocabulary RUN/model --extend-vocabulary",
    )


def _trace(run: Evidence) -> None:
    if not run.trace:
        raise Missing("the run recorded no trace of its steps")


def padding(run: Evidence) -> Finding | None:
    """Work spent on padding."""
    share = run.metadata.get("padding_share")
    if run.trace:
        share = 1 - run.total("tokens") / run.total("cells")
    if share is None:
        raise Missing("the run recorded no padding")
    if share <= MOST_PADDING:
        return None
    return Finding(
        "padding",
        "warning",
        "much of the work is padding",
        f"{share:.1%} of what the model reads is padding",
        "a lower loop.token_budget or loop.max_examples, so that a batch holds histories of like length; a lower "
        "model.max_length",
    )


def small_batch(run: Evidence) -> Finding | None:
    """Batches so small that the device idles."""
    _trace(run)
    steps, device = run.total("steps"), str(run.option("loop.device") or "cpu")
    least = SMALL_BATCH.get(device, SMALL_BATCH["cpu"])
    cells = run.total("cells") / steps
    epochs = len({row["epoch"] for row in run.trace})
    if cells >= least:
        return None
    if steps / epochs < FEW_STEPS:
        # More per batch would leave too few steps to learn in.
        return None
    budget = run.option("loop.token_budget")
    by_budget = not budget or cells > budget / 2
    return Finding(
        "small-batch",
        "note",
        f"batches are small for {device}",
        f"a mean batch has {cells:,.0f} padded tokens in {run.total('examples') / steps:,.0f} histories; {least:,} "
        f"keep the device busy; {1000 * run.total('seconds') / steps:.0f} ms a step",
        f"--set loop.token_budget={8 * least}" if by_budget else "--set loop.max_examples=1024",
    )


def loader_bound(run: Evidence) -> Finding | None:
    """Steps that wait for their batch."""
    _trace(run)
    if run.total("steps") < FEW_STEPS:
        raise Missing(f"fewer than {FEW_STEPS} steps are timed")
    share = run.total("waiting_seconds") / max(run.total("seconds"), 1e-9)
    if share <= MOST_WAITING:
        return None
    steps = run.total("steps")
    return Finding(
        "loader-bound",
        "warning",
        "the training waits for its data",
        f"{share:.0%} of the time went into building batches, {1000 * run.total('waiting_seconds') / steps:.1f} of "
        f"{1000 * run.total('seconds') / steps:.1f} ms a step",
        "keep the store on a local disk and in memory; a larger loop.token_budget or --model-size costs little here",
    )


def leak(run: Evidence) -> Finding | None:
    """Subjects or knowledge that should be apart and are not."""
    parts, severity = [], "warning"
    for row in run.metadata.get("audit") or run.report.get("audit") or []:
        if row["result"] in ("error", "accepted"):
            severity = "problem"
            parts.append(f"{row['check']} ({row['result']}): {row['found'][0] if row['found'] else ''}".strip())
    overlap = run.metadata.get("base_overlap") or {}
    for split, shared in overlap.items():
        if shared:
            severity = "problem"
            parts.append(
                f"the run that --from names, or one that it came from, trained on {shared:,} subjects of "
                f"{split.replace('_', '-')}"
            )
    if parts:
        return Finding(
            "leak",
            severity,
            "the split leaks: what is judged was known before",
            "; ".join(parts),
            "correct the labels (`ehrseq task audit STORE LABELS`), or pretrain on a store with the same splits",
        )
    if run.kind == "finetune" and not (run.metadata.get("audit") or run.report.get("audit")):
        raise Missing("the labels were not audited")
    if not run.from_scratch and not overlap and run.metadata.get("from_run"):
        raise Missing("a run that this one comes from, or its store, is not at hand, so its subjects are not compared")
    return None


def shift(run: Evidence) -> Finding | None:
    """Train differs from tuning or held-out in its codes or its share of positives, beyond chance."""
    shifts: dict[str, Any] = run.metadata.get("shift") or {}
    audited = [row for row in run.metadata.get("audit") or [] if row["check"] == "shift"]
    parts = []
    for split, figures in shifts.items():
        excess = figures["psi"] - figures["null_mean"]
        if excess > LARGE_PSI and excess > PSI_NOISE * figures["null_sd"]:
            parts.append(
                f"codes of {split.replace('_', '-')} differ from those of train by a stability index of "
                f"{figures['psi']:.2f}, random parts of train of that size by {figures['null_mean']:.2f} plus or minus "
                f"{figures['null_sd']:.2f}"
            )
    parts += [line for row in audited if row["result"] == "warning" for line in row["found"]]
    counts = {split: run.label_counts(split) for split in ("train", "tuning")}
    if all(counts.values()) and not audited:
        (p, n), (q, m) = (pair for pair in counts.values() if pair)
        pooled = (p + q) / (n + m)
        error = math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
        if error and abs(p / n - q / m) > PSI_NOISE * error:
            parts.append(f"{p / n:.1%} of {n:,} labels are positive in train, {q / m:.1%} of {m:,} in tuning")
    if parts:
        return Finding(
            "shift",
            "warning",
            "the splits are of different populations",
            "; ".join(parts),
            "split by subject at random (leave out a dataset's own splits), or report it as what it is: validation on "
            "another population",
        )
    if not shifts:
        raise Missing("the run recorded no comparison of its splits")
    return None


def transfer(run: Evidence) -> Finding | None:
    """A pretraining that the task does not profit from."""
    if run.kind != "finetune":
        raise DoesNotApply("about fine-tuning")
    if run.from_scratch:
        raise DoesNotApply("nothing was pretrained")
    base = _base_at_floor(run)
    if base:
        return Finding(
            "no-transfer",
            "warning",
            "the pretraining that this run starts from learned nothing",
            base,
            "pretrain longer or on more subjects, or use --method scratch",
        )
    gain = _paired_gain(run)
    return _beside_scratch(run) if gain is None else _by_gain(*gain)


def _base_at_floor(run: Evidence) -> str:
    path = Path(str(run.metadata.get("from_run")))
    if not (path / "metadata.json").is_file():
        return ""
    base = Evidence.read(path)
    if base.kind != "pretrain" or not base.targets or not base.series(f"val_{base.targets[0].metric}"):
        return ""
    target = base.targets[0]
    if not at_floor(base, target):
        return ""
    value = min(base.series(f"val_{target.metric}").values())
    name, floor = target.best_floor
    return f"{path.name} reached {value:.3f} nats on {target.name}, its floor '{name}' has {floor:.3f}"


def _paired_gain(run: Evidence) -> tuple[float, float, float] | None:
    """AUROC of this run minus that of one from scratch on the same held-out subjects, with its interval."""
    kinds = {row["model"]: row.get("kind") for row in run.report.get("models", [])}
    for pair in run.summary.get("differences") or run.report.get("differences") or []:
        sides = kinds.get(pair["a"]), kinds.get(pair["b"])
        if "scratch" in sides and run.method in sides and pair["metric"].endswith("/auroc"):
            if sides[1] == "scratch":
                return pair["value"], pair["low"], pair["high"]
            return -pair["value"], -pair["high"], -pair["low"]
    return None


_OTHERWISE = "another --objective or a longer pretraining, or --method full; with many labels there is less to gain"


def _by_gain(gain: float, low: float, high: float) -> Finding | None:
    if low > 0:
        return None
    return Finding(
        "no-transfer",
        "problem" if high < 0 else "warning",
        "pretraining harmed this task" if high < 0 else "pretraining did not help this task",
        f"AUROC from the base minus from scratch, on the same held-out subjects: {gain:+.3f} (95 % interval {low:+.3f} "
        f"to {high:+.3f})",
        _OTHERWISE,
    )


def _beside_scratch(run: Evidence) -> Finding | None:
    """From runs in the same folder on the same labels and store without a base."""
    metadata = run.metadata
    if metadata.get("categories"):
        raise Missing("multi-label runs are compared by `ehrseq evaluate RUN STORE --with SCRATCH`")
    best = run.at_best("val_auroc")
    if best is None:
        raise Missing("no epoch is judged yet")
    folder = run.path.resolve().parent
    found: list[tuple[str, float]] = []
    # Seeds of a run lie in RUN/arms, so what is beside the run is two levels up.
    top = folder.parents[1] if folder.name == "arms" else folder
    near = [*top.glob("*/metadata.json"), *top.glob("*/arms/*/metadata.json")]
    for path in near:
        if path.parent == run.path.resolve():
            continue
        other = Evidence.read(path.parent)
        same = all(
            other.metadata.get(key) == metadata.get(key) and metadata.get(key)
            for key in ("labels_hash", "store_fingerprint")
        )
        auroc = other.at_best("val_auroc")
        if same and other.method == "scratch" and auroc is not None and other.ended:
            found.append(
                (path.parent.name if folder.name != "arms" else str(path.parent.relative_to(folder.parents[1])), auroc)
            )
    if not found:
        raise Missing("there is no run from scratch on the same labels beside it")
    name, scratch = max(found, key=lambda item: item[1])
    examples, positives = metadata["examples"]["tuning"], metadata["positives"]["tuning"]
    error = math.hypot(*(auroc_standard_error(value, positives, examples - positives) for value in (best, scratch)))
    gain = best - scratch
    if gain > 0:
        return None
    return Finding(
        "no-transfer",
        "problem" if gain < -Z * error else "warning",
        "pretraining harmed this task" if gain < -Z * error else "pretraining did not help this task",
        f"tuning AUROC {best:.3f} from the base and {scratch:.3f} from scratch ({name}); two independent figures of so "
        f"many labels differ by {Z * error:.3f} by chance",
        _OTHERWISE,
    )
