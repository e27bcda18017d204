"""What the entry point prints, where, and with which exit code."""

import pytest

from ehrsequencing.cli.main import main


def outcome(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("bare", "asked"), [([], ["--help"]), (["--debug"], ["--help"]), (["task"], ["task", "--help"])]
)
def test_a_verb_group_without_a_verb_answers_with_its_help(capsys, bare, asked):
    code, out, err = outcome(capsys, *bare)
    assert (code, err) == (0, "")
    assert out == outcome(capsys, *asked)[1]
    assert "Usage:" in out
