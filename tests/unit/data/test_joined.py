import pickle

import numpy as np
import pytest
from tests.unit.data.small_data import day

from ehrsequencing.data.batching import BatchSource
from ehrsequencing.data.joined import JoinedSplit
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import EVENT_COLUMNS


@pytest.fixture
def store(write_meds, tmp_path):
    def events(*subjects):
        return [
            [
                event
                for subject in subjects
                for event in [
                    (subject, day(-9000 - subject), "MEDS_BIRTH"), (subject, None, "GENDER//F"),
                    *((subject, day(number), f"A//{number % 3}", float(number)) for number in range(subject % 7)),
                ]
            ]
        ]  # fmt: skip

    meds = write_meds(train=events(5, 12, 20), tuning=events(3, 13), held_out=events(1, 11, 30))
    return prepare(meds, tmp_path / "store", min_count=1)


def test_every_subject_keeps_its_rows_and_times(store):
    joined = JoinedSplit(store, SPLITS, np.array([30, 3, 5, 13, 1, 999, 3]))
    assert joined.subject_id.tolist() == [1, 3, 5, 13, 30]
    for split in map(store.split, SPLITS):
        for position, subject in enumerate(split.subject_id.tolist()):
            here = joined.index_of(np.array([subject])).item()
            if here < 0:
                continue
            rows = slice(*joined.offsets[here : here + 2])
            own = slice(*split.offsets[position : position + 2])
            for column in EVENT_COLUMNS:
                np.testing.assert_array_equal(getattr(joined, column)[rows], getattr(split, column)[own])
            assert joined.birth_time[here] == split.birth_time[position]
            assert joined.death_time[here] == split.death_time[position]


def test_batches_are_those_of_the_splits(store):
    joined = JoinedSplit(store, SPLITS, np.array([11, 12, 13]))
    source = BatchSource(joined, Examples.whole_histories(joined), store.values, max_length=16)
    batch = next(iter(source.fixed()))
    split = store.split("tuning")
    own = BatchSource(split, Examples.whole_histories(split), store.values, max_length=16).build(np.array([1]))
    row = batch.subject_ids.tolist().index(13)
    assert batch.codes[row, batch.mask[row]].tolist() == own.codes[0, own.mask[0]].tolist()


def test_it_travels_to_workers_and_may_be_empty(store):
    joined = pickle.loads(pickle.dumps(JoinedSplit(store, SPLITS, np.array([5, 30]))))
    assert joined.subject_id.tolist() == [5, 30]
    assert joined.name == "train+tuning+held_out"
    assert len(JoinedSplit(store, SPLITS, np.array([999]))) == 0
