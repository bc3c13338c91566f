"""Several updaters under one save, load and state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, overload

from typing_extensions import Unpack

from gradchain.core.html import text
from gradchain.updater import files
from gradchain.updater.files import FilePath, Format
from gradchain.updater.fixed import Form
from gradchain.updater.journal import insist
from gradchain.updater.moving import ChangedByUpdater, Moves
from gradchain.updater.parts import Which
from gradchain.updater.state_dict import LoadReport
from gradchain.updater.updater import Updater


class Group(Mapping[str, Updater]):
    """A read-only mapping of updaters with one save, load, state_dict and hyperparams.

    It has no update: each updater has its own.
    """

    def __init__(self, updaters: Mapping[str, Updater]) -> None:
        if not updaters:
            raise ValueError("group: needs at least one updater, got none.")
        for name, updater in updaters.items():
            if not isinstance(updater, Updater):
                got = type(updater).__name__
                raise TypeError(f"group: {name} must be an Updater, got {got}. Bind the chain first.")
        self._updaters = dict(updaters)

    def __getitem__(self, name: str) -> Updater:
        return self._updaters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._updaters)

    def __len__(self) -> int:
        return len(self._updaters)

    def __getattr__(self, name: str) -> Updater:
        updaters: dict[str, Updater] = self.__dict__.get("_updaters", {})
        if name in updaters:
            return updaters[name]
        if name in ("update", "step", "backward", "context"):
            first = next(iter(updaters))
            raise AttributeError(f"group: has no {name}. Each updater has its own: group[{first!r}].{name}")
        raise AttributeError(f"group: has no {name!r}. Its updaters: {', '.join(updaters)}.")

    def __repr__(self) -> str:
        return f"group({', '.join(f'{n}={u!r}' for n, u in self.items())})"

    def __rich_repr__(self) -> Iterator[tuple[str, Updater]]:
        yield from self.items()

    def _repr_html_(self) -> str:
        return "".join(f"{text(name)}{updater._repr_html_()}" for name, updater in self.items())

    @overload
    def hyperparams(self, *, by: Literal["parameter"] = ...) -> dict[str, Any]: ...

    @overload
    def hyperparams(self, *, by: Literal["value"]) -> dict[str, float]: ...

    def hyperparams(self, *, by: Literal["parameter", "value"] = "parameter") -> dict[str, Any]:
        """`name/address` → the number the coming update of that updater will use; `by` as for `Updater.hyperparams`."""
        return {f"{n}/{a}": v for n, u in self.items() for a, v in u.hyperparams(by=by).items()}

    def state_dict(self, sync: bool = False, form: Form = "plain") -> dict[str, Any]:
        """The state of every updater, by name; see `Updater.state_dict`."""
        return {name: updater.state_dict(sync=sync, form=form) for name, updater in self.items()}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, **changed: Unpack[ChangedByUpdater]
    ) -> dict[str, LoadReport]:
        """Load every updater's state; all are checked before any changes. Arguments are those of `load`."""
        moves = Moves.by_updater("load_state_dict", self, strict, changed)
        files.check_names("group", self, state_dict)
        staged = {name: u.stage(state_dict[name], strict, moves[name]) for name, u in self.items()}
        reports: dict[str, LoadReport] = {}
        insist(lambda: reports.update((name, commit()) for name, commit in staged.items()))
        return reports

    def save(self, path: FilePath, *, weights: Which = "all", format: Format | None = None, **extra: Any) -> None:
        """Write weights, buffers and state of every updater, and `extra`, into one file, as `Updater.save` does."""
        files.save(path, self, weights, format, extra)

    def load(self, path: FilePath, *, strict: bool = True, **changed: Unpack[ChangedByUpdater]) -> dict[str, Any]:
        """Read what `save` wrote, as `Updater.load` does: all is checked before anything changes. Returns the extra.

        Args:
            path: the file.
            strict: as for `Updater.load`, of every updater.
            **changed: rename, links and resize as there, each a dict by updater:
                `rename={"generator": {"old.*": "new.*"}}`.

        Raises:
            ValueError: besides what `Updater.load` has, a name of none of the updaters.
        """
        return files.load(path, self, Moves.by_updater("load", self, strict, changed))


def group(**updaters: Updater) -> Group:
    """Several updaters as one thing to save and load: `group(generator=u1, discriminator=u2)`.

    >>> import torch, gradchain as gch
    >>> both = gch.group(g=gch.sgd(0.1).bind(torch.nn.Linear(2, 1)), d=gch.adam(1e-3).bind(torch.nn.Linear(1, 1)))
    >>> sorted(both)
    ['d', 'g']
    """
    return Group(updaters)
