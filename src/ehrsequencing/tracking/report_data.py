"""`report_data.json`: what a report shows beside the run's own summary. Every section is optional."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ehrsequencing.errors import RunError
from ehrsequencing.io import read_json, write_json


class _Section(BaseModel):
    # An unknown key is an error: a misspelt section would otherwise vanish from the page in silence.
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True, coerce_numbers_to_str=True)


class ModelRow(_Section):
    """One model, in the order of display."""

    model: str = Field(description="key of the model in summary.json")
    name: str | None = Field(None, description="name shown instead of the key")
    kind: str | None = Field(None, description='"baseline" for the simple methods; any word for the others')
    trainable_parameters: int | None = Field(None, ge=0, description="parameters that train")
    total_parameters: int | None = Field(None, ge=0, description="all parameters, frozen ones included")
    seconds: float | None = Field(None, ge=0, description="wall time of the training")
    notes: str | None = Field(None, description="one remark")


class Floor(_Section):
    """What no model is needed for, on the same masked positions as the model's own figures."""

    name: str = Field(description="uniform, unigram, copy from own history")
    loss: float | None = Field(None, description="cross-entropy in nats")
    accuracy: float | None = Field(None, ge=0, le=1, description="share of masked codes named first")
    top10: float | None = Field(None, ge=0, le=1, description="share of masked codes among the first ten")


class Difference(_Section):
    """Paired difference a - b of one metric on the same subjects."""

    a: str = Field(description="key of the first model")
    b: str = Field(description="key of the model that is subtracted")
    metric: str = Field(description="task/metric as in summary.json")
    value: float = Field(description="a - b")
    low: float = Field(description="lower end of the 95 % interval")
    high: float = Field(description="upper end")
    n: int | None = Field(None, description="rows compared")
    positives: int | None = Field(None, description="positive rows among them")
    subjects: int | None = Field(None, description="subjects among them")
    higher_is_better: bool | None = Field(None, description="only for a metric of unknown direction")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low} lies above high {self.high}")
        return self


class Curve(_Section):
    """Points of a ROC or precision-recall curve."""

    x: list[float] = Field(description="false positive rate, or recall")
    y: list[float] = Field(description="true positive rate, or precision")

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len(self.x) != len(self.y) or not self.x:
            raise ValueError(f"x and y need the same length above zero, not {len(self.x)} and {len(self.y)}")
        return self


class CalibrationPoint(_Section):
    """One bin of a calibration curve."""

    predicted: float = Field(description="mean predicted risk")
    observed: float = Field(description="share of positives")
    low: float | None = Field(None, description="lower end of the interval of `observed`")
    high: float | None = Field(None, description="upper end")
    n: int | None = Field(None, description="rows in the bin")


class Bounded(_Section):
    """A figure with its 95 % interval."""

    value: float = Field(description="the figure")
    low: float = Field(description="lower end")
    high: float = Field(description="upper end")


class CalibrationLine(_Section):
    """Logistic recalibration on held-out rows."""

    slope: Bounded = Field(description="1 is right; below 1 too extreme")
    intercept: Bounded = Field(description="0 is right; below 0 risks are too high on average")


class DecisionModel(_Section):
    """Decision curve of one model, a point per threshold."""

    net_benefit: list[Bounded] = Field(description="per row judged")
    gain: list[Bounded] = Field(description="above the better of treating everyone and no one")


class Decision(_Section):
    """Decision curves on common thresholds."""

    thresholds: list[float] = Field(description="risk from which one would act")
    treat_all: list[float] = Field(description="net benefit of treating everyone")
    models: dict[str, DecisionModel] = Field(description="{model: points}")

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        lengths = {len(self.treat_all)} | {
            len(points) for model in self.models.values() for points in (model.net_benefit, model.gain)
        }
        if lengths != {len(self.thresholds)} or not self.thresholds:
            raise ValueError(f"every curve needs a point per threshold ({len(self.thresholds)}), not {sorted(lengths)}")
        return self


class SubgroupRow(_Section):
    """Size of one group; its metrics are in summary.json under `task[by=group]`."""

    by: str = Field(description="the grouping, such as sex")
    group: str = Field(description="the group, such as Female")
    n: int = Field(description="rows judged")
    positives: int = Field(description="positive rows")
    subjects: int = Field(description="subjects")
    too_small: str | None = Field(None, description="why the group is not scored")


class UnknownKind(_Section):
    """Events and codes of one kind, and those without a token."""

    kind: str = Field(description="diagnosis, drug, ...")
    events: int = Field(description="events of the subjects judged")
    unknown_events: int = Field(description="those read as UNK")
    codes: int | None = Field(None, description="distinct codes in the dataset")
    unknown_codes: int | None = Field(None, description="those without a token")


class LostCode(_Section):
    """A code without a token."""

    code: str = Field(description="as the source writes it")
    kind: str = Field(description="diagnosis, drug, ...")
    events: int = Field(description="events in the dataset")


class Unknown(_Section):
    """What the vocabulary does not know of another dataset."""

    events: int = Field(description="events of the subjects judged")
    unknown_events: int = Field(description="those read as UNK")
    codes: int | None = Field(None, description="distinct codes in the dataset")
    unknown_codes: int | None = Field(None, description="those without a token")
    kinds: list[UnknownKind] = Field([], description="per kind")
    most_frequent: list[LostCode] = Field([], description="unknown codes with the most events")


class Confusion(_Section):
    """Counts, true class by row."""

    classes: list[str] = Field(description="name of each class")
    counts: list[list[int]] = Field(description="[true class][predicted class]")
    model: str | None = Field(None, description="key of the model")
    threshold: float | None = Field(None, description="risk from which a subject counts as positive")

    @model_validator(mode="after")
    def _square(self) -> Self:
        if len(self.counts) != len(self.classes) or any(len(row) != len(self.classes) for row in self.counts):
            raise ValueError("counts need one row and one column per class")
        return self


class FlowStep(_Section):
    """One line of the cohort's flow."""

    step: str = Field(description="what is counted: the rows a rule leaves or excludes, or those of a class")
    count: int = Field(ge=0, description="rows")
    subjects: int | None = Field(None, ge=0, description="subjects they belong to")


class Cohort(_Section):
    """How the cohort came about."""

    flow: list[FlowStep] = Field(description="rules in order")
    unit: str = Field("subjects", description="what is counted")
    note: str | None = Field(None, description="one remark")


class Incidence(_Section):
    """Cumulative incidence of one cause over days."""

    observed: Curve = Field(description="Kaplan-Meier or Aalen-Johansen: days and incidence")
    models: dict[str, Curve] = Field(description="{model: days and mean predicted incidence}")


class DCalibrationRow(_Section):
    """D-calibration of one model."""

    model: str = Field(description="key of the model")
    statistic: float = Field(description="chi-square")
    p: float = Field(description="small where the curves are off")


class Survival(_Section):
    """Curves and calibration of a survival task."""

    incidence: dict[str, Incidence] = Field(description="{cause: curves}")
    calibration: dict[str, dict[str, list[CalibrationPoint]]] = Field(description="{days: {model: bins}}")
    d_calibration: list[DCalibrationRow] = Field([], description="a row per model")


class Baseline(_Section):
    """How a baseline was fitted."""

    features: str | int | None = Field(None, description="what it sees")
    grid: Any = Field(None, description="settings tried")
    chosen: Any = Field(None, description="setting chosen on tuning")


class AuditRow(_Section):
    """One check of the leakage audit."""

    check: str = Field(description="its name, as `--accept` takes it")
    result: str = Field(description="passed, warning, error, accepted or not checked")
    found: list[str] = Field(description="what was found, one sentence each")


class ReportData(_Section):
    """The whole of `report_data.json`."""

    title: str | None = Field(None, description="headline; the run's name by default")
    plain_words: list[str] | None = Field(None, description="paragraphs; written by `plain_words` by default")
    models: list[ModelRow] = Field([], description="order and names of the models")
    curves: dict[str, dict[str, list[tuple[float, float | None]]]] = Field(
        {}, description='{name: {"train_loss": [[epoch, value], ...]}}; the run\'s own history by default'
    )
    floors: list[Floor] = Field([], description="floors of masked-code prediction")
    differences: list[Difference] = Field([], description="paired differences")
    roc: dict[str, Curve] = Field({}, description="{model: {x, y}}")
    pr: dict[str, Curve] = Field({}, description="{model: {x, y}}")
    calibration: dict[str, list[CalibrationPoint]] = Field({}, description="{model: bins}")
    survival: Survival | None = Field(None, description="curves and calibration of a survival task")
    calibration_fit: dict[str, CalibrationLine] = Field({}, description="{model: slope, intercept}")
    decision: Decision | None = Field(None, description="decision curves")
    subgroups: list[SubgroupRow] = Field([], description="groups of the held-out rows")
    unknown: Unknown | None = Field(None, description="what the vocabulary does not know of another dataset")
    confusion: Confusion | None = Field(None, description="counts at the chosen threshold")
    parameters: dict[str, dict[str, dict[str, int] | list[str]]] = Field(
        {}, description="{model: {pretrained | from_scratch | frozen | received_gradient: {name: count} or [name]}}"
    )
    cohort: Cohort | None = Field(None, description="flow from raw records to rows")
    data: dict[str, str | int | float | bool | None] = Field({}, description="statistics of the data")
    audit: list[AuditRow] = Field([], description="checks of the labels and their store")
    baselines: dict[str, Baseline] = Field({}, description="{name: features, grid, chosen}")
    caveats: list[str] = Field([], description="what a reader must not conclude")
    commands: list[str] = Field([], description="how it was made, one command each")

    def names(self) -> dict[str, str]:
        """Display name by model key, in the order of display."""
        return {row.model: row.name or row.model for row in self.models}


def read_report_data(run: Path) -> ReportData:
    """Read `report_data.json` of a run; a run without one has an empty report.

    Raises:
        RunError: the file is no JSON or breaks the format; all problems are named at once.
    """
    path = run / "report_data.json"
    return _checked(read_json(path), path) if path.exists() else ReportData.model_validate({})


def write_report_data(run: str | Path, data: dict[str, Any]) -> None:
    """Check `data` against the format and write it atomically to `run/report_data.json`.

    Raises:
        RunError: as `read_report_data`.
    """
    path = Path(run) / "report_data.json"
    _checked(data, path)
    write_json(path, data)


def _checked(content: Any, path: Path) -> ReportData:
    try:
        return ReportData.model_validate(content)
    except ValidationError as problem:
        found = [f"{'.'.join(map(str, item['loc'])) or 'content'}: {item['msg']}" for item in problem.errors()]
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise RunError(
            f"{path} breaks the format of a report",
            got="; ".join(found[:5]) + more,
            remedy="see docs/run-directory.md",
        ) from None
