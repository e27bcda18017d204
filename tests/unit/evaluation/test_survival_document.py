import doctest
from pathlib import Path


def test_the_documents_examples_run():
    result = doctest.testfile(str(Path(__file__).parents[3] / "docs" / "survival.md"), module_relative=False)
    assert result.attempted > 0
    assert result.failed == 0
