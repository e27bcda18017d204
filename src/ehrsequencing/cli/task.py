"""`ehrseq task build` and `ehrseq task list`; `ehrseq task audit` is in `cli.audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ehrsequencing.cli.audit import audit
from ehrsequencing.cli.common import Overwrite, progress_bars, say, show_flow, show_table

app = typer.Typer(help="Cohorts and labels.", no_args_is_help=True, rich_markup_mode=None)
app.command("audit")(audit)


@app.command("list")
def list_tasks() -> None:
    """Show the tasks that can be built, and the rules they keep."""
    from ehrsequencing.tasks.parsing import NAMED_TASKS, SHARED_RULES, TASK_FAMILIES

    show_table(
        ("Task", "Kind", "Asked at t", "Label", "Left out", "Follow-up", "Death"),
        [
            (row.pattern, row.kind, row.asked, row.label, row.excluded, row.follow_up, row.death)
            for row in TASK_FAMILIES
        ],
        lines=True,
    )
    say("Named tasks: " + ", ".join(name for row in TASK_FAMILIES for name in row.named))
    for name, written in NAMED_TASKS.items():
        say(f"  {name} is {written}")
    for rule in SHARED_RULES:
        say(rule)


@app.command("build")
def build(
    meds: Annotated[Path, typer.Argument(help="MEDS dataset.")],
    task: Annotated[str, typer.Option("--task", help="For example readmission_30d or onset:ICD10CM//I50@365.")],
    out: Annotated[Path, typer.Option("--out", help="Parquet file of the labels.")],
    history_days: Annotated[
        int | None,
        typer.Option("--history-days", help="Days from the first event to the first prediction, at least (365)."),
    ] = None,
    spacing_days: Annotated[
        int | None,
        typer.Option(
            "--spacing-days", help="Days between two predictions of a subject, at least (365; time_to 73000)."
        ),
    ] = None,
    minimum_age_years: Annotated[
        float | None,
        typer.Option("--minimum-age-years", help="Age at prediction, at least (18); 0 keeps unknown ages."),
    ] = None,
    at_days: Annotated[
        str | None,
        typer.Option("--at-days", help="Landmarks: days after the first event, for example 365.25,1826.25."),
    ] = None,
    at_age_years: Annotated[
        str | None, typer.Option("--at-age-years", help="Landmarks: ages at which a subject is asked, for example 50.")
    ] = None,
    at_kind: Annotated[
        str | None,
        typer.Option("--at-kind", help="Of ends of visits those with an event of this kind, for example diagnosis."),
    ] = None,
    hours_after_admission: Annotated[
        int | None,
        typer.Option("--hours-after-admission", help="Prediction time of tasks asked within a hospital stay (24)."),
    ] = None,
    best_c: Annotated[
        float | None,
        typer.Option(
            "--best-c", help="Survival tasks: keep the cohort, and make the outcome from its records with this best C."
        ),
    ] = None,
    order_share: Annotated[
        float | None, typer.Option("--order-share", help="With --best-c: share of the risk that hangs on order (0.5).")
    ] = None,
    censoring_rate: Annotated[
        float | None,
        typer.Option("--censoring-rate", help="Survival tasks: subjects leave at this rate a year, exponentially."),
    ] = None,
    censoring_strength: Annotated[
        float | None,
        typer.Option(
            "--censoring-strength",
            help="With --censoring-rate, on synthetic records: log-rate per standard deviation of the hidden state.",
        ),
    ] = None,
    train_before: Annotated[
        str | None,
        typer.Option(
            "--train-before", help="Temporal validation: of train and tuning, rows whose window ends before this date."
        ),
    ] = None,
    test_after: Annotated[
        str | None,
        typer.Option(
            "--test-after", help="Of held-out subjects, predictions from this date on (--train-before); YYYY-MM-DD."
        ),
    ] = None,
    horizon_days: Annotated[
        int | None,
        typer.Option("--horizon-days", help="With --train-before: length of the window, where the task states none."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make labels from a MEDS dataset; print the cohort's flow, and how precisely an AUROC will be known."""
    from dataclasses import asdict, replace

    from ehrsequencing.data.artefacts import refuse_labels_in_data
    from ehrsequencing.data.dataset import MedsDataset
    from ehrsequencing.data.labels import manifest_path, write_labels
    from ehrsequencing.errors import ConfigError, RunError
    from ehrsequencing.evaluation.sample_size import split_guidance
    from ehrsequencing.io import atomic_path
    from ehrsequencing.tasks.base import MAX_DAYS, CohortRules
    from ehrsequencing.tasks.censoring import Censoring, censor
    from ehrsequencing.tasks.cohorts import build_labels, parse_task
    from ehrsequencing.tasks.signal import Signal, oracle_path, signal_labels, signal_oracle
    from ehrsequencing.tasks.temporal import parse_date, split_by_time

    if out.is_dir():
        raise ConfigError("--out", got=f"the folder {out}", expected=f"a file, for example {out / 'labels.parquet'}")
    if out.suffix != ".parquet":
        raise ConfigError("--out", got=out, expected="a name that ends in .parquet")
    refuse_labels_in_data(out, meds)
    beside = [] if best_c is None else [oracle_path(out)]
    there = [path for path in (out, manifest_path(out), *beside) if path.exists()]
    if there and not overwrite:
        raise RunError(f"{there[0]} exists already", remedy="choose another file or pass --overwrite")
    parsed = parse_task(task)
    options = {
        "history_days": history_days,
        "spacing_days": spacing_days,
        "minimum_age_years": minimum_age_years,
        "hours_after_admission": hours_after_admission,
        "at_days": _numbers("--at-days", at_days),
        "at_age_years": _numbers("--at-age-years", at_age_years),
        "at_kind": at_kind,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if unknown := sorted(set(given) - set(asdict(parsed.rules))):
        raise ConfigError(
            f"task {task} has no such option", got=", ".join(unknown), expected=", ".join(asdict(parsed.rules))
        )
    rules = replace(parsed.rules, **given)  # type: ignore[arg-type]
    if isinstance(rules, CohortRules) and (idle := sorted(rules.idle() & set(given))):
        raise ConfigError(f"{', '.join(idle)} has no effect at landmarks", remedy="give one of them")
    if train_before is None:
        for option, value in (("--test-after", test_after), ("--horizon-days", horizon_days)):
            if value is not None:
                raise ConfigError(f"{option} is part of a temporal validation", expected="--train-before beside it")
    if horizon_days is not None and not 0 <= horizon_days <= MAX_DAYS:
        raise ConfigError("--horizon-days is out of range", got=horizon_days, expected=f"0 to {MAX_DAYS} days")
    first_unlearned = None if train_before is None else parse_date(train_before, "--train-before")
    first_judged = None if test_after is None else parse_date(test_after, "--test-after")
    for option, given_to, beside_option in (
        ("--order-share", order_share, best_c), ("--censoring-strength", censoring_strength, censoring_rate),
    ):  # fmt: skip
        if given_to is not None and beside_option is None:
            needed = "--best-c" if option == "--order-share" else "--censoring-rate"
            raise ConfigError(f"{option} has no effect alone", expected=f"{needed} beside it")
    if parsed.kind != "survival" and (best_c is not None or censoring_rate is not None):
        raise ConfigError(
            "--best-c and --censoring-rate are for survival tasks", got=task, expected="for example time_to:death@1825"
        )
    share = Signal.order_share if order_share is None else order_share
    signal = None if best_c is None else Signal(best_c, share)
    censoring = None if censoring_rate is None else Censoring(censoring_rate, censoring_strength or 0.0)
    dataset = MedsDataset.open(meds)
    with progress_bars() as update:
        frame, manifest = build_labels(
            dataset, parsed, rules, progress=lambda done, total: update("labels", done, total)
        )
    if signal is not None:
        frame, manifest = signal_labels(dataset, frame, manifest, signal)
    if censoring is not None:
        frame, manifest = censor(dataset, frame, manifest, censoring)
    if first_unlearned is not None:
        frame, manifest = split_by_time(
            dataset, frame, manifest, train_before=first_unlearned, test_after=first_judged, horizon_days=horizon_days
        )
    write_labels(out, frame, manifest)
    if signal is not None:
        with atomic_path(oracle_path(out)) as temporary:
            signal_oracle(dataset, frame, manifest).write_parquet(temporary)
        say(f"true risk, for evaluation alone, written to {oracle_path(out)}")
    show_flow(manifest["flow"])
    if parsed.kind == "binary":
        for line in split_guidance(manifest["splits"]):
            say(line)
    for note in manifest["notes"]:
        say(f"note: {note}")
    say(f"labels written to {out}")


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """Numbers parted by commas; None where the option is not given."""
    from ehrsequencing.errors import ConfigError

    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"{option} takes numbers parted by commas", got=text[:80], expected="365.25,1826.25"
        ) from None
