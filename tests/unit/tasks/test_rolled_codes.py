"""The audit of a store whose codes were rolled up, against the store of the same dataset with its codes as they are."""

from dataclasses import replace

import numpy as np
from audit_world import result

from ehrsequencing.data.prepare import prepare
from ehrsequencing.tasks.audit_data import codes_like, standing_for


def test_codes_of_a_task_are_found_under_the_broader_ones(clean, tmp_path):
    store = prepare(clean.path.parent / "meds", tmp_path / "store", roll_up=["icd10=3"])
    assert "ICD10CM//E11" in store.vocabulary.base_codes and "ICD10CM//E11.9" not in store.vocabulary.base_codes
    rolled = replace(clean, path=store.path)
    np.testing.assert_array_equal(rolled.data().outcome_time, clean.data().outcome_time)
    assert (clean.data().outcome_time < 2**62).any()
    report = rolled.audit()
    assert result(report, "prevalent").result == "passed"
    assert not report.of("failed")


def test_codes_that_share_a_broader_one_with_others_have_no_time(clean, tmp_path):
    store = prepare(clean.path.parent / "meds", tmp_path / "store", roll_up=["icd10=3"])
    some = replace(clean, path=store.path, manifest={**clean.manifest, "matched_codes": ["ICD10CM//E11.9"]})
    assert some.data().outcome_time is None
    known, alone = standing_for(store, {"ICD10CM//E11.9"}.__contains__)
    assert [store.vocabulary.base_codes[index] for index in np.flatnonzero(known)] == ["ICD10CM//E11"]
    assert not alone
    known, alone = codes_like(store, ["ICD10CM//E11"])
    assert known.sum() == 1 and alone
