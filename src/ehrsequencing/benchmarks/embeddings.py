"""Are embeddings that somebody else learned worth having? Five starts of the code vectors, everything else the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from ehrsequencing.benchmarks.arms import members
from ehrsequencing.benchmarks.cells import Claim, Observed, dataset_name, is_done, left_over, settle, write_comparison
from ehrsequencing.benchmarks.compare import compare, difference
from ehrsequencing.benchmarks.configuration import EmbeddingsConfig
from ehrsequencing.benchmarks.evaluate import learning_curve
from ehrsequencing.benchmarks.med2vec import train_med2vec
from ehrsequencing.config import FinetuneConfig
from ehrsequencing.data.artefacts import refuse_in_data
from ehrsequencing.data.labels import read_labels
from ehrsequencing.data.store import TokenStore
from ehrsequencing.data.vocabulary import NUM_SPECIAL
from ehrsequencing.errors import ConfigError, RunError
from ehrsequencing.io import hash_file, read_json
from ehrsequencing.models.embedding_files import write_embeddings
from ehrsequencing.tracking.runs import RunRecord, read_run
from ehrsequencing.tracking.summary import format_estimate, format_number, split_key
from ehrsequencing.tracking.tables import ENDINGS, Table
from ehrsequencing.training.finetune import finetune
from ehrsequencing.training.third_party import export_code_vectors

ARMS = {
    "from scratch": "embeddings learned with everything else, on the labels",
    "own, frozen": "those that the first arm learned with the same seed, frozen; LoRA and head train",
    "third party, frozen": "a stranger's file, frozen; LoRA and head train",
    "third party, trained": "the same file as initialisation, trained on; LoRA and head train",
    "random, frozen": "random vectors, frozen; LoRA and head train",
}
METRICS = ("auroc", "auprc", "brier", "ece")
PAIRS = (
    ("from scratch", "own, frozen"),
    ("own, frozen", "random, frozen"),
    ("third party, frozen", "random, frozen"),
    ("third party, frozen", "own, frozen"),
    ("third party, trained", "third party, frozen"),
    ("third party, trained", "from scratch"),
)


def benchmark_embeddings(
    store_path: Path,
    labels: Path,
    out: Path,
    config: EmbeddingsConfig,
    *,
    others: Path | None = None,
    third_party: Path | None = None,
    say: Callable[[str], None],
    bars: Callable[[], AbstractContextManager[Callable[[str, int, int], None]]],
    observed: Observed,
) -> dict[str, Any] | None:
    """Train the same model from five starts of its code vectors and judge all on the same held-out subjects.

    The arms share the initialisation of everything but code vectors, seeds, budget, split and labels. What is done is
    kept, run by run, and several processes that were started alike share the work.

    Args:
        store_path: Token store.
        labels: Binary labels.
        out: Where everything goes.
        config: Seeds, and the options of the trainings.
        others: Token store of other subjects, on which a Med2Vec is trained, exported as word2vec text, and read back
            as anybody's file would be.
        third_party: A file of code vectors in its place.

    Returns:
        The summary, which lies with table and report in `out/comparison`; None where another process still trains.

    Raises:
        ConfigError: neither `others` nor `third_party`, or both; or another start than the one of `out`.
        RunError: a subject judged here is among the others, or the labels are not of a binary task.
    """
    refuse_in_data(out, store_path, labels)
    if (others is None) == (third_party is None):
        raise ConfigError(
            "where the third party's vectors come from", got="neither" if others is None else "two sources",
            expected="--others STORE, on whose subjects Med2Vec is trained, or --third-party FILE",
        )  # fmt: skip
    store = TokenStore.open(store_path).verify()
    if read_labels(labels)[0]["boolean_value"].null_count():
        raise RunError(f"{labels} is not of a binary task", expected="labels in boolean_value")
    if others is not None:
        refuse_judged(store, TokenStore.open(others))
    shared = {
        "finetune": config.finetune.model_dump(mode="json"),
        "pretrain": config.pretrain.model_dump(mode="json"),
        "others": TokenStore.open(others).fingerprint if others is not None else None,
        "third_party": hash_file(third_party) if third_party is not None else None,
    }
    settle(out, shared, config.seeds, store, [labels])
    for seed in range(config.seeds):
        if (file := _third_party(out, others, third_party, config, observed)) is None:
            break
        for arm in ARMS:
            _train(arm, seed, store, labels, out, config, file, observed)
    runs = [_folder(out, arm, seed) for arm in ARMS for seed in range(config.seeds)]
    if left_over(runs, say):
        return None
    with Claim(out / "judge.lock") as mine:
        return _judge(store, labels, out, config, say, bars) if mine else None


def refuse_judged(store: TokenStore, others: TokenStore) -> None:
    """Subjects that are judged here must not have taught the stranger anything.

    Raises:
        RunError: one did, where both stores are of one source.
    """
    if store.manifest.get("source") != others.manifest.get("source"):
        return
    theirs = [np.asarray(others.split(name).subject_id) for name in ("train", "tuning")]
    both = np.intersect1d(np.concatenate(theirs), np.asarray(store.split("held_out").subject_id))
    if len(both):
        raise RunError(
            f"{len(both):,} subjects that are judged are among the train subjects of {others.path}",
            got=f"subject {both[0]} among them",
            expected="other subjects",
            remedy="name a store of other subjects, for example `ehrseq synth` with another seed",
        )


def _folder(out: Path, arm: str, seed: int) -> Path:
    return out / "arms" / arm.replace(", ", "-").replace(" ", "-") / "arms" / f"seed-{seed:04d}"


def _third_party(
    out: Path, others: Path | None, file: Path | None, config: EmbeddingsConfig, observed: Observed
) -> Path | None:
    """The stranger's file, made first where it is ours to make; None where another process is making it."""
    if file is not None:
        return file
    made, run = out / "third_party.txt", out / "med2vec"
    with Claim(out / ".med2vec.lock") as mine:
        if mine and not made.exists():
            train_med2vec(others, run, config.pretrain, "med2vec", observed)  # type: ignore[arg-type]
            export_code_vectors(run, made)
    return made if made.exists() else None


def _train(
    arm: str,
    seed: int,
    store: TokenStore,
    labels: Path,
    out: Path,
    config: EmbeddingsConfig,
    third_party: Path,
    observed: Observed,
) -> None:
    run, first = _folder(out, arm, seed), _folder(out, "from scratch", seed)
    of_first = arm in ("own, frozen", "random, frozen")
    if is_done(run) or (of_first and not is_done(first)):
        return
    with Claim(run.parent / f".{run.name}.lock") as mine:
        if not mine or is_done(run):
            return
        file = third_party
        if of_first:
            file = out / "vectors" / f"{arm.partition(',')[0]}-{seed}.npz"
            file.parent.mkdir(parents=True, exist_ok=True)
            if arm == "own, frozen":
                export_code_vectors(first, file)
            else:
                tokens = store.vocabulary.tokens[NUM_SPECIAL:]
                width = read_json(first / "model" / "config.json")["config"]["embedding_dim"]
                write_embeddings(file, tokens, np.random.default_rng(seed).standard_normal((len(tokens), width)))
        options = arm_options(config, arm, seed, file)
        with observed(f"{arm} seed {seed}") as observer:
            finetune(store.path, labels, run, options, resume=(run / "metadata.json").exists(), observer=observer)


def arm_options(config: EmbeddingsConfig, arm: str, seed: int, file: Path) -> FinetuneConfig:
    """Options of one training: the arms differ in code vectors and in what of the model trains."""
    options = config.finetune.model_dump(exclude_unset=True)
    options["loop"] = {**options.get("loop", {}), "seed": seed}
    if arm == "from scratch":
        options.pop("lora", None)
        return FinetuneConfig.model_validate({**options, "method": "scratch"})
    given = {"dimension": "pca", **options.get("embeddings", {})}
    given |= {"file": str(file.resolve()), "train": arm.endswith("trained")}
    return FinetuneConfig.model_validate({**options, "method": "lora", "embeddings": given})


def _judge(
    store: TokenStore,
    labels: Path,
    out: Path,
    config: EmbeddingsConfig,
    say: Callable[[str], None],
    bars: Callable[[], AbstractContextManager[Callable[[str, int, int], None]]],
) -> dict[str, Any]:
    folders = {arm: _folder(out, arm, 0).parent.parent for arm in ARMS}
    with bars() as update:
        judged = compare(
            list(folders.values()), store.path, labels,
            names=list(ARMS), baselines=("logistic_regression",), say=say, progress=update,
        )  # fmt: skip
    task = judged.task
    metrics = {
        name: {
            key: entry for key, entry in entries.items() if split_key(key)[0] == task and split_key(key)[1] in METRICS
        }
        for name, entries in judged.metrics.items()
    }
    arms = {arm.name: arm for arm in judged.arms}
    held = judged.examples["held_out"]
    differences = [
        difference(arms[a], arms[b], metric, held, task, 1000, 0) for a, b in PAIRS for metric in ("auroc", "auprc")
    ]
    facts = {arm: cost(folder) for arm, folder in folders.items()}
    dataset = dataset_name(store)
    words = in_words(metrics, differences, facts, task, dataset, len(np.unique(held.subject_id)))
    shown = _table(metrics, facts, task)
    sections = {
        "title": f"Embeddings on {task}, dataset {dataset}",
        "models": judged.report["models"],
        "curves": {arm: learning_curve(members(folder)[0]) for arm, folder in folders.items()},
        **{name: judged.report[name] for name in ("calibration", "roc", "pr")},
        "caveats": [
            *(f"{arm}: {what}." for arm, what in ARMS.items()),
            f"Seeds 0 to {config.seeds - 1} vary initialisation and batches; within a seed all arms have the same "
            "encoder at the start.",
            *judged.notes,
        ],
    }
    tables = {f"embeddings{ending}": shown.written(ENDINGS[ending]) for ending in (".md", ".csv", ".tex")}
    costs = {"costs": facts, "dataset": dataset}
    return write_comparison(out, store, config, metrics, differences, words, sections, tables, costs)


def cost(folder: Path) -> dict[str, float]:
    """What an arm took, means over its seeds: epochs and seconds to the best epoch, share that trains, bytes kept."""
    each = [_cost(read_run(member)) for member in members(folder)]
    return {name: float(np.mean([one[name] for one in each])) for name in each[0]}


def _cost(run: RunRecord) -> dict[str, float]:
    epochs = (run.best_epoch or 0) + 1
    return {
        "epochs_to_best": epochs,
        "seconds_to_best": (run.seconds or 0.0) * epochs / max(run.epochs, 1),
        "trainable_percent": 100 * (run.trainable or 0) / max(run.total or 1, 1),
        "bytes": run.trained_bytes or 0,
    }


def _table(metrics: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Mapping[str, float]], task: str) -> Table:
    head = ["Arm", "AUROC", "AUPRC", "Brier (lower is better)", "ECE (lower is better)", "Epochs to best",
            "Seconds to best", "Trains", "Bytes trained"]  # fmt: skip
    rows = []
    for name, entries in metrics.items():
        cells = [format_estimate(entries[f"{task}/{metric}"]) for metric in METRICS]
        own = facts.get(name)
        if own is None:
            rows.append([name, *cells, "", "", "", ""])
            continue
        rows.append(
            [
                name,
                *cells,
                format_number(own["epochs_to_best"], 1),
                format_number(own["seconds_to_best"], 1),
                f"{own['trainable_percent']:.1f} %",
                format_number(round(own["bytes"])),
            ]
        )
    return Table(f"Embeddings on {task}", head, rows)


def in_words(
    metrics: Mapping[str, Mapping[str, Any]],
    differences: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Mapping[str, float]],
    task: str,
    dataset: str,
    subjects: int,
) -> list[str]:
    """The paragraph that answers the question: what the intervals allow to say of each pair."""
    rows = {(row["a"], row["b"]): row for row in differences if split_key(row["metric"])[1] == "auroc"}

    def said(a: str, b: str) -> str:
        row = rows[a, b]
        figures = f"({row['value']:+.3f}, {row['low']:+.3f} to {row['high']:+.3f})"
        if row["low"] > 0:
            return f"better than {b} {figures}"
        return f"worse than {b} {figures}" if row["high"] < 0 else f"not told apart from {b} {figures}"

    auroc = {name: entries[f"{task}/auroc"]["value"] for name, entries in metrics.items()}
    arms = [name for name in auroc if name in ARMS]
    best = max(arms, key=lambda name: auroc[name])
    frozen = "third party, frozen"
    return [
        f"On {task} of dataset {dataset}, judged on {subjects:,} held-out subjects by AUROC: vectors of a third party, "
        f"frozen, are {said(frozen, 'random, frozen')} and {said(frozen, 'own, frozen')}; trained on, they are "
        f"{said('third party, trained', frozen)} and {said('third party, trained', 'from scratch')}.",
        f"Own vectors, frozen once learned, are {said('own, frozen', 'random, frozen')}; learning everything from "
        f"scratch is {said('from scratch', 'own, frozen')}.",
        f"The highest AUROC of the arms is that of {best}, {auroc[best]:.3f}; logistic regression on counts has "
        f"{auroc['logistic_regression']:.3f}. A third party's vectors train {facts[frozen]['trainable_percent']:.1f} % "
        f"of the model, {facts[frozen]['bytes']:,.0f} bytes, against {facts['from scratch']['bytes']:,.0f}.",
    ]
