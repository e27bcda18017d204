import numpy as np
import pytest
from test_features import DAY, examples_at, write_store

from ehrsequencing.baselines.features import CountFeatures
from ehrsequencing.baselines.length import LENGTH_NAMES, length_features
from ehrsequencing.data.schema import STATIC_TIME
from ehrsequencing.data.sequences import Examples
from ehrsequencing.errors import LabelError


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("length"))


def by_hand(split, examples):
    found = []
    for index, until in zip(examples.index, examples.until, strict=True):
        rows = range(int(split.offsets[index]), int(split.offsets[index + 1]))
        seen = [row for row in rows if STATIC_TIME != split.time[row] <= until]
        if seen:
            span = (until - min(int(split.time[row]) for row in seen)) / DAY
            found.append((len({int(split.visit[row]) for row in seen}), len(seen), span))
        else:
            found.append((0, 0, 0))
    return np.array(found, dtype=np.float64)


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_the_rows(store, seed):
    """Visits overlap in these records."""
    split = store.split("train")
    examples = examples_at(split, seed)
    found = length_features(split, examples)
    assert found.dtype == np.float64 and found.shape == (len(examples), len(LENGTH_NAMES))
    assert np.array_equal(found, by_hand(split, examples))
    assert np.array_equal(length_features(split, Examples.whole_histories(split)),
                          by_hand(split, Examples.whole_histories(split)))  # fmt: skip


def test_they_agree_with_the_count_features(store):
    split = store.split("train")
    examples = examples_at(split)
    features = CountFeatures.fit(split, examples, store.vocabulary, store.values, min_examples=1)
    counts = features.transform(split, examples).toarray()
    for name, column in (("visits", 0), ("events", 1)):
        logs = counts[:, features.names.index(name)]
        assert logs == pytest.approx(np.log1p(length_features(split, examples)[:, column]), rel=1e-6)


def test_what_comes_later_changes_nothing(store):
    """An example a moment before the next event counts no row of it; only the span follows the clock."""
    split = store.split("train")
    examples = examples_at(split)
    later = Examples(examples.index, examples.until + 1, None, examples.subject_id)
    early, late = length_features(split, examples), length_features(split, later)
    same = early[:, 1] == late[:, 1]
    assert same.mean() > 0.9
    assert late[same, 2] - early[same, 2] == pytest.approx(1 / DAY, abs=1e-11)


def test_before_the_first_event_there_is_no_length(store):
    split = store.split("train")
    nothing = Examples(np.arange(3), np.full(3, STATIC_TIME), None, np.array(split.subject_id[:3]))
    assert length_features(split, nothing).tolist() == [[0, 0, 0]] * 3


def test_no_examples(store):
    none = np.zeros(0, dtype=np.int64)
    with pytest.raises(LabelError, match="no examples to measure; got 0 rows; expected at least one"):
        length_features(store.split("train"), Examples(none, none, None, none))
