"""How many labels each task finds: rows, subjects and positives under the default options, a column per MEDS dataset.

    python benchmarks/task_counts.py DATASET... [--task NAME ...]

Positives are examples with the outcome (multi-label: with any category; survival: with the event). Where a task does
not apply, the error stands below the table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ehrsequencing.data.dataset import MedsDataset
from ehrsequencing.errors import LabelError
from ehrsequencing.tasks.cohorts import build_labels

TASKS = (
    "readmission_7d", "readmission_30d", "readmission_90d", "mortality_inpatient", "mortality_30d", "mortality_365d",
    "los_over_3d", "los_over_7d",
    "onset:ICD10CM//I50,ICD9CM//428,SNOMED//84114007@365",
    "onset:ICD10CM//N18,ICD9CM//585,SNOMED//709044004,SNOMED//46177005@365",
    "onset:ICD10CM//K92.2,ICD9CM//578,SNOMED//74474003@365",
    "phenotype:common", "next_visit_codes", "time_to:death", "time_to:ICD10CM//I50,ICD9CM//428,SNOMED//84114007",
    "time_to:ICD10CM//K92.2,ICD9CM//578,SNOMED//74474003",
)  # fmt: skip
"""Every task of the table; the codes are of heart failure, chronic kidney disease and gastrointestinal bleeding."""


def counts(dataset: MedsDataset, task: str) -> str:
    """`rows / subjects / positives`, and for multi-label tasks the categories."""
    labels, manifest = build_labels(dataset, task)
    splits = manifest["splits"].values()
    total = {name: sum(split[name] for split in splits) for name in ("rows", "subjects", "positives")}
    text = " / ".join(f"{number:,}" for number in total.values())
    if manifest["kind"] == "multilabel":
        text += f" ({len(manifest['categories']):,} categories)"
    if manifest["kind"] == "survival" and (competing := int((labels["integer_value"] == 2).sum())):
        text += f" ({competing:,} died first)"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", type=Path, metavar="DATASET")
    parser.add_argument("--task", action="append", help="instead of all; repeatable")
    arguments = parser.parse_args()
    datasets = [MedsDataset.open(path) for path in arguments.datasets]
    errors: dict[str, int] = {}
    print("| task | " + " | ".join(str(path.name) for path in arguments.datasets) + " |")
    print("|---|" + "---|" * len(datasets))
    for task in arguments.task or TASKS:
        cells = []
        for dataset in datasets:
            try:
                cells.append(counts(dataset, task))
            except LabelError as problem:
                cells.append(f"none ({errors.setdefault(problem.what, len(errors) + 1)})")
        print(f"| `{task}` | " + " | ".join(cells) + " |", flush=True)
    for what, number in errors.items():
        print(f"\n({number}) {what}")


if __name__ == "__main__":
    main()
