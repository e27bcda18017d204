import numpy as np
import polars as pl
import pytest

from ehrsequencing.data.vocabulary import NUM_SPECIAL


def planted(clean, folder, sensitivity, false_positives, splits=("train", "tuning"), place=-1):
    """A token put into the last row of the windows of these shares of positives and of the others."""
    vocabulary = clean.store.vocabulary
    token = NUM_SPECIAL + int(np.flatnonzero(vocabulary.counts[NUM_SPECIAL:] == 0)[0])
    for split_name in splits:
        split, rows, _, stop = clean.split_labels(split_name)
        code = np.array(split.code)
        positive = rows["boolean_value"].to_numpy()
        # By subject, so that a window does not hold what was put into another one of its subject.
        subjects, owner = np.unique(rows["subject_id"].to_numpy(), return_inverse=True)
        rank = np.random.default_rng(0).permutation(len(subjects))[owner] / len(subjects)
        ever = rows.select(pl.col("boolean_value").any().over("subject_id"))["boolean_value"].to_numpy()
        chosen = np.where(positive, rank < sensitivity, ~ever & (rank < false_positives))
        code[stop[chosen] + place] = token
        world = clean.tampered(folder, split_name, code=code)
    return world, vocabulary.tokens[token]


@pytest.mark.parametrize("rates", [(1.0, 0.0), (0.93, 0.02), (0.65, 0.0)])
def test_a_token_that_tells_the_label(clean, tmp_path, rates):
    world, name = planted(clean, tmp_path / "store", *rates)
    finding = world.only("token")
    assert name in finding.what
    positives = clean.labels.filter("boolean_value")["subject_id"]
    assert set(finding.subjects) <= set(positives)


@pytest.mark.parametrize("rates", [(0.75, 0.25), (0.6, 0.08), (0.15, 0.0)])
def test_a_strong_but_legitimate_token(clean, tmp_path, rates):
    assert planted(clean, tmp_path / "store", *rates)[0].found("token") == []


def test_a_partial_leak_is_stated(clean, tmp_path):
    world, name = planted(clean, tmp_path / "store", 0.35, 0.0)
    assert name in world.only("token", "warning").what


def test_held_out_labels_are_not_read(clean, tmp_path):
    assert planted(clean, tmp_path / "store", 1.0, 0.0, splits=("held_out",))[0].found("token") == []


def test_a_token_everyone_has_but_positives_in_their_last_visit(clean, tmp_path):
    split, _, start, stop = clean.split_labels("train")
    world, name = planted(clean, tmp_path / "store", 1.0, 0.0)
    code = np.array(world.store.split("train").code)
    token = world.store.vocabulary.id(name)
    early = start[split.visit[start + 2] < split.visit[stop - 1]] + 2
    code[early] = token
    finding = world.tampered(tmp_path / "store", "train", code=code).found("token")[0]
    assert f"{name} in the last visit" in finding.what
    assert finding.severity == "error"


def test_a_code_spread_over_its_bins(clean, tmp_path):
    """No bin alone tells the label, their code does."""
    world, name = planted(clean, tmp_path / "store", 1.0, 0.0)
    vocabulary = world.store.vocabulary
    token = vocabulary.id(name)
    several = np.bincount(vocabulary.base_ids[NUM_SPECIAL:])
    base = int(np.flatnonzero(several >= 5)[0])
    bins = np.flatnonzero(vocabulary.base_ids == base)[1:]
    for split_name in ("train", "tuning"):
        code = np.array(world.store.split(split_name).code)
        code[np.isin(code, np.flatnonzero(vocabulary.base_ids == base))] = NUM_SPECIAL
        rows = np.flatnonzero(code == token)
        code[rows] = bins[np.arange(len(rows)) % len(bins)]
        world = world.tampered(tmp_path / "store", split_name, code=code)
    finding = world.only("token")
    assert finding.what == f"one token tells the label: {vocabulary.base_codes[base]}"


def multilabel(clean, names, **manifest):
    """Labels whose categories are given per row of the clean labels."""
    rows = clean.labels.with_columns(
        categorical_value=pl.Series(names, dtype=pl.String), boolean_value=pl.lit(None, dtype=pl.Boolean)
    )
    return clean.with_labels(rows, kind="multilabel", **manifest)


def test_a_category_that_a_token_tells(clean, tmp_path):
    positive = clean.labels["boolean_value"].to_numpy()
    names = np.where(positive, "hypertension", "[none]")
    assert multilabel(clean, names, definitions={"hypertension": ["ICD10CM//I10"]}).found("token") == []
    world, name = planted(clean, tmp_path / "store", 1.0, 0.0)
    finding = multilabel(world, names, definitions={"hypertension": ["ICD10CM//I10"]}).only("token")
    assert finding.what == f"one token tells the label (hypertension): {name}"
    # Its own code tells recurrence, which is what such a task asks.
    assert multilabel(world, names, definitions={"hypertension": [name]}).found("token") == []
    assert multilabel(world, names).only("token", "warning").what == finding.what


def test_one_category_of_many_warns_and_some_of_many_fail(clean, tmp_path):
    """Codes that follow others by protocol are expected among many categories; a leak in a twentieth is not."""
    world, name = planted(clean, tmp_path / "store", 1.0, 0.0)
    positive = world.labels["boolean_value"].to_numpy()
    place = np.arange(len(positive))

    def of(categories):
        leaking = pl.Series(np.where(positive, "leaking", "[none]"))
        rows = [world.labels.with_columns(categorical_value=leaking).filter(pl.col("categorical_value") != "[none]")]
        rows += [
            world.labels.with_columns(categorical_value=pl.lit(f"category {number}")).filter(
                pl.Series(place % 7 == number % 7)
            )
            for number in range(categories)
        ]
        none = world.labels.join(pl.concat(rows), on=["subject_id", "prediction_time"], how="anti")
        rows.append(none.with_columns(categorical_value=pl.lit("[none]")))
        definitions = {f"category {number}": ["ICD10CM//Z"] for number in range(categories)}
        labels = pl.concat(rows).with_columns(boolean_value=pl.lit(None, dtype=pl.Boolean))
        return world.with_labels(labels, kind="multilabel", definitions={**definitions, "leaking": ["ICD10CM//I10"]})

    assert of(6).only("token").what == f"one token tells the label (leaking): {name}"
    assert of(30).only("token", "warning").what == f"one token tells the label (leaking): {name}"


def test_labels_without_classes_are_not_checked(clean):
    rows = clean.labels.with_columns(
        boolean_value=pl.lit(None, dtype=pl.Boolean), float_value=pl.lit(1.5, dtype=pl.Float32)
    )
    world = clean.with_labels(rows, kind="regression")
    notes = {found.check: found.note for found in world.audit().of("not checked")}
    assert {"windows", "token", "one-class"} <= set(notes)
    assert notes["token"] == "labels without classes"
