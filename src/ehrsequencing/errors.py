"""One small tree of exceptions. Each says what, got, expected, and how to mend it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class EhrseqError(Exception):
    """Base of every error that a user can mend; the command line prints it as one line and exits with 2.

    Args:
        what: What is wrong, naming the file, column or option.
        got: What was found.
        expected: What should have been there.
        remedy: What to do about it.
    """

    def __init__(self, what: str, *, got: object = None, expected: object = None, remedy: str | None = None) -> None:
        self.what, self.got, self.expected, self.remedy = what, got, expected, remedy
        parts = [what]
        if got is not None:
            parts.append(f"got {got}")
        if expected is not None:
            parts.append(f"expected {expected}")
        message = "; ".join(parts)
        if remedy:
            message += f". Remedy: {remedy}"
        super().__init__(" ".join(message.split()))


class ConfigError(EhrseqError):
    """An option or configuration file is wrong."""


class DataError(EhrseqError):
    """Raw data or a MEDS dataset is missing, malformed or implausible."""


class SplitError(DataError):
    """Splits overlap or miss subjects."""


class StoreError(EhrseqError):
    """A token store is damaged, incomplete or of another version."""


class VocabularyMismatchError(EhrseqError):
    """A model, checkpoint or store was built with another vocabulary."""


class LabelError(EhrseqError):
    """Labels are malformed, empty or of one class."""


class CohortError(LabelError):
    """A task that leaves nobody to label, or labels that are all alike.

    Attributes:
        flow: `step`, `rows` and `subjects` after each step; the command line prints it below the error.
    """

    def __init__(
        self,
        what: str,
        *,
        flow: Sequence[Mapping[str, Any]],
        expected: object = None,
        remedy: str | None = None,
    ) -> None:
        self.flow = list(flow)
        steps = (row["step"] for row in self.flow if not row["rows"])
        empty = next((step for step in steps if not step.startswith(("excluded", "of them", "that "))), None)
        super().__init__(
            what, got=None if empty is None else f"0 rows at step '{empty}'", expected=expected, remedy=remedy
        )


class AuditError(EhrseqError):
    """The leakage audit found a fault in the labels or the store that nobody accepted."""


class CheckpointError(EhrseqError):
    """A checkpoint, model folder or adapter is damaged or belongs to something else."""


class AdapterError(EhrseqError):
    """LoRA was asked to adapt nothing, or an adapter meets a model it was not trained on."""


class MetricError(EhrseqError):
    """A metric is undefined for the data it was given."""


class RunError(EhrseqError):
    """A run directory is in use, incomplete, or not comparable with another."""


class ShapeError(EhrseqError):
    """A tensor has the wrong shape, type or range."""

    def __init__(self, name: str, received: object, expected: object, remedy: str | None = None) -> None:
        super().__init__(f"{name} has the wrong shape or range", got=received, expected=expected, remedy=remedy)
