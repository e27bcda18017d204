import csv
import re
from pathlib import Path

import numpy as np
import pytest

from ehrsequencing.data import synthetic_model
from ehrsequencing.data.schema import KINDS, kind_of_code
from ehrsequencing.data.synthetic_events import PANELS, TRIGGERED_PROCEDURES
from ehrsequencing.data.synthetic_model import FLOOR, load_model, log_rate, parse_effects, threshold
from ehrsequencing.errors import DataError

DOCUMENT = Path(__file__).parents[3] / "docs" / "synthetic.md"
CONDITION_COLUMNS = (
    "name", "group", "course", "sex", "levels", "requires", "onset", "age", "progress", "recede", "detect", "visits",
    "mortality", "admit", "onset_effects", "progress_effects", "recede_effects",
)  # fmt: skip
DRUG_COLUMNS = ("name", "start", "stop", "after", "indications")
FORMATS = {
    "ICD10CM": r"[A-Z]\d[0-9A-Z](\.[0-9A-Z]{1,4})?",
    "RXNORM": r"\d{2,7}",
    "LOINC": r"\d{3,5}-\d",
    "ICD10PCS": r"[0-9A-HJ-NP-Z]{7}",
}


@pytest.fixture(scope="module")
def model():
    return load_model()


def test_model_has_the_conditions_it_promises(model):
    groups = [
        g for g, course in zip(model.conditions.groups, model.conditions.courses, strict=True) if course != "latent"
    ]
    assert len(groups) >= 20
    assert {"cardiometabolic", "renal", "respiratory", "mental", "oncologic", "musculoskeletal"} <= set(groups)


def test_every_state_drug_and_panel_has_its_codes(model):
    roles = set(model.book.roles)
    for number, name in enumerate(model.conditions.names):
        if model.conditions.courses[number] != "latent":
            for level in range(1, model.conditions.levels[number] + 1):
                assert f"dx/{name}/{level}" in roles
    assert {f"rx/{name}" for name in model.drugs.names} <= roles
    assert {f"px/{name}" for name in TRIGGERED_PROCEDURES} <= roles
    assert {lab.panel for lab in model.labs} == set(PANELS)
    assert set(TRIGGERED_PROCEDURES) <= set(model.conditions.names)
    assert {name for panel in PANELS.values() for name in panel[3]} <= set(model.conditions.names)


def test_codes_are_well_formed_unique_and_of_their_kind(model):
    book = model.book
    assert len(set(book.codes)) == len(book.codes) >= 400
    for code, kind in zip(book.codes, book.kinds, strict=True):
        system, _, rest = code.partition("//")
        if system in FORMATS:
            assert re.fullmatch(FORMATS[system], rest), code
        assert kind == kind_of_code(code) or (system == "LOINC" and kind == "vital"), code
    ranks = [KINDS.index(kind) for kind in book.kinds]
    assert ranks == sorted(ranks)
    assert {code for code, numeric in zip(book.codes, book.numeric, strict=True) if numeric} == {
        lab.code for lab in model.labs
    }


def test_loinc_check_digits(model):
    for lab in model.labs:
        number, check = lab.code.removeprefix("LOINC//").split("-")
        total = 0
        for position, digit in enumerate(reversed(number)):
            value = int(digit) * (2 if position % 2 == 0 else 1)
            total += value - 9 if value > 9 else value
        assert (10 - total % 10) % 10 == int(check), lab.code


def test_heart_failure_codes_come_from_heart_failure_alone(model):
    owners = {
        role
        for role, (members, _) in model.book.roles.items()
        if any(model.book.codes[member].startswith("ICD10CM//I50") for member in members)
    }
    assert owners == {"dx/heart_failure/1", "dx/heart_failure/2", "dx/heart_failure/3", "dx/hf_decompensation/1"}


def test_effects_are_read_and_misspelt_ones_refused():
    with pytest.raises(DataError, match="cannot be read"):
        parse_effects("diabtes:0.3", 1, {"diabetes"}, "a table")
    with pytest.raises(DataError, match="cannot be read"):
        parse_effects("diabetes>3:0.3", 1, {"diabetes"}, "a table")
    kinds = [effect.term[1] for effect in parse_effects("a:1 a*:1 a<6:1 a=2:1", 1, {"a"}, "a table")]
    assert kinds == ["present", "level", "recent", "equals"]


def test_thresholds_follow_the_hazard():
    rate = log_rate(1.2)
    assert threshold(np.array([rate]))[0] / 2**32 == pytest.approx(1 - np.exp(-0.1), rel=0.01)
    assert threshold(np.array([FLOOR - 5_000]))[0] == 0
    assert log_rate(0) == FLOOR


def test_document_states_the_tables(model):
    """The tables of docs/synthetic.md are those of the model, row by row."""
    text = DOCUMENT.read_text()
    folder = Path(synthetic_model.__file__).parent
    for row in csv.DictReader((folder / "synthetic_conditions.csv").open()):
        assert condition_row(row) in text, row["name"]
    for row in csv.DictReader((folder / "synthetic_drugs.csv").open()):
        assert drug_row(row) in text, row["name"]


def condition_row(row: dict[str, str]) -> str:
    fixed = [
        row[c] or "0" for c in ("name", "group", "course", "levels", "onset", "age", "progress", "recede", "detect")
    ]
    return "| " + " | ".join([*fixed, row["onset_effects"], row["progress_effects"], row["recede_effects"]]) + " |"


def drug_row(row: dict[str, str]) -> str:
    return "| " + " | ".join(row[column] for column in DRUG_COLUMNS) + " |"
