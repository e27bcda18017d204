"""What a table of metrics means, in plain English and without claiming more than the intervals carry."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ehrsequencing.tracking.report_data import Difference, Floor, ModelRow
from ehrsequencing.tracking.summary import ORACLE, direction, format_number, split_key, subgroup_of

METRIC_NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "f1": "F1",
    "auroc_micro": "AUROC, micro",
    "auroc_macro": "AUROC, macro",
    "auprc_micro": "AUPRC, micro",
    "auprc_macro": "AUPRC, macro",
    "f1_micro": "F1, micro",
    "f1_macro": "F1, macro",
    "recall_at_10": "Recall at 10",
    "recall_at_30": "Recall at 30",
    "brier": "Brier score",
    "ece": "Calibration error",
    "log_loss": "Log loss",
    "accuracy": "Accuracy",
    "c_harrell": "C-index (Harrell)",
    "c_uno": "C-index (Uno)",
    "c_antolini": "C-index, time-dependent (Antolini)",
    "c_wolbers": "C-index (Wolbers)",
    "auc": "AUC, cumulative/dynamic",
    "ici": "Calibration index (ICI)",
    "ibs": "Integrated Brier score",
    "ce": "Log loss",
    "nll": "Negative log-likelihood",
    "mse": "Mean squared error",
    "loss": "Loss",
    "top10": "Top-10 accuracy",
    "mlm_loss": "Loss (nats)",
    "mlm_accuracy": "Accuracy",
    "mlm_top10": "Top-10 accuracy",
}
MEANINGS = {
    "auroc": "AUROC is the chance that a randomly chosen positive is ranked above a randomly chosen negative: "
    "0.5 is guessing, 1 is perfect.",
    "auprc": "AUPRC is the average share of true positives among those flagged, over all thresholds: "
    "guessing scores the share of positives, 1 is perfect.",
    "c_harrell": "The C-index is the chance that, of two comparable subjects, the one with the earlier event has the "
    "higher predicted risk: 0.5 is guessing, 1 is perfect.",
}
MEANINGS["c_uno"] = MEANINGS["c_wolbers"] = MEANINGS["c_harrell"]
MEANINGS["auroc_macro"] = (
    "AUROC, macro is the chance that, of a subject with a category and one without, the first is ranked above for it, "
    "averaged over categories: 0.5 is guessing, 1 is perfect. Micro pools the predictions of all categories, so it "
    "also rewards knowing which are frequent."
)
MEANINGS["recall_at_10"] = (
    "Recall at 10 is the share of what came that is among the ten most probable categories of that subject."
)
_PRIMARY = ("auroc", "auroc_macro", "c_uno", "c_wolbers", "c_harrell", "auprc", "f1", "brier", "ce", "nll", "log_loss")
_FEW_POSITIVES = 100
TUNING = "tuning:"
"""Before a task's name: the figures are of the tuning split, which also chose the best epoch."""

Summary = Mapping[str, Any]


def metric_name(key: str) -> str:
    """Display name of a metric's key, with its horizon.

    >>> metric_name("hf/auroc@365"), metric_name("auprc"), metric_name("x/own_score")
    ('AUROC, 365 days', 'AUPRC', 'own score')
    """
    _, metric, horizon = split_key(key)
    name = METRIC_NAMES.get(metric, metric.replace("_", " "))
    return f"{name}, {horizon} days" if horizon else name


def title_case(task: str) -> str:
    """A task's name for people.

    >>> title_case("heart_failure_1y")
    'Heart failure 1y'
    >>> title_case("tuning:readmission_30d")
    'Readmission 30d, on tuning'
    """
    words = task.removeprefix(TUNING).replace("_", " ")
    return words[:1].upper() + words[1:] + (", on tuning" if task.startswith(TUNING) else "")


def is_masked_code_metric(key: str) -> bool:
    """Whether a key belongs to masked-code prediction rather than to a task."""
    return split_key(key)[1].startswith("mlm_")


def by_task(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """{task: {key: {model: entry}}} without masked-code metrics and subgroups, in the order of first appearance."""
    tasks: dict[str, dict[str, dict[str, Any]]] = {}
    for model, entries in metrics.items():
        for key, entry in entries.items():
            if not is_masked_code_metric(key) and subgroup_of(split_key(key)[0]) is None:
                tasks.setdefault(split_key(key)[0], {}).setdefault(key, {})[model] = entry
    return tasks


def primary_key(keys: Sequence[str]) -> str:
    """The metric that decides which model is best: AUROC, else a C-index, else AUPRC, else the first."""
    for metric in _PRIMARY:
        for key in keys:
            if split_key(key)[1] == metric:
                return key
    return keys[0]


def best_model(entries: Mapping[str, Mapping[str, Any]], key: str) -> str:
    """Model with the best value of one metric, its direction respected; the first of equals. An oracle is no model."""
    sign = 1 if direction(key, next(iter(entries.values()))) else -1
    models = [model for model in entries if not model.startswith(ORACLE)] or list(entries)
    return max(models, key=lambda model: sign * entries[model]["value"])


def plain_words(
    summary: Summary,
    *,
    differences: Sequence[Difference | Mapping[str, Any]] = (),
    floors: Sequence[Floor | Mapping[str, Any]] = (),
    models: Sequence[ModelRow | Mapping[str, Any]] = (),
) -> list[str]:
    """Paragraphs on which model is best, what the intervals allow to say, and what they do not.

    Args:
        summary: Content of `summary.json`.
        differences: Paired differences a - b, as in `report_data.json`.
        floors: Floors of masked-code prediction.
        models: Names and kinds; the kind "baseline" marks the simple methods.
    """
    rows = [ModelRow.model_validate(row) for row in models]
    pairs = [Difference.model_validate(pair) for pair in differences]
    names = {row.model: row.name or row.model for row in rows}
    baselines = {row.model for row in rows if row.kind == "baseline"}
    metrics = summary.get("metrics") or {}
    paragraphs: list[str] = []
    tasks = by_task({model: entries for model, entries in metrics.items() if not model.startswith(ORACLE)})
    oracles = by_task({model: entries for model, entries in metrics.items() if model.startswith(ORACLE)})
    for task, table in tasks.items():
        key = primary_key(list(table))
        paragraphs.append(_verdict(task, table, key, names))
        paragraphs += _comparisons(table[key], key, pairs, names, baselines)
        paragraphs += _precision(table[key], key)
        paragraphs += _reachable(table[key], oracles.get(task, {}).get(key, {}), key, names)
    known, judged = masked_code_floors(metrics, [Floor.model_validate(floor) for floor in floors], baselines)
    paragraphs += _masked_codes(judged, known, names)
    if tasks:
        shown = {split_key(key)[1] for table in tasks.values() for key in table}
        meanings = dict.fromkeys(text for metric, text in MEANINGS.items() if metric in shown)
        entries = [entry for table in tasks.values() for column in table.values() for entry in column.values()]
        paragraphs.append(" ".join([*meanings, _seeds(entries)]))
    return paragraphs


def _verdict(task: str, table: Mapping[str, Mapping[str, Any]], key: str, names: Mapping[str, str]) -> str:
    entries = table[key]
    best = best_model(entries, key)
    entry = entries[best]
    sentences = []
    population = _population(entry, task)
    about = f"{title_case(task)}: " if task else ""
    sentences.append(f"{about}judged on {population}." if about else f"Judged on {population}.")
    metric = split_key(key)[1]
    name = metric_name(key)
    if len(entries) > 1:
        extreme = "highest" if direction(key, entry) else "lowest"
        sentences.append(f"{_name(best, names)} has the {extreme} {name}, {_value(entry)}.")
    else:
        sentences.append(f"{_name(best, names)} reaches {name} {_value(entry)}.")
    if metric in ("auroc", "auroc_macro", "c_harrell", "c_uno", "c_wolbers") and _spans(entry, 0.5):
        sentences.append("Its interval includes 0.5, so it cannot be told from guessing.")
    sizes = {item["n"] for item in entries.values() if item.get("n") is not None}
    if len(sizes) > 1:
        sentences.append("The models were not judged on the same number of rows, so their figures do not compare.")
    precision = next((item for item in table if split_key(item)[1] == "auprc"), None)
    if precision is not None and precision != key:
        leader = best_model(table[precision], precision)
        other = table[precision][leader]
        share = _share(other)
        against = f", where guessing scores {format_number(share)}" if share is not None else ""
        also = "also " if leader == best and len(entries) > 1 else ""
        sentences.append(
            f"{_name(leader, names)} {also}has the best AUPRC, {_value(other)}{against}."
            if len(entries) > 1
            else f"Its AUPRC is {_value(other)}{against}."
        )
    return " ".join(sentences)


def _comparisons(
    entries: Mapping[str, Any],
    key: str,
    pairs: Sequence[Difference],
    names: Mapping[str, str],
    baselines: set[str],
) -> list[str]:
    if len(entries) < 2:
        return []
    higher = direction(key, next(iter(entries.values())))
    relevant = [pair for pair in pairs if pair.metric == key and pair.a in entries and pair.b in entries]
    if not relevant:
        return [
            "No paired difference on the same subjects was computed, so the table alone does not tell whether any "
            "of these models is better than another."
        ]
    best = best_model(entries, key)
    shown = [pair for pair in relevant if best in (pair.a, pair.b)] or relevant
    sentences = [_difference(pair, key, higher, names) for pair in shown]
    left = len(relevant) - len(shown)
    if left:
        sentences.append(f"{left} more {'differences stand' if left > 1 else 'difference stands'} in the table.")
    if len(relevant) >= 5:
        sentences.append(
            f"Of {len(relevant)} such intervals about one in twenty would miss zero by chance alone; "
            "they are not corrected for it."
        )
    advanced = {model: entry for model, entry in entries.items() if model not in baselines}
    simple = {model: entry for model, entry in entries.items() if model in baselines}
    if advanced and simple:
        sentences.append(_worth_it(best_model(advanced, key), best_model(simple, key), relevant, higher, names))
    return [" ".join(sentences)]


def _reachable(
    entries: Mapping[str, Mapping[str, Any]],
    oracles: Mapping[str, Mapping[str, Any]],
    key: str,
    names: Mapping[str, str],
) -> list[str]:
    """What could be reached on these synthetic rows, beside the best model."""
    if not oracles:
        return []
    told = ", ".join(f"{name.removeprefix(ORACLE)} {_value(entry)}" for name, entry in oracles.items())
    best = best_model(entries, key)
    return [
        f"The records are synthetic, so what could be reached is known: {metric_name(key)} {told}; "
        f"{_name(best, names)} has {_value(entries[best])}. The ceiling knows hidden states that no record shows, the "
        "attainable optimum the record alone."
    ]


def _difference(pair: Difference, key: str, higher: bool, names: Mapping[str, str]) -> str:
    text = (
        f"{_name(pair.a, names)} minus {_name(pair.b, names)}: {metric_name(key)} {_signed(pair.value)} "
        f"({_signed(pair.low)} to {_signed(pair.high)}): the interval of the difference"
    )
    if pair.low <= 0 <= pair.high:
        return f"{text} includes zero: these data do not tell them apart."
    better = pair.a if (pair.value > 0) == higher else pair.b
    return f"{text} excludes zero: {_name(better, names)} is the better one on these subjects."


def _worth_it(advanced: str, simple: str, pairs: Sequence[Difference], higher: bool, names: Mapping[str, str]) -> str:
    pair = next((pair for pair in pairs if {pair.a, pair.b} == {advanced, simple}), None)
    best, baseline = _name(advanced, names), _name(simple, names)
    if pair is None:
        return (
            f"{best}, the best of the larger models, was not compared with {baseline}, the best baseline, on the same "
            "subjects, so whether the larger model was worth it stays open."
        )
    if pair.low <= 0 <= pair.high:
        return (
            f"So a benefit of the best larger model ({best}) over the best baseline ({baseline}) is not shown here, "
            "nor is its absence."
        )
    if ((pair.value > 0) == higher) == (pair.a == advanced):
        return f"So the best larger model ({best}) beats the best baseline ({baseline}) here."
    return f"So the best baseline ({baseline}) beats every larger model here: the larger model was not worth it."


def _precision(entries: Mapping[str, Mapping[str, Any]], key: str) -> list[str]:
    entry = entries[best_model(entries, key)]
    if entry.get("low") is None or entry.get("high") is None:
        return ["No interval was computed, so nothing can be said about how precise these figures are."]
    half = (entry["high"] - entry["low"]) / 2
    positives = entry.get("positives")
    if positives is None:
        return []
    few = "only " if positives < _FEW_POSITIVES else ""
    text = (
        f"There are {few}{positives:,} positives, so {metric_name(key)} is known to about plus or minus "
        f"{format_number(half)}"
    )
    if few:
        text += "; so few positives cannot settle small differences between models"
    return [f"{text}."]


def masked_code_floors(
    metrics: Mapping[str, Mapping[str, Any]], floors: Sequence[Floor], baselines: Collection[str]
) -> tuple[list[Floor], dict[str, Mapping[str, Any]]]:
    """The floors, and the metrics of the models that are judged against them.

    A summary may list the floors as models of the kind "baseline"; they serve as floors where none are given.
    """
    judged = {model: entries for model, entries in metrics.items() if model not in baselines}
    if floors:
        return list(floors), judged
    found = []
    for model in (model for model in metrics if model in baselines):
        own = {split_key(key)[1]: entry["value"] for key, entry in metrics[model].items() if is_masked_code_metric(key)}
        if own:
            figures = {name: own.get(f"mlm_{name}") for name in ("loss", "accuracy", "top10")}
            found.append(Floor.model_validate({"name": model, **figures}))
    return found, judged


def _masked_codes(
    metrics: Mapping[str, Mapping[str, Any]], floors: Sequence[Floor], names: Mapping[str, str]
) -> list[str]:
    paragraphs = []
    for model, entries in metrics.items():
        own = {split_key(key)[1]: entry for key, entry in entries.items() if is_masked_code_metric(key)}
        loss, accuracy = own.get("mlm_loss"), own.get("mlm_accuracy")
        if loss is None and accuracy is None:
            continue
        figures = []
        if accuracy is not None:
            figures.append(f"names {accuracy['value']:.1%} of the masked codes right at first guess")
        if loss is not None:
            figures.append(f"has a loss of {format_number(loss['value'])} nats")
        text = f"In masked-code prediction {_name(model, names)} {' and '.join(figures)}."
        paragraphs.append(f"{text} {_against_floors(loss, accuracy, floors)}")
    return paragraphs


def _against_floors(loss: Mapping[str, Any] | None, accuracy: Mapping[str, Any] | None, floors: Sequence[Floor]) -> str:
    if not floors:
        return "No floor was computed, so these figures cannot be judged."
    compared, lost = [], []
    for floor in floors:
        checks = []
        if loss is not None and floor.loss is not None:
            checks.append(("loss", loss["value"] < floor.loss, format_number(floor.loss)))
        if accuracy is not None and floor.accuracy is not None:
            checks.append(("accuracy", accuracy["value"] > floor.accuracy, f"{floor.accuracy:.1%}"))
        if checks:
            compared.append(f"{floor.name} ({', '.join(f'{what} {figure}' for what, _, figure in checks)})")
        failed = [what for what, won, _ in checks if not won]
        if failed:
            lost.append(f"{floor.name} in {' and '.join(failed)}")
    if not compared:
        return "No floor was computed for these figures, so they cannot be judged."
    if lost:
        return (
            f"It does not beat every floor that needs no model: it fails against {'; '.join(lost)}. The floors are "
            f"{'; '.join(compared)}. Where a floor is not beaten, nothing beyond it has been learned."
        )
    return f"It beats every floor that needs no model: {'; '.join(compared)}."


def _seeds(entries: Sequence[Mapping[str, Any]]) -> str:
    counts = {_seed_count(entry) for entry in entries}
    bounded = any(entry.get("low") is not None for entry in entries)
    covered = "Intervals are 95% and cover which subjects were drawn" if bounded else ""
    if counts <= {None, 1}:
        luck = "not the luck of the training, since each model was trained once"
        return f"{covered}, {luck}." if covered else "Each model was trained once."
    known = sorted(count for count in counts if count is not None)
    times = f"{known[0]}" if len(known) == 1 else f"{known[0]} to {known[-1]}"
    text = f"Figures rest on {times} trainings per model."
    return f"{covered}. {text}" if covered else text


def _seed_count(entry: Mapping[str, Any]) -> int | None:
    seeds = entry.get("seeds")
    return len(seeds) if isinstance(seeds, list) else seeds


def _population(entry: Mapping[str, Any], task: str) -> str:
    n, positives, subjects = entry.get("n"), entry.get("positives"), entry.get("subjects")
    if n is None:
        return "an unstated number of rows"
    text = f"{n:,} {'tuning' if task.startswith(TUNING) else 'held-out'} predictions"
    if subjects is not None:
        text += f" of {subjects:,} subjects"
    if entry.get("categories"):
        return f"{text}, with {positives or 0:,} positives in {entry['categories']:,} categories"
    if positives is not None:
        text += f", {positives:,} of them positive ({positives / n:.1%})" if n else ", none of them positive"
    return text


def _share(entry: Mapping[str, Any]) -> float | None:
    if entry.get("positives") is None or not entry.get("n") or entry.get("categories"):
        return None
    return entry["positives"] / entry["n"]


def _spans(entry: Mapping[str, Any], value: float) -> bool:
    low, high = entry.get("low"), entry.get("high")
    return low is not None and high is not None and low <= value <= high


def _value(entry: Mapping[str, Any]) -> str:
    text = format_number(float(entry["value"]))
    if entry.get("low") is not None and entry.get("high") is not None:
        text += f" ({format_number(float(entry['low']))} to {format_number(float(entry['high']))})"
    return text


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _name(model: str, names: Mapping[str, str]) -> str:
    return names.get(model, model)
