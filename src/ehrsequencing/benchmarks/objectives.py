"""What each objective of pretraining adds: the same tokens, the same labels, probe, LoRA and full fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrsequencing.benchmarks.cells import Claim, Observed, is_done, left_over, settle, write_comparison
from ehrsequencing.benchmarks.compare import Comparison, compare, difference
from ehrsequencing.benchmarks.configuration import ObjectivesConfig
from ehrsequencing.benchmarks.few_labels import keep_labelled
from ehrsequencing.config import METHOD_LR, FinetuneConfig, PretrainConfig
from ehrsequencing.data.artefacts import refuse_in_data
from ehrsequencing.data.labels import read_labels, write_labels
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import ConfigError, RunError
from ehrsequencing.tracking.summary import split_key
from ehrsequencing.training.finetune import finetune
from ehrsequencing.training.objectives import OBJECTIVES
from ehrsequencing.training.pretrain import pretrain
from ehrsequencing.training.runs import batch_source, model_config

SCRATCH = "scratch"
METRIC = "auroc"
BASELINES = ("logistic_regression", "xgboost")


@dataclass(frozen=True)
class Cell:
    """One training: a pretraining, or the fine-tuning of one (or of nothing, `SCRATCH`) on a task."""

    objective: str
    seed: int
    task: str = ""
    method: str = ""

    @property
    def name(self) -> str:
        """Name of the model that its seeds together are."""
        return self.objective if self.objective == SCRATCH else f"{self.objective} {self.method}"

    def arm(self, out: Path) -> Path:
        """The folder of all its seeds."""
        return out / "tasks" / self.task / self.name.replace(" ", "-")

    def folder(self, out: Path) -> Path:
        """The run directory."""
        arms = self.arm(out) / "arms" if self.task else out / "pretrained" / self.objective
        return arms / f"seed-{self.seed:04d}"

    def base(self, out: Path) -> Path | None:
        """The run it starts from."""
        fine_tuned = self.task and self.objective != SCRATCH
        return Cell(self.objective, self.seed).folder(out) if fine_tuned else None


def cells(config: ObjectivesConfig, tasks: Sequence[str]) -> Iterator[Cell]:
    """All trainings, seed by seed, those that others start from first."""
    for seed in range(config.seeds):
        for objective in config.objectives:
            yield Cell(objective, seed)
        for task in tasks:
            yield Cell(SCRATCH, seed, task, SCRATCH)
            for objective in config.objectives:
                for method in config.methods:
                    yield Cell(objective, seed, task, method)


def benchmark_objectives(
    store_path: Path,
    labels: Sequence[Path],
    out: Path,
    config: ObjectivesConfig,
    *,
    oracle: Path | None = None,
    say: Callable[[str], None],
    bars: Callable[[], AbstractContextManager[Callable[[str, int, int], None]]],
    observed: Observed,
) -> dict[str, Any] | None:
    """Pretrain with every objective on the same number of tokens, fine-tune on every task, judge on held-out subjects.

    What is done is kept, so that a killed benchmark goes on where it was, and several processes that were started
    alike share the work: each takes the next training that nobody has.

    Args:
        store_path: Token store; all its train subjects are pretrained on.
        labels: Binary label files.
        out: Where everything goes.
        config: What is compared and how.
        oracle: The synthetic dataset of the store, for its ceiling and attainable optimum.

    Returns:
        The summary, which lies with table and report in `out/comparison`; None where another process still trains.

    Raises:
        ConfigError: two label files of one name, another configuration, other data or fewer seeds than those of `out`,
            too few labelled subjects, or tokens that are not about a number of epochs.
        RunError: a label file is not of a binary task.
    """
    refuse_in_data(out, store_path, *labels)
    names = [path.stem for path in labels]
    if len(set(names)) < len(names) or not names:
        raise ConfigError("label files", got=", ".join(names) or "none", expected="one or more of different names")
    store = TokenStore.open(store_path).verify()
    used = {path.stem: out / "labels" / path.name if config.labelled else path for path in labels}
    drawn = {}
    for path in labels:
        frame, manifest = read_labels(path)
        if frame["boolean_value"].null_count() == len(frame):
            raise RunError(f"{path} is not of a binary task", expected="labels in boolean_value")
        if config.labelled:
            frame = keep_labelled(store, frame, config.labelled, seed=0)
            drawn[path.stem] = frame, {**manifest, "labelled_subjects": config.labelled, "draw": 0}
    plans = {name: pretrain_config(config, name, 0, store) for name in config.objectives}
    tokens = {name: tokens_of(plan, store) * plan.loop.epochs for name, plan in plans.items()}
    _refuse_other_budgets(tokens, config.tokens)
    shared = config.model_dump(mode="json", exclude={"objectives", "methods", "seeds"})
    settle(out, shared, config.seeds, store, labels)
    for name, (frame, manifest) in drawn.items():
        if not used[name].exists():
            used[name].parent.mkdir(parents=True, exist_ok=True)
            write_labels(used[name], frame, manifest)
    everything = list(cells(config, names))
    for cell in everything:
        _train(cell, store, used, out, config, observed)
    if left_over([cell.folder(out) for cell in everything], say):
        return None
    with Claim(out / "judge.lock") as mine:
        return _judge(store, used, out, config, tokens, oracle, say, bars) if mine else None


def _train(
    cell: Cell, store: TokenStore, labels: Mapping[str, Path], out: Path, config: ObjectivesConfig, observed: Observed
) -> None:
    """Run one training unless it is done, or another process has it or what it starts from."""
    run, base = cell.folder(out), cell.base(out)
    if is_done(run) or (base is not None and not is_done(base)):
        return
    with Claim(run.with_name(f".{run.name}.lock")) as mine:
        if not mine or is_done(run):
            return
        resume = (run / "metadata.json").exists()
        with observed(f"{cell.task} {cell.name} seed {cell.seed}".strip()) as observer:
            if not cell.task:
                options = pretrain_config(config, cell.objective, cell.seed, store)
                pretrain(store.path, run, options, resume=resume, observer=observer)
            else:
                tuned = finetune_config(config, cell.method, cell.seed)
                finetune(store.path, labels[cell.task], run, tuned, from_run=base, resume=resume, observer=observer)


def pretrain_config(config: ObjectivesConfig, objective: str, seed: int, store: TokenStore) -> PretrainConfig:
    """Options of one pretraining: as many epochs as come nearest to the tokens asked for, and no early stop."""
    options = config.pretrain.model_dump(exclude_unset=True)
    options |= {"objective": objective, "loop": {**options.get("loop", {}), "seed": seed}}
    found = PretrainConfig.model_validate(options)
    epochs = max(1, round(config.tokens / tokens_of(found, store)))
    options["loop"] |= {"epochs": epochs, "patience": epochs}
    return PretrainConfig.model_validate(options)


def tokens_of(config: PretrainConfig, store: TokenStore) -> int:
    """Tokens that an epoch of a pretraining reads."""
    chosen = OBJECTIVES[config.objective]
    built = model_config(config.model, len(store.vocabulary), causal=chosen.causal(config))
    source = batch_source(store, "train", chosen.examples(store.split("train"), []), config.loop, built)
    return int(source.lengths.sum())


def _refuse_other_budgets(tokens: Mapping[Any, int], asked: int) -> None:
    """Pretrainings read whole epochs: ConfigError where these come nowhere near the tokens asked for."""
    off = {name: found for name, found in tokens.items() if not 2 / 3 <= found / asked <= 3 / 2}
    if off:
        raise ConfigError(
            "tokens of each pretraining, which reads whole epochs", got=f"{asked:,}",
            expected="about a multiple of an epoch: " + ", ".join(f"{name} {found:,}" for name, found in off.items()),
            remedy="ask for such a number with --tokens",
        )  # fmt: skip


def finetune_config(config: ObjectivesConfig, method: str, seed: int) -> FinetuneConfig:
    """Options of one fine-tuning; from scratch the architecture is that of the pretrainings."""
    options = config.finetune.model_dump(exclude_unset=True)
    options |= {"method": method, "loop": {**options.get("loop", {}), "seed": seed}}
    if method != "lora":
        options.pop("lora", None)
    if method == SCRATCH:
        options["model"] = config.pretrain.model.model_dump(exclude_unset=True) | options.get("model", {})
    return FinetuneConfig.model_validate(options)


def _judge(
    store: TokenStore,
    labels: Mapping[str, Path],
    out: Path,
    config: ObjectivesConfig,
    tokens: Mapping[Any, int],
    oracle: Path | None,
    say: Callable[[str], None],
    bars: Callable[[], AbstractContextManager[Callable[[str, int, int], None]]],
) -> dict[str, Any]:
    metrics: dict[str, dict[str, Any]] = {}
    differences: list[dict[str, Any]] = []
    models: dict[str, dict[str, Any]] = {}
    notes: dict[str, None] = {}
    for task, path in labels.items():
        arms = list(dict.fromkeys(cell.arm(out) for cell in cells(config, list(labels)) if cell.task == task))
        names = [arm.name.replace("-", " ") for arm in arms]
        say(f"judging {len(arms)} models on {task}")
        with bars() as update:
            judged = compare(
                arms, store.path, path,
                names=names, baselines=BASELINES, oracle=oracle, reference=SCRATCH, say=say, progress=update,
            )  # fmt: skip
        for name, entries in judged.metrics.items():
            # By the name of the label file; subgroups stay with the task's own evaluation.
            whole = {
                key.rpartition("/")[2]: entry for key, entry in entries.items() if split_key(key)[0] == judged.task
            }
            metrics.setdefault(name, {}).update({f"{task}/{metric}": entry for metric, entry in whole.items()})
        differences += _differences(judged, task, config)
        models |= {row["model"]: row for row in judged.report["models"]}
        notes |= dict.fromkeys(judged.notes)
    sentences = in_words(differences, config, list(labels))
    rows = [{"model": name, "metric": key, **entry} for name, own in metrics.items() for key, entry in own.items()]
    sections = {
        "title": "What each objective of pretraining adds",
        "models": list(models.values()),
        "caveats": [
            "Tokens that each pretraining read, of the same train subjects: "
            + ", ".join(f"{name} {number:,}" for name, number in tokens.items())
            + f"; {config.tokens:,} were asked for. Kept is the best epoch on tuning.",
            f"Seeds 0 to {config.seeds - 1} vary pretraining, fine-tuning and initialisation, not the labelled "
            "subjects.",
            "Scratch has the architecture that `ehrseq finetune` has without a base (bidirectional attention, days "
            "before the prediction time; objectives that predict from every visit have visit-causal attention and "
            f"gaps) and its own learning rate; that of full fine-tuning is {METHOD_LR['full']:g} unless set.",
            *notes,
        ],
    }
    tables = {
        "objectives.md": table(metrics, differences, list(labels)),
        "objectives.csv": pl.DataFrame(rows, infer_schema_length=None).write_csv(),
    }
    return write_comparison(out, store, config, metrics, differences, sentences, sections, tables)


def _differences(judged: Comparison, task: str, config: ObjectivesConfig) -> list[dict[str, Any]]:
    """Each pretrained model minus scratch, minus masked language modelling by the same method, minus the baselines."""
    arms = {arm.name: arm for arm in judged.arms}
    pairs: list[tuple[str, str]] = []
    for name in arms:
        objective, _, method = name.partition(" ")
        if method:
            pairs.append((name, SCRATCH))
            pairs += [(name, baseline) for baseline in BASELINES]
            if objective != "mlm" and f"mlm {method}" in arms:
                pairs.append((name, f"mlm {method}"))
    pairs += [(SCRATCH, baseline) for baseline in BASELINES]
    held = judged.examples["held_out"]
    return [difference(arms[a], arms[b], METRIC, held, task, 1000, 0) for a, b in pairs]


def in_words(differences: Sequence[Mapping[str, Any]], config: ObjectivesConfig, tasks: Sequence[str]) -> list[str]:
    """One sentence per objective on what it adds to training from scratch and to masked language modelling."""
    sentences = []
    for objective in config.objectives:
        parts = []
        for other, called in ((SCRATCH, "training from scratch"), ("mlm", "masked language modelling")):
            if other == objective or (other == "mlm" and "mlm" not in config.objectives):
                continue
            found = [
                row
                for row in differences
                if row["a"].partition(" ")[0] == objective and row["b"].partition(" ")[0] == other
            ]
            better = [row for row in found if row["low"] > 0]
            worse = [row for row in found if row["high"] < 0]
            mean = float(np.mean([row["value"] for row in found]))
            parts.append(
                f"against {called} the AUROC is {abs(mean):.3f} {'higher' if mean >= 0 else 'lower'} on average over "
                f"{len(found)} comparisons ({len(tasks)} tasks, {', '.join(config.methods)}), with an interval above "
                f"zero in {len(better)} and below in {len(worse)}"
            )
        sentences.append(f"{OBJECTIVE_NAMES[objective]}: {'; '.join(parts)}.")
    return sentences


OBJECTIVE_NAMES = {
    "mlm": "Masked language modelling",
    "nvp": "Next-visit prediction",
    "joint": "Both jointly",
    "contrastive": "Contrastive segments",
    "tte": "Time to event",
}


def table(
    metrics: Mapping[str, Mapping[str, Mapping[str, Any]]],
    differences: Sequence[Mapping[str, Any]],
    tasks: Sequence[str],
) -> str:
    """Markdown: a row per model, AUROC with its interval per task, and the difference from scratch."""

    def written(entry: Mapping[str, Any], sign: str = "") -> str:
        return f"{entry['value']:{sign}.3f} ({entry['low']:{sign}.3f} to {entry['high']:{sign}.3f})"

    head = ["model", *(f"{task}, AUROC | minus scratch" for task in tasks)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * (1 + 2 * len(tasks))]
    against = {(row["a"], row["metric"]): row for row in differences if row["b"] == SCRATCH}
    for model, entries in metrics.items():
        cells_of_row = [model]
        for task in tasks:
            entry, pair = entries.get(f"{task}/{METRIC}"), against.get((model, f"{task}/{METRIC}"))
            cells_of_row += [written(entry) if entry else "", written(pair, "+") if pair else ""]
        lines.append(f"| {' | '.join(cells_of_row)} |")
    return "\n".join(lines) + "\n"
