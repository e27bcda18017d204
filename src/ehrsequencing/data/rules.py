"""How events become tokens: the rules of a token store, which travel with it and with every model trained on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ehrsequencing.data.rollup import parse_roll_up
from ehrsequencing.data.units import UnitTable
from ehrsequencing.data.visits import VisitRule
from ehrsequencing.errors import ConfigError, StoreError, VocabularyMismatchError
from ehrsequencing.io import read_json, write_text

RULES_FILE = "rules.json"
_CHOICES = {
    "order_within_visit": ("time", "canonical"),
    "long_histories": ("events", "visits"),
    "values": ("bins", "none"),
}


@dataclass(frozen=True)
class Rules:
    """Rules of a token store.

    Attributes:
        visits: Which events are a visit, as `VisitRule.parse` reads it.
        order_within_visit: What a model reads first inside a visit: "time", or "canonical" (kind, code, value).
        long_histories: What stays of a history that is longer than the model: the most recent "events", or whole
            "visits".
        values: Tokens of numbers: "bins", or "none" (the bare code; models read the number itself).
        roll_up: Roll-ups in their order, as `parse_roll_up` returns them.
        units: Conversions; None leaves units as they are.
    """

    visits: str = str(VisitRule())
    order_within_visit: str = "time"
    long_histories: str = "events"
    values: str = "bins"
    roll_up: tuple[str, ...] = ()
    units: UnitTable | None = None

    @classmethod
    def of(cls, folder: Path) -> Rules:
        """Rules of a token store or model folder; the default ones where it states none.

        Raises:
            StoreError: the file is damaged.
        """
        file = folder / RULES_FILE
        if not file.exists():
            return cls()
        content = read_json(file, StoreError, "run `ehrseq prepare` again")
        try:
            units = content["units"]
            return cls(
                **{name: str(content[name]) for name in ("visits", *_CHOICES)},
                roll_up=tuple(map(str, content["roll_up"])),
                units=None if units is None else UnitTable.from_json(units),
            )._checked()
        except (KeyError, TypeError, ValueError, ConfigError) as problem:
            raise StoreError(f"{file} holds no rules", got=repr(problem), remedy="run `ehrseq prepare` again") from None

    def chosen(
        self,
        *,
        visits: str | None,
        order_within_visit: str | None,
        long_histories: str | None,
        values: str | None,
        roll_up: Sequence[str] | None,
        units: str | Path | None,
    ) -> Rules:
        """These rules with the options given; None leaves a rule as it is.

        Raises:
            ConfigError: an option is none of its choices.
            DataError: the file of `units` is no table of units.
        """
        given: dict[str, Any] = {
            "visits": visits,
            "order_within_visit": order_within_visit,
            "long_histories": long_histories,
            "values": values,
            "roll_up": None if roll_up is None else tuple(roll_up),
            "units": None if units is None else UnitTable.of(units),
        }
        return replace(self, **{name: value for name, value in given.items() if value is not None})._checked()

    def _checked(self) -> Rules:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(name, got=getattr(self, name), expected=" or ".join(choices))
        roll_up = tuple(map(parse_roll_up, self.roll_up))
        names = [rule.partition("=")[0] for rule in roll_up]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError("two roll-ups of one system", got=", ".join(twice), expected="one of each")
        return replace(self, visits=str(VisitRule.parse(self.visits)), roll_up=roll_up)

    def to_json(self) -> dict[str, Any]:
        """What `of` reads."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            **plain,
            "roll_up": list(self.roll_up),
            "units": None if self.units is None else self.units.to_json(),
        }

    def save(self, folder: Path) -> None:
        """Write `rules.json`; the default rules are those of a folder without one."""
        if self != Rules():
            write_text(folder / RULES_FILE, json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n")

    def differing(self, other: Rules) -> list[str]:
        """Names of the rules that are not equal."""
        return [field.name for field in fields(self) if getattr(self, field.name) != getattr(other, field.name)]


def reused_rules(own: Rules, asked: Rules, folder: Path) -> Rules:
    """The rules for a second dataset: those of the first, with a unit table where the first had none.

    Args:
        own: Of the folder whose vocabulary is reused.
        asked: The same with the options given.
        folder: For the message.

    Raises:
        ConfigError: the options ask for other rules.
    """
    refused = [name for name in asked.differing(own) if name != "units" or own.units is not None]
    if refused:
        name = refused[0]
        raise ConfigError(
            f"{folder} was prepared with other rules: {' and '.join(refused)}",
            got=_shown(asked, name), expected=_shown(own, name),
            remedy="leave the options out: the rules come with the vocabulary",
        )  # fmt: skip
    return asked


def refuse_other_rules(store: Path, model: Path) -> None:
    """Refuse a store that was prepared with other rules than those a model was trained with.

    Units do not count: a second site converts its own into those of the model.

    Raises:
        VocabularyMismatchError: it was; names a rule and both values.
    """
    own, other = Rules.of(model), Rules.of(store)
    if names := [name for name in own.differing(other) if name != "units"]:
        raise VocabularyMismatchError(
            f"{model} was trained on a store with other rules: {' and '.join(names)}",
            got=_shown(other, names[0]), expected=_shown(own, names[0]),
            remedy="prepare the store with --vocabulary this model",
        )  # fmt: skip


def _shown(rules: Rules, name: str) -> str:
    value = rules.to_json()[name]
    if name == "units":
        return "units as they are" if value is None else f"a table of {len(value)} conversions"
    return (", ".join(value) or "no roll-up") if name == "roll_up" else str(value)
