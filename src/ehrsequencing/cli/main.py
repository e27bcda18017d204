"""Entry point of `ehrseq`: collects the verbs and turns errors into one line and an exit code."""

from __future__ import annotations

import sys

import typer

from ehrsequencing import __version__
from ehrsequencing.cli import (
    benchmark,
    data,
    demo,
    doctor,
    evaluate,
    finetune,
    inspect,
    predict,
    pretrain,
    report,
    runs,
    task,
)
from ehrsequencing.cli.common import exit_codes
from ehrsequencing.errors import ConfigError

app = typer.Typer(
    name="ehrseq",
    help="Electronic health records to patient sequences, transformers and honest comparisons.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.demo)
app.command("synth")(data.synth)
app.command("import")(data.import_)
app.command("inspect")(inspect.inspect)
app.command("prepare")(data.prepare)
app.add_typer(task.app, name="task")
app.command("pretrain")(pretrain.pretrain)
app.command("finetune")(finetune.finetune)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.add_typer(benchmark.app, name="benchmark")
app.command("doctor")(doctor.doctor)
app.command("report")(report.report)
app.add_typer(runs.app, name="runs")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"ehrseq {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error; may stand anywhere."),
) -> None:
    pass


# Typer carries its own copy of click from 0.25 on; the exceptions' common base is reached through what it exports.
_UsageProblem: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits 0, 2 on an error a user can mend, 130 on Ctrl-C, 1 on a defect of ours."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    with exit_codes(debug):
        code = _run(arguments)
    sys.exit(code if isinstance(code, int) else 0)


def _run(arguments: list[str]) -> object:
    try:
        return app(args=arguments, standalone_mode=False)
    except typer.Exit as stop:
        return stop.exit_code
    except _UsageProblem as problem:
        context = getattr(problem, "ctx", None)
        if type(problem).__name__ == "NoArgsIsHelpError" and context:
            # A verb group without a verb asks for its help, which is an answer and no error.
            typer.echo(context.get_help())
            return 0
        hint = f" (see `{context.command_path} --help`)" if context else ""
        raise ConfigError(f"{getattr(problem, 'format_message', problem.__str__)()}{hint}") from problem


if __name__ == "__main__":
    main()
