"""Models of every kind on the same labels: more and fewer of them, with the same number of settings tried by each."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ehrsequencing.benchmarks.cells import Claim, Observed, is_done, left_over, settle, write_comparison
from ehrsequencing.benchmarks.compare import compare, difference
from ehrsequencing.benchmarks.configuration import ModelsConfig
from ehrsequencing.benchmarks.few_labels import keep_share
from ehrsequencing.benchmarks.med2vec import NAME as MED2VEC
from ehrsequencing.benchmarks.med2vec import train_med2vec
from ehrsequencing.config import FinetuneConfig
from ehrsequencing.data.artefacts import refuse_in_data
from ehrsequencing.data.labels import read_labels, write_labels
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import ConfigError, LabelError, RunError
from ehrsequencing.io import read_json, write_json
from ehrsequencing.tracking.plots import efficiency_plot
from ehrsequencing.tracking.runs import read_run
from ehrsequencing.tracking.summary import split_key
from ehrsequencing.tracking.tables import ENDINGS, Strong, Table
from ehrsequencing.training.finetune import finetune

METRICS = ("auroc", "auprc", "brier")
PRETRAINED = ("probe", "lora", "full")
RIVALS = ("scratch", "xgboost")
SETTINGS: tuple[Mapping[str, float], ...] = (
    {"lr": 1.0},
    {"lr": 3.0},
    {"lr": 1 / 3},
    {"lr": 1.0, "dropout": 0.3},
    {"lr": 3.0, "dropout": 0.3},
    {"lr": 1 / 3, "dropout": 0.3},
    {"lr": 1.0, "weight_decay": 0.1},
    {"lr": 3.0, "weight_decay": 0.1},
)
"""What each arm tries, in this order: its own learning rate times `lr`; the others as they stand."""


@dataclass(frozen=True)
class Cell:
    """One training: an arm on a share of a task's labels, with one setting and one seed.

    Attributes:
        setting: Index into `SETTINGS`; None for the one that did best on tuning with the first seed.
    """

    task: str
    share: float
    arm: str
    setting: int | None
    seed: int

    def arm_folder(self, out: Path) -> Path:
        return out / "tasks" / self.task / f"{self.share:g}" / self.arm

    def folder(self, out: Path) -> Path:
        """The run directory."""
        if self.setting is not None:
            return self.arm_folder(out) / "settings" / f"{self.setting}"
        return self.arm_folder(out) / "arms" / f"seed-{self.seed:04d}"


def cells(config: ModelsConfig, tasks: Sequence[str]) -> Iterator[Cell]:
    """Every training; all settings of an arm before its seeds, which run with the best of them."""
    for task in tasks:
        for share in config.fractions:
            for arm in config.arms:
                for setting in range(config.settings):
                    yield Cell(task, share, arm, setting, 0)
                for seed in range(config.seeds):
                    yield Cell(task, share, arm, None, seed)


def benchmark_models(
    store_path: Path,
    labels: Sequence[Path],
    out: Path,
    config: ModelsConfig,
    *,
    from_run: Path | None = None,
    oracle: Path | None = None,
    say: Callable[[str], None],
    bars: Callable[[], AbstractContextManager[Callable[[str, int, int], None]]],
    observed: Observed,
) -> dict[str, Any] | None:
    """Train every arm on every share of the labels and judge all on the same held-out subjects.

    What is done is kept, cell by cell, and several processes that were started alike share the work.

    Args:
        store_path: Token store.
        labels: Binary label files.
        out: Where everything goes.
        config: What is compared and how.
        from_run: Pretrained run that probe, LoRA and full fine-tuning start from.
        oracle: The synthetic dataset of the store, for its ceiling and attainable optimum.

    Returns:
        The summary, which lies with tables and report in `out/comparison`; None where another process still trains.

    Raises:
        ConfigError: arms that need a pretrained run without one, or another start than the one of `out`.
        RunError: a label file is not of a binary task.
        LabelError: a split has one class at every share.
    """
    refuse_in_data(out, store_path, *labels)
    needy = [arm for arm in config.arms if arm.startswith(PRETRAINED)]
    if needy and from_run is None:
        raise ConfigError(
            f"{', '.join(needy)} start from a pretrained run", got="no --from",
            remedy="pass --from RUN of `ehrseq pretrain`, or leave them out of --arms",
        )  # fmt: skip
    store = TokenStore.open(store_path).verify()
    names = [path.stem for path in labels]
    if len(set(names)) < len(names) or not names:
        raise ConfigError("label files", got=", ".join(names) or "none", expected="one or more of different names")
    drawn = _draw(store, labels, config.fractions)
    shared = {
        "finetune": config.finetune.model_dump(mode="json"),
        "settings": config.settings,
        "pretrain": config.pretrain.model_dump(mode="json"),
        "from_run": str(from_run.resolve()) if from_run is not None else None,
    }
    settle(out, shared, config.seeds, store, labels)
    files = {}
    for (task, share), (frame, manifest) in drawn.items():
        files[task, share] = out / "labels" / f"{share:g}" / f"{task}.parquet"
        if not files[task, share].exists():
            files[task, share].parent.mkdir(parents=True, exist_ok=True)
            write_labels(files[task, share], frame, manifest)
    skipped: dict[tuple[str, float], str] = {}
    everything = list(cells(config, names))
    for cell in everything:
        if (cell.task, cell.share) not in skipped:
            try:
                _train(cell, store, files[cell.task, cell.share], out, config, from_run, observed)
            except LabelError as problem:
                # The smallest shares of a rare outcome may hold none of it.
                skipped[cell.task, cell.share] = str(problem).split(". Remedy")[0]
                say(f"{cell.task} at {cell.share:.0%} of labels is left out: {skipped[cell.task, cell.share]}")
    places = [place for place in files if place not in skipped]
    if not places:
        raise LabelError("no share of the labels can be trained on", got="; ".join(skipped.values()))
    vectors = med2vec_runs(out, config)
    for seed, run in enumerate(vectors):
        with Claim(run.with_name(f".{run.name}.lock")) as mine:
            if mine:
                train_med2vec(store.path, run, config.pretrain, f"med2vec seed {seed}", observed, seed=seed)
    runs = [*vectors, *(cell.folder(out) for cell in everything if (cell.task, cell.share) in places)]
    if left_over(runs, say):
        return None
    with Claim(out / "judge.lock") as mine:
        if not mine:
            return None
        judged = {place: _judge(place, store, files[place], out, config, oracle, say, bars) for place in places}
    return _write(out, config, store, judged, skipped, from_run)


def med2vec_runs(out: Path, config: ModelsConfig) -> list[Path]:
    """The Med2Vec of every seed, on all train subjects and no label; none where nobody reads their vectors."""
    seeds = range(config.seeds if MED2VEC in config.baselines else 0)
    return [out / "med2vec" / "arms" / f"seed-{seed:04d}" for seed in seeds]


def _draw(
    store: TokenStore, labels: Sequence[Path], shares: Sequence[float]
) -> dict[tuple[str, float], tuple[Any, dict[str, Any]]]:
    drawn = {}
    for path in labels:
        frame, manifest = read_labels(path)
        if frame["boolean_value"].null_count() == len(frame):
            raise RunError(f"{path} is not of a binary task", expected="labels in boolean_value")
        for share in shares:
            noted = {**manifest, "labelled_share": share, "draw": 0}
            drawn[path.stem, share] = (keep_share(store, frame, share, seed=0), noted)
    return drawn


def cell_config(config: ModelsConfig, arm: str, setting: int, seed: int) -> FinetuneConfig:
    """Options of one training."""
    options = config.finetune.model_dump(exclude_unset=True)
    if arm.startswith("lora"):
        options |= {"method": "lora", "lora": {**options.get("lora", {}), "rank": int(arm.removeprefix("lora"))}}
    elif arm in ("scratch", "probe", "full"):
        options |= {"method": arm}
    else:
        options |= {"architecture": arm, "method": "scratch"}
    if not arm.startswith("lora"):
        options.pop("lora", None)
    changes = SETTINGS[setting]
    options["loop"] = {**options.get("loop", {}), "seed": seed}
    own = FinetuneConfig.model_validate(options).optim
    options["optim"] = {**options.get("optim", {}), "lr": min(own.lr * changes["lr"], 1.0)}
    if "weight_decay" in changes:
        options["optim"]["weight_decay"] = changes["weight_decay"]
    if "dropout" in changes:
        options["model"] = {**options.get("model", {}), "dropout": changes["dropout"]}
    return FinetuneConfig.model_validate(options)


def best_setting(cell: Cell, out: Path, settings: int) -> int:
    """The setting with the best AUROC on tuning; the first of equals."""
    found = []
    for setting in range(settings):
        run = read_run(replace(cell, setting=setting).folder(out))
        found.append(next(entry["value"] for key, entry in run.metrics.items() if key.endswith("/auroc")))
    return max(range(settings), key=lambda index: found[index])


def _train(
    cell: Cell,
    store: TokenStore,
    labels: Path,
    out: Path,
    config: ModelsConfig,
    from_run: Path | None,
    observed: Observed,
) -> None:
    """Run one training unless it is done, or another process has it or the settings that it is chosen from."""
    run, setting = cell.folder(out), cell.setting
    if is_done(run):
        return
    if setting is None:
        tried = [replace(cell, setting=index, seed=0).folder(out) for index in range(config.settings)]
        if not all(map(is_done, tried)):
            return
        setting = best_setting(replace(cell, seed=0), out, config.settings)
    with Claim(run.parent / f".{run.name}.lock") as mine:
        if not mine or is_done(run):
            return
        if cell.setting is None and cell.seed == 0:
            # The same training was run when settings were tried.
            unfinished = run.with_name(f".{run.name}.partial")
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(replace(cell, setting=setting).folder(out), unfinished)
            unfinished.rename(run)
            return
        with observed(f"{cell.task} {cell.share:.0%} {cell.arm} setting {setting} seed {cell.seed}") as observer:
            finetune(
                store.path, labels, run, cell_config(config, cell.arm, setting, cell.seed),
                from_run=from_run if cell.arm.startswith(PRETRAINED) else None,
                resume=(run / "metadata.json").exists(), observer=observer,
            )  # fmt: skip


def _judge(
    place: tuple[str, float],
    store: TokenStore,
    labels: Path,
    out: Path,
    config: ModelsConfig,
    oracle: Path | None,
    say: Callable[[str], None],
    bars: Callable[[], AbstractContextManager[Callable[[str, int, int], None]]],
) -> dict[str, Any]:
    """Figures of all arms on one task and share, kept beside their runs."""
    task, share = place
    file = out / "tasks" / task / f"{share:g}" / "judged.json"
    asked = {
        "arms": list(config.arms), "baselines": list(config.baselines), "seeds": config.seeds,
        "oracle": str(oracle.resolve()) if oracle is not None else None,
    }  # fmt: skip
    if file.exists() and (known := read_json(file))["asked"] == asked:
        return known
    say(f"judging {len(config.arms)} arms on {task} with {share:.0%} of its labels")
    with bars() as update:
        found = compare(
            [Cell(task, share, arm, None, 0).arm_folder(out) for arm in config.arms], store.path, labels,
            names=config.arms, baselines=[name for name in config.baselines if name != MED2VEC],
            budget=max(config.settings, 4), oracle=oracle,
            med2vec=out / "med2vec" if MED2VEC in config.baselines else None, say=say, progress=update,
        )  # fmt: skip
    arms = {arm.name: arm for arm in found.arms}
    pairs = [(name, rival) for name in arms for rival in RIVALS if rival in arms and name != rival]
    held = found.examples["held_out"]
    judged = {
        "asked": asked,
        "metrics": {
            name: {
                key.rpartition("/")[2]: entry
                for key, entry in entries.items()
                if split_key(key)[0] == found.task and key.rpartition("/")[2] in METRICS
            }
            for name, entries in found.metrics.items()
        },
        "differences": [difference(arms[a], arms[b], "auroc", held, task, 1000, 0) for a, b in pairs],
        "models": found.report["models"],
        "notes": found.notes,
        "rows": {split: len(rows.index) for split, rows in found.examples.items()},
        "positives": {split: int((np.asarray(rows.target) > 0.5).sum()) for split, rows in found.examples.items()},
    }
    write_json(file, judged)
    return judged


def _write(
    out: Path,
    config: ModelsConfig,
    store: TokenStore,
    judged: Mapping[tuple[str, float], Mapping[str, Any]],
    skipped: Mapping[tuple[str, float], str],
    from_run: Path | None,
) -> dict[str, Any]:
    metrics: dict[str, dict[str, Any]] = {}
    differences: list[dict[str, Any]] = []
    models: dict[str, dict[str, Any]] = {}
    notes: dict[str, None] = {}
    for (task, share), found in judged.items():
        key = f"{task}, {share:.0%} of labels"
        for name, entries in found["metrics"].items():
            metrics.setdefault(name, {}).update({f"{key}/{metric}": entry for metric, entry in entries.items()})
        differences += [{**row, "metric": f"{key}/auroc"} for row in found["differences"]]
        models |= {row["model"]: row for row in found["models"]}
        notes |= dict.fromkeys(found["notes"])
    tasks = list(dict.fromkeys(task for task, _ in judged))
    sections = {
        "title": "Models by the number of labels",
        "models": list(models.values()),
        "caveats": [
            f"Every arm tried {config.settings} settings with the first seed and was chosen by AUROC on tuning; every "
            f"baseline tried {max(config.settings, 4)}. Seeds 0 to {config.seeds - 1} vary training, not the labelled "
            "subjects.",
            *(
                [f"{MED2VEC} reads visit vectors of a Med2Vec per seed, of all train subjects and no label."]
                if MED2VEC in config.baselines
                else []
            ),
            f"Pretrained arms start from {from_run}." if from_run is not None else "Nothing was pretrained.",
            *(f"{task} at {share:.0%} was left out: {why}" for (task, share), why in skipped.items()),
            *notes,
        ],
    }
    shown = {task: _table(task, judged) for task in tasks}
    tables = {"models.md": "\n".join(f"### {t.caption}\n\n{t.written('markdown')}" for t in shown.values())}
    for task, table in shown.items():
        tables |= {f"{task}{ending}": table.written(ENDINGS[ending]) for ending in (".csv", ".tex")}
    summary = write_comparison(out, store, config, metrics, differences, in_words(judged), sections, tables)
    for task in tasks:
        curves = {
            name: [
                (share, found["metrics"][name]["auroc"])
                for (other, share), found in judged.items()
                if other == task and "auroc" in found["metrics"].get(name, {})
            ]
            for name in metrics
        }
        efficiency_plot(out / "comparison" / "plots" / f"labels_{task}.png", curves, "AUROC, held out", task)
    return summary


def _table(task: str, judged: Mapping[tuple[str, float], Mapping[str, Any]]) -> Table:
    """A row per model, a column per share of the labels: AUROC with its interval."""
    shares = {share: found for (other, share), found in judged.items() if other == task}
    names = list(dict.fromkeys(name for found in shares.values() for name in found["metrics"]))
    head = ["Model"]
    for share, found in shares.items():
        head.append(f"{share:.0%} of labels ({found['positives']['train']:,} positive of {found['rows']['train']:,})")
    rows = []
    for name in names:
        cells_of_row = [name]
        for found in shares.values():
            entry = found["metrics"].get(name, {}).get("auroc")
            best = max(
                value["auroc"]["value"]
                for model, value in found["metrics"].items()
                if "auroc" in value and not model.startswith("oracle: ")
            )
            text = "" if entry is None else f"{entry['value']:.3f} ({entry['low']:.3f} to {entry['high']:.3f})"
            cells_of_row.append(Strong(text) if entry is not None and entry["value"] == best else text)
        rows.append(cells_of_row)
    return Table(f"{task}, AUROC on held-out subjects", head, rows)


def in_words(judged: Mapping[tuple[str, float], Mapping[str, Any]]) -> list[str]:
    """One sentence per task and share: the best pretrained arm against training from scratch and XGBoost."""
    sentences = []
    for (task, share), found in judged.items():
        adapted = {
            name: entries["auroc"]["value"] for name, entries in found["metrics"].items() if name.startswith(PRETRAINED)
        }
        rows = {(row["a"], row["b"]): row for row in found["differences"]}
        if not adapted:
            continue
        best = max(adapted, key=lambda name: adapted[name])
        parts = []
        for rival in RIVALS:
            if (row := rows.get((best, rival))) is not None:
                verdict = "above" if row["low"] > 0 else "below" if row["high"] < 0 else "not told apart from"
                parts.append(f"{verdict} {rival} ({row['value']:+.3f}, {row['low']:+.3f} to {row['high']:+.3f})")
        # The best of several on held-out subjects is flattered a little; its rivals are one each.
        sentences.append(
            f"{task} with {share:.0%} of labels: {best} has the highest AUROC of the pretrained arms on held-out "
            f"subjects, {adapted[best]:.3f}: {', '.join(parts)}."
        )
    return sentences
