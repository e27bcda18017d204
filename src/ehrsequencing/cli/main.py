"""Entry point of `ehrseq`: collects the verbs and turns errors into one line and an exit code."""

from __future__ import annotations

import errno
import sys
import traceback

import typer

from ehrsequencing import __version__
from ehrsequencing.cli import data, demo, evaluate, finetune, pretrain, report, task
from ehrsequencing.errors import EhrseqError

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
app.command("prepare")(data.prepare)
app.add_typer(task.app, name="task")
app.command("pretrain")(pretrain.pretrain)
app.command("finetune")(finetune.finetune)
app.command("evaluate")(evaluate.evaluate)
app.command("report")(report.report)


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

_OS_ERRORS = {
    errno.ENOSPC: ("the disk is full", "free space or choose another --out; nothing half-written was left behind"),
    errno.EDQUOT: ("the disk quota is used up", "free space or choose another --out"),
    errno.EACCES: ("permission denied", "check the permissions of the path"),
    errno.EROFS: ("the file system is read-only", "choose another --out"),
    errno.ENOENT: ("no such file or folder", "check the path"),
    errno.ENOTDIR: ("not a folder", "check the path"),
    errno.EISDIR: ("a folder, where a file was expected", "check the path"),
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits 0, 2 on an error a user can mend, 130 on Ctrl-C, 1 on a defect of ours."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = app(args=arguments, standalone_mode=False)
    except typer.Exit as stop:
        code = stop.exit_code
    except _UsageProblem as problem:
        context = getattr(problem, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context else ""
        _fail(f"{getattr(problem, 'format_message', problem.__str__)()}{hint}", debug)
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except EhrseqError as problem:
        _fail(str(problem), debug)
    except OSError as problem:
        what, remedy = _OS_ERRORS.get(problem.errno or 0, (problem.strerror or str(problem), "check the path"))
        _fail(f"{problem.filename or 'input or output'}: {what}. Remedy: {remedy}", debug)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    typer.echo(f"error: {message}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
