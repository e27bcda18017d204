import tomllib

import pytest
from typer.testing import CliRunner

from ehrsequencing.cli.main import app, main
from ehrsequencing.data.sources import SOURCES

LABS = "who,when,what,value,status\n1,2020-01-01,a,1.5,final\n1,,b,x,final\n2,2020-02-01,a,high,draft\n"
MAPPING = """
[[tables]]
subject = "who"
time = "when"
code = "what"
value = "value"
kind = "lab"
where = { status = "final" }
"""


def run(*arguments):
    return CliRunner().invoke(app, ["import", *map(str, arguments)])


def test_help_and_list_name_every_source():
    kinds = [name for name, source in SOURCES.items() if source.expected_input is not None]
    helped, listed = run("--help").output, run("--list").output
    assert all(kind in helped and f"| {kind}" in listed for kind in kinds)
    assert "synthetic" not in helped
    assert "what SRC must be" in listed and "hosp/ and icu/" in listed


def test_the_example_is_printed_as_toml():
    printed = run("table", "--example")
    assert printed.exit_code == 0
    assert tomllib.loads(printed.output)["subjects"]["file"] == "patients.csv"


def test_the_summary_tells_rows_events_and_what_was_dropped(tmp_path):
    (tmp_path / "labs.csv").write_text(LABS)
    (tmp_path / "mapping.toml").write_text(MAPPING)
    done = run("table", tmp_path / "labs.csv", tmp_path / "meds", "--mapping", tmp_path / "mapping.toml")
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.replace("|", " ").split()) for line in done.output.splitlines()]
    for line in (
        "subjects 1", "events 1", "lab 1", "codes 1", "labs 3 1 1 rows: excluded by where",
        "1 events dropped: without a time", "2 values of value that are no numbers",
    ):  # fmt: skip
        assert line in lines, done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strict"], "labs.csv has 2 values that are no numbers"),
        ([], "source uci-diabetes has no option mapping"),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, arguments, message):
    (tmp_path / "labs.csv").write_text(LABS)
    (tmp_path / "mapping.toml").write_text(MAPPING)
    kind = "table" if arguments else "uci-diabetes"
    with pytest.raises(SystemExit) as stop:
        main(["import", kind, str(tmp_path / "labs.csv"), str(tmp_path / "meds"), "--mapping",
              str(tmp_path / "mapping.toml"), *arguments])  # fmt: skip
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert message in told and len(told.splitlines()) == 1
