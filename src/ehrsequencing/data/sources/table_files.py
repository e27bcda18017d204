"""The files that a mapping names."""

from __future__ import annotations

import difflib
from pathlib import Path

from ehrsequencing.data.sources.csv_files import Layout
from ehrsequencing.data.sources.table_mapping import Mapping
from ehrsequencing.data.sources.tables import SUFFIXES, Table, find_tables, table_name
from ehrsequencing.errors import ConfigError, DataError


class TableFiles:
    """Finds tables in a folder by their file's name, in either case and with or without suffix, or the one file."""

    def __init__(self, src: Path, mapping: Mapping) -> None:
        """Check that all files named are there.

        Raises:
            DataError: one is missing; names the nearest.
            ConfigError: a block names no file although SRC is a folder.
        """
        self.src = src
        self.layout = Layout(
            mapping.encoding, mapping.delimiter, tuple(dict.fromkeys(["", *mapping.missing])), stated_in="the mapping"
        )  # fmt: skip
        self._found: dict[Path, dict[str, Table]] = {}
        self.used = {self.find(block.file).name for block in mapping.blocks()}

    def find(self, file: str | None) -> Table:
        """The table of a file named in the mapping."""
        if not self.src.is_dir():
            name = table_name(self.src)
            if not self.src.exists() or name is None:
                raise DataError(f"{self.src} is missing or no table", expected=f"a folder, or {' or '.join(SUFFIXES)}")
            if file is not None and (table_name(Path(file)) or Path(file).name).lower() != name.lower():
                raise DataError(f"{self.src} is one file, and the mapping names {file}", expected=self.src.name)
            return Table(name.lower(), (self.src,), self.layout)
        if file is None:
            raise ConfigError(f"{self.src} is a folder, and a block of the mapping names no file", expected="file = ..")
        path = self.src / file
        name = (table_name(path) or path.name).lower()
        tables = self._tables(path.parent)
        if name not in tables:
            near = difflib.get_close_matches(name, tables, n=1, cutoff=0)
            raise DataError(
                f"{path.parent} has no table {name}", got=", ".join(sorted(tables)) or "no table",
                remedy=f"the nearest is {near[0]}" if near else f"expected as {' or '.join(SUFFIXES)}",
            )  # fmt: skip
        return Table(self._name(path.parent, name), tables[name].files, self.layout)

    def not_used(self) -> list[str]:
        """Tables in the same folders that the mapping does not name."""
        names = {self._name(folder, name) for folder, tables in self._found.items() for name in tables}
        return sorted(names - self.used)

    def _name(self, folder: Path, name: str) -> str:
        return str(folder.relative_to(self.src) / name)

    def _tables(self, folder: Path) -> dict[str, Table]:
        if folder not in self._found:
            self._found[folder] = find_tables(folder)
        return self._found[folder]
