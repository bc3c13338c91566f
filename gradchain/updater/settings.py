"""What each parameter is trained with: the report of the hyperparameters that differ from one to another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

Found: TypeAlias = "Mapping[str, tuple[Mapping[str, Any], Mapping[str, tuple[str, ...]]]]"


class Settings(Mapping[str, Mapping[str, float]]):
    """Parameter → address → number, of every hyperparameter that was given per parameter. Prints as a table.

    `rules[parameter][address]` are the rules that matched; `groups()` counts the parameters of each number.
    """

    def __init__(self, found: Found, names: tuple[str, ...]) -> None:
        self._addresses = tuple(found)
        self._values = {n: {a: values[n] for a, (values, _) in found.items() if n in values} for n in names}
        self.rules = {n: {a: rules[n] for a, (_, rules) in found.items() if n in rules} for n in names}

    def __getitem__(self, name: str) -> Mapping[str, float]:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def groups(self) -> dict[str, dict[float, int]]:
        """Address → number → how many parameters have it, most first."""
        out: dict[str, dict[float, int]] = {a: {} for a in self._addresses}
        for row in self._values.values():
            for address, value in row.items():
                out[address][value] = out[address].get(value, 0) + 1
        return {a: dict(sorted(counts.items(), key=lambda item: -item[1])) for a, counts in out.items()}

    def __repr__(self) -> str:
        if not self._addresses:
            return "Settings: every hyperparameter is one number for all parameters."
        return "\n".join([*self._table(), "", *self._counted()])

    def _table(self) -> Iterator[str]:
        rows = [["parameter"]]
        for address in self._addresses:
            rows[0] += [address.rpartition("/")[2], "by"]
        for name, row in self._values.items():
            cells = [name]
            for address in self._addresses:
                known = address in row
                cells += [f"{row[address]:.6g}" if known else "", ", ".join(self.rules[name][address]) if known else ""]
            rows.append(cells)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for cells in rows:
            yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()

    def _counted(self) -> Iterator[str]:
        for address, counts in self.groups().items():
            shown = [f"{value:.6g} for {count}" for value, count in list(counts.items())[:8]]
            more = f", and {len(counts) - 8} more" if len(counts) > 8 else ""
            yield f"{address}: {', '.join(shown)}{more}"
