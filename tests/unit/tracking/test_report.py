"""The report: what it shows, what it leaves out, and that nothing in it can be injected."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from example_run import metrics, report_data, write_example_run

from ehrsequencing.errors import MetricError, RunError
from ehrsequencing.io import write_json
from ehrsequencing.tracking.experiment import ExperimentTracker
from ehrsequencing.tracking.html import element, join
from ehrsequencing.tracking.report import write_report
from ehrsequencing.tracking.report_data import write_report_data
from ehrsequencing.tracking.svg import Series, line_chart, tick_text, ticks

VOID = {"meta"}


class _Page(HTMLParser):
    """Elements with attributes, text, and whether every element was closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def sections(self) -> list[str]:
        return [attributes["id"] for tag, attributes in self.elements if tag == "section"]

    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    run = write_example_run(tmp_path_factory.mktemp("runs"))
    return run, write_report(run).read_text()


def test_every_section_is_there(example):
    page = _Page(example[1])
    assert page.sections() == [
        "words",
        "results",
        "differences",
        "masked-codes",
        "models",
        "curves",
        "ranking",
        "calibration",
        "confusion",
        "parameters",
        "cohort",
        "data",
        "baselines",
        "caveats",
        "settings",
        "commands",
    ]
    text = page.words()
    for expected in (
        "Heart failure within a year, on synthetic records",
        "0.842 [0.801, 0.883]",
        "BEHRT, pretrained + LoRA minus XGBoost",
        "not told apart",
        "43.2%",
        "[2.171, 2.257]",
        "686,592",
        "1,977",
        "1,050",
        "Learned from scratch",
        "412,880",
        "nothing = 1, 2",
        "2 settings, below",
        "0.1931",
        "lora.rank",
        "ehrseq finetune",
    ):
        assert expected in text, expected


def test_the_page_needs_nothing_from_outside_and_runs_nothing(example):
    page = _Page(example[1])
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "img", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name != "src"
            if name == "href":
                assert value.startswith("#")
    assert not re.search(r"https?://|url\(|@import", example[1])


def test_links_lead_to_sections_and_tables_are_accessible(example):
    page = _Page(example[1])
    links = [attributes["href"][1:] for tag, attributes in page.elements if tag == "a"]
    assert links == page.sections()
    tags = [tag for tag, _ in page.elements]
    assert tags.count("table") == tags.count("caption") > 5
    assert all("scope" in attributes for tag, attributes in page.elements if tag == "th")
    assert tags.count("desc") >= 8
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_lower_is_better_where_it_is(example):
    best = re.findall(r'<span class="best">([\d.]+)<span class="ci">', example[1])
    assert best == ["0.842", "0.312", "0.058", "0.048", "0.392"]


HOSTILE = "</style><script>alert(1)</script><img src=x onerror='alert(2)'>\"&{{x}}"


def _poison(value):
    if isinstance(value, dict):
        return {key: _poison(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_poison(item) for item in value]
    return value + HOSTILE if isinstance(value, str) else value


def test_hostile_names_stay_text_everywhere(tmp_path):
    task, model = f"hf{HOSTILE.replace('/', '')}", f"behrt{HOSTILE}"
    key = f"{task}/auroc"
    other = f"xgb{HOSTILE}"
    figures = {name: {key: metrics()["xgboost"]["heart_failure_1y/auroc"]} for name in (model, other)}
    figures[model][f"mlm/mlm_loss@{HOSTILE.replace('/', '')}"] = {"value": 1.0}
    data = _poison(report_data())
    for row, name in zip(data["models"], (model, other), strict=False):
        row["model"] = name
    data["differences"] = [{"a": model, "b": other, "metric": key, "value": 0.1, "low": 0.0, "high": 0.2}]
    for section in ("curves", "roc", "pr", "calibration", "parameters", "data", "baselines"):
        data[section] = {f"{name}{HOSTILE}": content for name, content in data[section].items()}
    data["parameters"] = {
        name: {
            f"{group}{HOSTILE}": {f"{tensor}{HOSTILE}": n for tensor, n in members.items()}
            for group, members in kinds.items()
        }
        for name, kinds in data["parameters"].items()
    }
    data["curves"][HOSTILE] = {f"{HOSTILE}_loss": [[0, 1.0], [1, 2.0]]}
    with ExperimentTracker("demo", tmp_path) as tracker:
        tracker.log_hyperparameters({HOSTILE: HOSTILE})
        tracker.log_metadata({"device": HOSTILE, "fingerprint": HOSTILE})
        tracker.log_metrics({f"{HOSTILE}loss": float("nan")}, 0)
        tracker.save_summary(figures, notes=[HOSTILE])
        write_report_data(tracker.run_dir, data)
    text = write_report(tracker.run_dir).read_text()
    page = _Page(text)
    assert text.count("</style>") == 1 and "<script" not in text and "<img" not in text
    assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.words().count("alert(1)") > 60
    assert len(page.sections()) == 16


def test_each_section_alone_makes_a_page_of_itself(tmp_path):
    expected = {
        "title": [],
        "plain_words": ["words"],
        "floors": ["masked-codes"],
        "roc": ["ranking"],
        "pr": ["ranking"],
    }
    for section, content in report_data().items():
        if section == "differences":
            continue
        run = tmp_path / section
        run.mkdir()
        write_json(run / "report_data.json", {section: content})
        assert _Page(write_report(run).read_text()).sections() == expected.get(section, [section])
    (tmp_path / "summary").mkdir()
    write_json(tmp_path / "summary" / "summary.json", {"metrics": metrics()})
    page = _Page(write_report(tmp_path / "summary").read_text())
    assert page.sections() == ["words", "results", "masked-codes"]


def test_a_run_without_any_extra_data_shows_its_own_history(tmp_path):
    tracker = ExperimentTracker("demo", tmp_path)
    for epoch, loss in enumerate([3.0, float("nan"), 2.0]):
        tracker.log_metrics({"train_loss": loss, "val_loss": loss, "lr": 0.1}, epoch)
    page = _Page(write_report(tracker.run_dir).read_text())
    assert page.sections() == ["curves", "caveats"]
    assert "running, or killed" in page.words()
    assert "train_loss was nan at epoch 1 and 1 more" in page.words()
    path = next(attributes["d"] for tag, attributes in page.elements if tag == "path")
    assert path.count("M") == 2, "the missing value is a gap"


def test_ends_of_a_scale(tmp_path):
    """One model, one figure without interval, a perfect score, a calibration at zero: no division by nothing."""
    write_json(
        tmp_path / "summary.json", {"metrics": {"m": {"auroc": {"value": 0.5}, "x/auprc": {"value": 1.0, "n": 0}}}}
    )
    data = {
        "calibration": {"m": [{"predicted": 0.0, "observed": 0.0}], "empty": []},
        "roc": {"m": {"x": [0.0], "y": [0.0]}},
        "curves": {"m": {"val_loss": [[0, None]], "train_loss": []}},
        "cohort": {"flow": [{"step": "none", "count": 0}]},
        "confusion": {"classes": ["a", "b"], "counts": [[0, 0], [0, 1]]},
        "floors": [{"name": "x", "loss": 0.0}],
    }
    write_json(tmp_path / "report_data.json", data)
    page = _Page(write_report(tmp_path).read_text())
    assert "nan" not in page.words().lower().replace("naive", "")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"flors": []}, "flors"),
        ({"floors": [{"name": "x", "los": 1}]}, r"floors\.0\.los"),
        ({"roc": {"m": {"x": [0, 1], "y": [0]}}}, "same length"),
        ({"confusion": {"classes": ["a"], "counts": [[1, 2]]}}, "one row and one column"),
        ({"differences": [{"a": "x", "b": "y", "metric": "m", "value": 0, "low": 1, "high": 0}]}, "above high"),
        ({"title": 3, "caveats": "x", "commands": [None]}, r"caveats.*commands"),
        ([], "content|no JSON object"),
    ],
)
def test_a_malformed_section_is_named(tmp_path, data, message):
    with pytest.raises(RunError, match=message):
        write_report_data(tmp_path, data)
    assert not list(tmp_path.iterdir())
    (tmp_path / "report_data.json").write_text(json.dumps(data))
    with pytest.raises(RunError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_difference_of_an_unknown_figure_is_refused(tmp_path):
    write_json(tmp_path / "summary.json", {"metrics": metrics()})
    wrong = {"a": "behrt_lora", "b": "xgboost", "metric": "auroc", "value": 0.1, "low": 0.0, "high": 0.2}
    write_report_data(tmp_path, {"differences": [wrong]})
    with pytest.raises(RunError, match="behrt_lora, auroc"):
        write_report(tmp_path)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="no run directory"):
        write_report(tmp_path / "missing")
    with pytest.raises(RunError, match="holds no run"):
        write_report(tmp_path)
    (tmp_path / "summary.json").write_text("[1]")
    with pytest.raises(RunError, match=r"summary\.json holds no JSON object"):
        write_report(tmp_path)
    (tmp_path / "summary.json").write_text('{"metrics": {"m": {"hf/auroc": {"value": NaN}}}}')
    with pytest.raises(MetricError, match="finite"):
        write_report(tmp_path)


def test_elements_escape_all_but_their_own_kind():
    inner = element("b", "a & b", title='"x"')
    assert inner == '<b title="&quot;x&quot;">a &amp; b</b>'
    assert join([inner, "<i>", None]) == inner + "&lt;i&gt;"
    assert type(inner + "<i>") is str and element("p", inner + "<i>").count("&lt;") == 3


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.477, 0.906), (-0.0233, 0.0753), (0, 11), (1e-6, 3e-6), (5, 9e6)])
def test_ticks_are_round_inside_and_told_apart(low, high):
    shown = ticks(low, high)
    assert 2 <= len(shown) <= 7
    assert min(shown) >= low - 1e-9 and max(shown) <= high + 1e-9
    labels = [tick_text(value, shown) for value in shown]
    assert len(set(labels)) == len(labels)
    for label, value in zip(labels, shown, strict=True):
        assert float(label.replace(",", "")) == pytest.approx(value, rel=1e-3, abs=1e-9)


def test_a_long_curve_is_thinned_to_what_can_be_seen():
    points = [(i / 100_000, i / 100_000) for i in range(100_001)]
    chart = line_chart("t", [Series("a", points)], "x", "y", x_range=(0, 1), y_range=(0, 1))
    assert len(chart) < 40_000
