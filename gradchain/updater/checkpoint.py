"""What an updater writes of itself and reads back: its state, and with it the weights and buffers."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from gradchain.core import _torch
from gradchain.core.config import differences, to_config
from gradchain.core.context import Context
from gradchain.core.eager import EagerTensors
from gradchain.core.index import Index
from gradchain.core.roles import AverageState
from gradchain.core.state import Links, merged, narrowed
from gradchain.engine.commit import Commit, Copies
from gradchain.updater.bound import Bound
from gradchain.updater.fitting import Fitting
from gradchain.updater.fixed import CURE, Form, from_fixed, inventory, is_fixed, lost, to_fixed
from gradchain.updater.journal import Pending
from gradchain.updater.memory import without_repeats
from gradchain.updater.moving import Moves, names_in, state_renamed
from gradchain.updater.parts import Part, Which, part_of
from gradchain.updater.saved import FORMAT, check, unexpected
from gradchain.updater.state_dict import LoadReport, as_laid, fingerprint, from_dict, states, to_dict

_NO_WEIGHTS: Mapping[str, Tensor] = MappingProxyType({})

_waiting: tuple[weakref.ref[Checkpoint], ...] = ()
"""Those whose state was loaded without weights, and whose weights no updater has updated since."""


class Checkpoint:
    """Reads and writes one bound chain."""

    def __init__(self, bound: Bound) -> None:
        self._bound = bound
        self._loaded: dict[str, int] | None = None  # the fingerprint of a state loaded since the last update
        self._seen: tuple[weakref.ref[Checkpoint], ...] = ()  # those that waited when this last looked

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": ()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._wait(self._loaded)

    def _wait(self, loaded: Mapping[str, int] | None) -> None:
        """Have the next update of these weights look whether they are those that a state was saved with."""
        global _waiting
        self._loaded = None if loaded is None else dict(loaded)
        if loaded is not None:
            _waiting = (*_waiting, weakref.ref(self))

    # out

    def write(self, form: Form = "plain", sync: bool = False, lent: bool = False) -> dict[str, Any]:
        """The state as plain data, or in a shape that is the same before the first update and after any.

        Args:
            form: which of the two.
            sync: reduce an open window over ranks first.
            lent: tensors as they lie in memory, for who reads them before the next update.
        """
        bound = self._bound
        if sync:
            bound.state = bound.window.reduced(bound.state, "state_dict")
        bound.target.check()
        plain = {
            "format": FORMAT,
            "chain": to_config(bound.chain),
            "clocks": dict(bound.clocks),
            "links": to_dict(bound.chain, self._as_written(form), lent),
            "overrides": bound.hypers.saved_overrides(),
            "observed": dict(bound.observed),
            "news": {name: [count, *latest] for name, (count, latest) in bound.news.items()},
            "num_skipped": bound.num_skipped,
            "inactive": [name for name in bound.target.index.names if name not in bound.active],
            "fingerprint": fingerprint(bound.parameters()),
        }
        if form == "plain":
            return {**plain, "inventory": inventory(plain, bound.chain, bound.state)}
        with torch.no_grad():
            fresh = bound.chain.init(bound.params())
        return to_fixed(plain, bound.chain, fresh, bound.parameters())

    def _as_written(self, form: Form) -> Links:
        """The state with whole tensors where ranks share it out; in the fixed form with this rank's parts of those."""
        bound = self._bound
        state = bound.window.in_dtypes_of(bound.state, bound.parameters())
        return state if bound.shares is None else bound.shares.whole(bound.chain, state, form == "fixed")

    def contents(self, form: Form, weights: Which) -> dict[str, Any]:
        """Weights, or those of them, buffers and the state, lent. All ranks call it."""
        bound, state = self._bound, self.write(form, sync=True, lent=True)
        averages = [address for address, s in states(bound.chain, bound.state) if isinstance(s, AverageState)]
        part = part_of(bound.target, bound.parameters(), state, averages, weights)
        if is_fixed(state) and bound.shares is not None:
            own = bound.shares.weights()
            part["weights"] = {name: own[name] for name in part["weights"]}
        return part

    def refuse_sharded(self, owner: str, form: Form) -> None:
        """One file is for whole weights."""
        if form == "plain" and any(map(_torch.is_dtensor, self._bound.target.last_seen)):
            raise RuntimeError(
                f"{owner}: the weights are sharded, and one file holds whole ones. Save them in parts by "
                'gch.Checkpointer, or with torch.distributed.checkpoint and updater.state_dict(form="fixed").'
            )

    # in

    def stage(
        self,
        saved: Mapping[str, Any],
        strict: bool,
        weights: Mapping[str, Tensor] = _NO_WEIGHTS,
        moves: Moves | None = None,
        table: Mapping[str, str] | None = None,
        told: Sequence[str] = (),
    ) -> Callable[..., LoadReport]:
        """Check a saved state; the function returned makes it the updater's.

        Args:
            saved: the state.
            strict: whether it must be one of this chain and model.
            weights: those that come with it.
            moves: what has changed since.
            table: saved name → its name now, where that was looked up already.
            told: what was moved already, for the report.
        """
        try:
            return self._staged(saved, strict, weights, moves, table, told)
        except RecursionError:
            raise ValueError("load_state_dict: the state is nested deeper than any is, or holds itself.") from None

    def _staged(
        self,
        saved: Mapping[str, Any],
        strict: bool,
        weights: Mapping[str, Tensor],
        moves: Moves | None,
        table: Mapping[str, str] | None,
        told: Sequence[str],
    ) -> Callable[..., LoadReport]:
        bound, report = self._bound, LoadReport(moved=[*told])
        bound.target.check()
        absent: list[tuple[str, ...]] = []
        if is_fixed(saved):
            saved, absent = from_fixed(saved)
        check(saved)
        report.unexpected += unexpected(saved)
        owner = "load_state_dict" if table is None else "load"
        if moves is not None:
            saved = self._renamed(saved, owner, moves, table, report)
        unfilled = lost(saved)
        base, active = self._base(saved, strict)
        if moves is not None:
            saved, base = self._moved(saved, base, active, weights, moves, report, owner)
        buffers = bound.target.buffers()
        state: Any = from_dict(bound.chain, base, saved["links"], bound.target.index, report, buffers)
        self._check_window(state, report)
        if bound.shares is not None:
            state = bound.shares.parted(bound.chain, state, bound.window.name)
        here = {address for address, _ in states(bound.chain, state)}
        entries = [f"{address}.{name}[{n}]" for address, name, n in absent if address in here]
        report.missing += [line for line in (*entries, *unfilled) if line not in report.missing]
        overrides, gone, wrong = bound.hypers.restored(saved["overrides"])
        report.mismatched += wrong
        clocks = self._clocks(saved["clocks"], bound.hypers.clocks_under(overrides), bool(gone), report)
        if strict:
            _refuse(report.problems(), bool(unfilled))
        report.differences = differences(saved["chain"], to_config(bound.chain))
        report.overrides = [f"override of {a} is in force: {o}" for a, o in overrides.items()] + gone

        def follow() -> None:
            bound.journal.torn = ""
            bound.drop_window()
            bound.state, bound.active = state, active
            bound.clocks = clocks
            bound.hypers.overrides = overrides
            bound.observed = dict(saved["observed"])
            bound.news = {name: (count, latest) for name, (count, *latest) in saved["news"].items()}
            bound.num_skipped = saved["num_skipped"]
            bound.loaded = report
            self._wait({name: bits for name, bits in saved["fingerprint"].items() if name not in weights} or None)

        def commit(writes: Commit | None = None) -> LoadReport:
            bound.journal.discard()
            bound.journal.guard(bound.journal.write, Pending(writes or Commit(), follow))
            for line in gone:
                warnings.warn(f"load_state_dict: {line}.", stacklevel=4)
            return report

        return commit

    def _renamed(
        self,
        saved: Mapping[str, Any],
        owner: str,
        moves: Moves,
        table: Mapping[str, str] | None,
        report: LoadReport,
    ) -> Mapping[str, Any]:
        """A saved state under the names that the model has now."""
        moves.check_resize(owner, self._names())
        if table is None:
            table = moves.table(owner, names_in(saved), self._names())
            report.moved += [f"{old} became {new}" for old, new in table.items()]
        return state_renamed(saved, table)

    def _names(self) -> list[str]:
        """Everything that the model has a name for."""
        target = self._bound.target
        return [*target.index.names, *target.buffers(), *target.tied()]

    def _moved(
        self,
        saved: Mapping[str, Any],
        base: Links,
        active: Index,
        weights: Mapping[str, Tensor],
        moves: Moves,
        report: LoadReport,
        owner: str,
    ) -> tuple[Mapping[str, Any], Links]:
        """A saved state as this chain and model have their places, and what stands where nothing was saved.

        With the weights come states that begin with them: a link that nothing was saved for starts from those.
        """
        bound = self._bound
        params = bound.gradients.params()
        if weights:
            places = bound.parameters()
            params = EagerTensors.at(
                bound.target.index,
                {n: weights[n].to(p.device) if n in weights and weights[n].shape == p.shape else p
                 for n, p in places.items()},
            )  # fmt: skip
        with torch.no_grad():
            fresh = bound.chain.init(params.select(active))
        context = Context.of(bound.facts(params)._replace(clocks={**bound.clocks, **saved["clocks"]}))
        links = {address: fields for address, fields in saved["links"].items() if isinstance(fields, Mapping)}
        stands = base if not weights and not moves.strict else fresh
        fitting = Fitting(
            moves, bound.chain, stands, links, saved["chain"], saved["clocks"], context, report.moved, owner
        )
        bits = saved["fingerprint"].items()
        alike = {n: b for n, b in bits if moves.how(n) is None and (moves.strict or not weights or n in weights)}
        made = {**saved, "links": fitting.links(), "overrides": fitting.overrides(saved["overrides"])}
        return {**made, "fingerprint": alike}, fresh if weights and not moves.strict else base

    def _check_window(self, state: Links, report: LoadReport) -> None:
        """A window that lies in `.grad` must have the parameters' dtypes; one that the link sums itself need not."""
        window, places = self._bound.window, self._bound.parameters()
        held = window.state(state)
        for name, found in held.window.items() if held is not None and held.scaled else ():
            if found.dtype != places[name].dtype:
                expected, got = (str(t.dtype).removeprefix("torch.") for t in (places[name], found))
                report.mismatched.append(f"{window.name}.window: expected {expected} for {name!r}, found {got}")

    def _base(self, saved: Mapping[str, Any], strict: bool) -> tuple[Links, Any]:
        """The current state, with entries for just the parameters that had any when it was saved."""
        bound, index = self._bound, self._bound.target.index
        unknown = [name for name in saved["inactive"] if name not in index]
        if unknown and strict:
            raise ValueError(f"load_state_dict: expected the bound model's parameters, found {unknown[0]!r}.")
        active = index.subset([name for name in index.names if name not in saved["inactive"]])
        with torch.no_grad():
            fresh = bound.chain.init(bound.params().select(active))
        return merged(narrowed(bound.state, active), fresh), active

    def _clocks(
        self, saved: Mapping[str, float], read: Iterable[str], lost: bool, report: LoadReport
    ) -> dict[str, float]:
        """The saved clocks that are read. Where an override was lost, the clock it read has nobody left: no problem."""
        clocks = {name: self._bound.clocks.get(name, 0) for name in ("step", "micro", *sorted(read))}
        report.unexpected += [f"the clock {name!r}" for name in saved if name not in clocks and not lost]
        report.missing += [f"the clock {name!r}" for name in clocks if name not in saved]
        clocks.update({name: value for name, value in saved.items() if name in clocks})
        return clocks

    def stage_contents(self, contents: Mapping[str, Any], moves: Moves | None = None) -> Callable[[], LoadReport]:
        """Check saved weights, buffers and state; the function returned makes them the model's and the updater's."""
        self._bound.target.check()
        part = Part.read("load", contents)
        weights, buffers = self._bound.parameters(), self._bound.target.buffers()
        told: list[str] = []
        strict, table = moves is None or moves.strict, None
        if moves is not None:
            check(part.state)
            saved = (*part.weights, *part.buffers, *part.left, *part.tied, *names_in(part.state))
            table = moves.table("load", saved, self._names())
            part = moves.part(part, table, weights, buffers, told)
        part.check(weights, buffers)
        commit_state = self.stage(part.state, strict, part.weights, moves, table, told)

        def commit() -> LoadReport:
            writes = Commit()
            for places, saved in ((weights, part.weights), (buffers, part.buffers)):
                pairs = [(places[name], as_laid(tensor, places[name])) for name, tensor in saved.items()]
                writes.add(Copies([without_repeats(p, p) for p, _ in pairs], [without_repeats(t, p) for p, t in pairs]))
            writes.after(self._bound.target.reshard)
            writes.after(_torch.forget_casts)
            return commit_state(writes)

        return commit

    def warn_of_other_weights(self) -> None:
        """Once after a load: the state belongs to weights, and those of the model should be they.

        Updaters may share weights: the first update of any of them is the last look at what was loaded.
        """
        if _waiting is not self._seen:
            self._look()

    def _look(self) -> None:
        global _waiting
        mine = set(map(id, self._bound.target.last_seen))
        there = [other for other in (ref() for ref in _waiting) if other is not None and other._loaded is not None]
        ended = [other for other in there if not mine.isdisjoint(map(id, other._bound.target.last_seen))]
        _waiting = self._seen = tuple(weakref.ref(other) for other in there if other not in ended)
        for other in ended:
            other._compare()

    def _compare(self) -> None:
        saved, self._loaded = self._loaded or {}, None
        target = self._bound.target  # as last seen: a look might raise for what is another updater's to say
        now = fingerprint(dict(zip(target.index.names, target.last_seen, strict=True)))
        other = [name for name in now if name in saved and now[name] != saved[name]]
        if other:
            warnings.warn(
                f"update: the state was saved with other weights: {len(other)} of {len(now)} parameters differ, first "
                f"{other[0]!r}. Load the weights too, or use updater.save and updater.load.",
                stacklevel=8,  # whoever called update or step
            )


def _refuse(problems: Sequence[str], unfilled: bool) -> None:
    """ValueError where a state does not match; `unfilled`: it lacks what its own inventory lists."""
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise ValueError(
            f"load_state_dict: the state is not one of this chain and model: {'; '.join(problems[:5])}{more}. "
            f"{CURE + '. ' if unfilled else ''}strict=False loads what matches."
        )
