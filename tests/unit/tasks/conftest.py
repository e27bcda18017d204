import pytest
from audit_world import World

from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.synthetic import synthesise
from ehrsequencing.tasks.cohorts import build_labels, parse_task


@pytest.fixture(scope="session")
def clean(tmp_path_factory) -> World:
    """1,000 synthetic subjects and about 1,200 labels, a seventh of them positive."""
    root = tmp_path_factory.mktemp("audited")
    synthesise(root / "meds", subjects=1000, seed=5, workers=1)
    prepare(root / "meds", root / "store")
    labels, manifest = build_labels(MedsDataset.open(root / "meds"), parse_task("onset:ICD10CM//I10,ICD10CM//E11@730"))
    return World(root / "store", labels, manifest)
