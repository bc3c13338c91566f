"""A chain, the parameters it is bound to, and everything that changes from step to step."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradchain.core import _torch
from gradchain.core.chain import chain
from gradchain.core.checks import check_chain, takes_gradients
from gradchain.core.context import Context
from gradchain.core.eager import EagerTensors
from gradchain.core.index import Index
from gradchain.core.roles import AverageState, Gate, KeepsWindow
from gradchain.core.row_gradients import RowGradients
from gradchain.core.state import Links, merged
from gradchain.core.step import Notes, Step
from gradchain.core.tensors import Tensors
from gradchain.core.transform import Transform, walk
from gradchain.core.weights import Weights
from gradchain.engine.commit import Commit
from gradchain.engine.engine import Engine
from gradchain.engine.outcome import Outcome
from gradchain.engine.recording.leaves import same_memory
from gradchain.updater import buffers, sparse, verify, zero
from gradchain.updater.gradients import Gradients, owned
from gradchain.updater.hyperparameters import Hyperparameters, shown
from gradchain.updater.info import UpdateInfo
from gradchain.updater.journal import Pending
from gradchain.updater.observations import PATIENCE, Observations, observable
from gradchain.updater.ranks import check_received, check_reduced, over_ranks
from gradchain.updater.state_dict import LoadReport, rebuilt, states
from gradchain.updater.target import Target
from gradchain.updater.window import MicroBatch, Window


def _no_state() -> Links | None:
    return None


_NO_FACTOR: tuple[Callable[[], Links | None], Any] = _no_state, 1.0
"""The factor of a loss that an open window holds: of which state, which must not be kept alive, and the number."""
_NO_FACTS = Step()


class Bound:
    """What the parts of an Updater share.

    Attributes:
        chain: the chain, as it was bound.
        target: the model.
        gradients: its `.grad` fields.
        window: the window that lies in them.
        micro: the micro-batch that comes next.
        takes_gradients: whether the chain does; one that only averages weights does not.
        state: the chain's state.
        active: the parameters that have any; one that has never had a gradient has none, nor one beside `only`.
        hypers: the hyperparameters and their overrides.
        shares: where ranks share the state out, which part is this one's.
        clocks: named counters; "step" and "micro" are always among them.
        num_skipped: updates that a gate kept from being applied.
        observed: numbers that links may look at.
        observations: which of those links wait for.
        news: how often each was observed, and the numbers since the last applied update.
        records: the last value of everything that links recorded.
        loaded: what the last load found.
        autocast: the dtype the forward computes in.
        journal: what is being changed, and how it is put in order where that is broken off.
    """

    def __init__(
        self,
        tx: chain,
        target: Target,
        autocast: torch.dtype | None = None,
        only: Collection[str] | None = None,
        zero_redundancy: bool = False,
    ) -> None:
        self.chain = tx
        self.autocast = autocast
        self.hypers = Hyperparameters(tx)
        self.clocks: dict[str, float] = {"step": 0, "micro": 0}
        self.follow_clocks()
        self.num_skipped = 0
        self.observed: dict[str, float] = {}
        self.news: dict[str, tuple[int, list[float]]] = {}
        self.records: dict[str, Any] = {}
        self.loaded: LoadReport | None = None
        self.lent_averages: set[str] = set()  # addresses of averages whose tensors a user holds
        self.engine, journal = verify.parts(target.last_seen, sharded=zero_redundancy)
        self.journal = journal(self.engine.forget)
        self.observations = Observations(tx)
        self._gates = [link for _, link, _ in walk(tx, None) if isinstance(link, Gate)]
        scaling = [link for _, link in tx.named if type(link).scale_loss is not Transform.scale_loss]
        self._windows = any(isinstance(link, KeepsWindow) for _, link, _ in walk(tx, None))
        self._scales_loss, self._multiplies_loss = bool(scaling), all(link.multiplies_loss for link in scaling)
        self._factor_holds = self._multiplies_loss and all(link.factor_holds for link in scaling)
        self._factor, self._sight = _NO_FACTOR, Context()
        self.attach(target, zero.Shares(target) if zero_redundancy else None, check_reduced(target, "bind"))
        self.takes_gradients = takes_gradients(tx)
        facts = target.index.facts  # without gradients, what is averaged may move whether it requires one or not
        self.active = target.index.subset(
            [
                f.name
                for f in facts
                if (f.parameter.requires_grad or not self.takes_gradients) and (only is None or f.name in only)
            ]
        )
        self.state: Links = self.fresh_state()
        check_chain(tx, target.index, self.state, self.now())
        sparse.check(tx, target.index, self.active.subset(target.sparse()).names, "bind")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_factor": _NO_FACTOR, "_sight": Context()}  # a copy's state is another

    def attach(self, target: Target, shares: zero.Shares | None, unreduced: frozenset[str]) -> None:
        """Look at this model from now on; `unreduced`: what nobody reduces over ranks."""
        self.hypers.attach(target.index)
        self.target, self.shares, self._unreduced = target, shares, unreduced
        self.gradients = Gradients(target)
        self.window = Window(self.chain, target)
        self.micro = MicroBatch()

    def fresh_state(self) -> Links:
        """The state before the first update, of the active parameters."""
        return self._fresh_state_of(self.active)

    def _fresh_state_of(self, active: Index) -> Links:
        with torch.no_grad():
            return self.chain.init(self.params().select(active))

    def params(self, look: bool = True) -> EagerTensors:
        """The weights as links see them: those of the model, or what this rank has of them."""
        if self.shares is None:
            return self.gradients.params(look)
        if look:
            self.target.parameters()
        return self.shares.weights()

    def follow_clocks(self) -> None:
        """Keep just the clocks that some schedule reads, and "step" and "micro"; a new one starts at 0."""
        read = [*dict.fromkeys(("step", "micro", *sorted(self.hypers.clocks())))]
        self.clocks = {name: self.clocks.get(name, 0) for name in read}

    def observe(self, name: str, value: Any) -> None:
        """Put a number where links see it, once."""
        number = observable(name, value)
        count, latest = self.news.get(name, (0, []))
        news = (count + 1, [*latest, number])
        self.observations.tell_of_misspelling(name, self.observed)
        if not self.observations.ticks_at(name):
            self.observed[name], self.news[name] = number, news
            return
        self.journal.alone("observe")  # an update at work has the state and the clocks as they were
        held, sight = dict(states(self.chain, self.state)), partial(self.hypers.sight, step=self.facts())
        new, ticked = self.observations.looked(name, number, held, sight)
        state = rebuilt(self.chain, self.state, new)
        clocks = {clock: time + ticked.count(clock) for clock, time in self.clocks.items()}

        def follow() -> None:
            self.state, self.clocks = state, clocks
            self.observed[name], self.news[name] = number, news

        self.journal.guard(self.journal.write, Pending(Commit(), follow))

    def facts(
        self,
        params: EagerTensors | None = None,
        *,
        scaled: bool = False,
        summed: bool = False,
        flushing: bool = False,
        weight: float | None = None,
        evaluate: Callable[[Tensors, str], tuple[Any, Tensors]] | None = None,
        micro: MicroBatch | None = None,
    ) -> Step:
        """The facts of the coming update: what is known here, and what only its caller knows."""
        micro = self.micro if micro is None else micro
        return Step(
            self.params if params is None else params,
            self.clocks,
            micro.loss,
            evaluate,
            self.target.buffers,
            self.observed,
            self.news,
            self.hypers.overrides,
            self.autocast,
            scaled,
            summed,
            micro.last,
            flushing,
            weight,
            partial(over_ranks, self.target) if self.target.distributed else None,
            None
            if weight is None or not self.target.distributed
            else partial(self.micro.mean_weight, weight, self.target),
        )

    def now(self) -> Context:
        """The context of a look at the chain, without a micro-batch."""
        return Context.of(self.facts())

    def gated(self) -> bool:
        """Whether a link will stop a non-finite gradient."""
        if not self._gates:
            return False
        ctx = self.now()
        return any(link.active(ctx) for link in self._gates)

    def scaled(self, loss: Tensor, weight: float | None, until: str | None = None) -> Any:
        """The loss through the scaling of the links, or of those in front of `until`, whatever the gradient mode is."""
        if not self._scales_loss:
            return loss
        if not self._multiplies_loss:
            ctx = Context.of(self.facts(weight=weight))
            with nullcontext() if torch.is_grad_enabled() else torch.enable_grad():
                return self.chain.scale_loss(loss, self.state, ctx, until)
        factor = self._loss_factor(weight, until)
        if type(factor) is float and factor == 1.0:  # no link is active: the graph stays as it is
            return loss
        if torch.is_grad_enabled():
            return loss * factor
        with torch.enable_grad():
            return loss * factor

    def _loss_factor(self, weight: float | None, until: str | None) -> Any:
        """The product of what the links multiply a loss by. In an open window it is asked for once, where it holds."""
        alike = self._factor_holds and weight is None and until is None and not self.hypers.overrides
        of, factor = self._factor
        if alike and of() is self.state:
            return factor
        try:
            factor = self.chain.scale_loss(1.0, self.state, self._sight.turned(self.facts(weight=weight)), until)
        finally:
            self._sight.turned(_NO_FACTS)  # those hold this object, which is to be freed without the collector
        held = alike and self.window.micro(self.state) > 0
        self._factor = (weakref.ref(self.state), factor) if held else _NO_FACTOR
        return factor

    def make_room(self, weight: float | None) -> None:
        """Make the open window in `.grad` have room for a micro-batch of this weight."""
        if self.window.name is None or weight is None:
            return  # without weights all micro-batches count alike
        self.state = self.window.with_room(self.state, Context.of(self.facts(weight=weight)))

    def withholds(self, last: bool = False) -> bool:
        """Whether ranks need not agree on the coming micro-batch."""
        if not self.target.distributed:
            return False
        return not self.window.closes(self.state, self.now, self.micro.last or last)

    def only_adds(self, received: Tensors, last: bool) -> bool:
        """Whether all that is left to this micro-batch is to be counted: its gradients are in the window, or are it.

        Then the first link holds the chain, and nothing is asked of weights or kernels.
        """
        whole = received.index is self.active and not self.target.distributed
        return whole and self.window.only_adds(self.state, self.now, self.micro.last or last) and not _torch.casting()

    def drop_window(self) -> None:
        """Forget the gradients and the open window. Weights, state and clocks stay. It may be done again."""
        self.drop_gradients()
        dropped = self.chain.drop_window(self.state)
        assert isinstance(dropped, Links)
        self.state = dropped

    def drop_gradients(self) -> None:
        """Forget the gradients, and the micro-batch that they are of. It may be done again."""
        try:
            self.gradients.clear()
        except RuntimeError:  # what the model has become is for the next update to say
            self.gradients.clear(look=False)
        self.window.forget()
        self.micro = MicroBatch()

    # one run of the chain

    def run(
        self,
        received: Tensors,
        step: Step,
        lent: bool,
        *,
        keep_grads: bool = False,
        only_adds: bool = False,
        waiting: MicroBatch | None = None,
    ) -> UpdateInfo:
        """The links, left to right, and what they decided: applied or held. All or nothing.

        Args:
            received: the gradients.
            step: the facts of this update, with the weights as they lie in the model.
            lent: whether the gradients stay the user's.
            keep_grads: whether what is in `.grad` stays there.
            only_adds: what the method of that name says.
            waiting: the micro-batch that comes next, where this was not its predecessor's end.
        """
        if self.observations.awaited and self.clocks["step"] >= PATIENCE:
            self.observations.tell_of_silence(self.observed, self.clocks)
        journal = self.journal
        journal.open = journal.busy = True
        active, before = self.activated(received)
        if only_adds:
            outcome = self._added(received, step)
        else:
            outcome = self.computed(received, before, step, self.engine, lent)
        info = self.info(outcome, step)
        journal.write(Pending(outcome.commit, self._following(outcome, info, step, active, keep_grads, waiting)))
        return info

    def _following(
        self,
        outcome: Outcome,
        info: UpdateInfo,
        step: Step,
        active: Index,
        keep_grads: bool,
        waiting: MicroBatch | None,
    ) -> Callable[[], None]:
        """What makes it so that an update was written, as often as it is called: numbers are those after it."""
        clocks, news, skipped, window = {**self.clocks}, self.news, self.num_skipped, self.window
        applied, parked = info.applied, info.reason == "window"
        if applied:
            clocks["step"] += 1
            news = {name: (count, []) for name, (count, _) in news.items()} if news else news
        elif info.reason not in ("window", "empty"):
            skipped += 1
        clocks["micro"] += not step.flushing
        micro, unsynchronised = waiting, window.unsynchronised
        if micro is None:
            unsynchronised = parked and (unsynchronised or (self.micro.unsynchronised and window.name is not None))
            micro = MicroBatch()

        def follow() -> None:
            self.state, self.active = outcome.state, active
            self.records.update(outcome.notes.records)
            self.clocks, self.news, self.num_skipped, self.micro = clocks, news, skipped, micro
            if applied and self.lent_averages:
                self._tell_of_new_averages()
            window.unsynchronised = unsynchronised
            if parked or not keep_grads:
                self.gradients.clear(look=step.flushing)
            if parked:
                window.park()

        return follow

    @property
    def stands_alone(self) -> bool:
        """Whether each micro-batch is an update of this process alone: no link keeps a window, no rank has a share."""
        return not self._windows and not self.target.distributed

    def passed_over(self, step: Step, keep_grads: bool) -> UpdateInfo:
        """What a micro-batch of weight 0 comes to that stands alone: nothing is applied."""
        self.journal.open = self.journal.busy = True
        notes = Notes(step)
        notes.held, notes.detail = ("", "empty"), "the micro-batch has weight 0"
        outcome = Outcome(False, self.state, notes, Commit())
        info = self.info(outcome, step)
        self.journal.write(Pending(Commit(), self._following(outcome, info, step, self.active, keep_grads, None)))
        return info

    def _tell_of_new_averages(self) -> None:
        """A kernel writes averages where they lie; autograd must know, for a graph of the user's may hold them."""
        for address, state in states(self.chain, self.state):
            if address in self.lent_averages and isinstance(state, AverageState):
                torch.autograd.graph.increment_version([*state.average.values()])

    def _added(self, received: Tensors, step: Step) -> Outcome:
        """What a micro-batch comes to that is in the open window already."""
        notes, commit = Notes(step), Commit()
        with _torch.no_grad():
            new = self.window.added(received, self.state, Context.of(step, notes))
        if self._factor[0]() is self.state:
            self._factor = weakref.ref(new), self._factor[1]  # what scales a loss is as it was
        commit.after(partial(self.engine.count_only, self.state, new))
        return Outcome(False, new, notes, commit)

    def computed(self, received: Tensors, state: Links, step: Step, engine: Engine, lent: bool) -> Outcome:
        """What the update comes to, nothing of it written yet: by the engine, or by the reference where it cannot.

        Autocast is for the forward. It is off for the arithmetic of links, and as it was where one evaluates the loss.
        """
        casting = _torch.casting()
        if not casting:
            outcome = self._computed(received, state, step, engine, lent)
        else:
            if step.evaluate is not None:
                step = step._replace(evaluate=_torch.recast(casting, True)(step.evaluate))
            with _torch.recast(casting, False):
                outcome = self._computed(received, state, step, engine, lent)
            outcome.commit.after(_torch.forget_casts)
        outcome.notes.check_buffers()
        if outcome.notes.buffers is not None:
            write = buffers.written(self.chain, self.target, outcome.notes.buffers)
            if outcome.applied:
                outcome.commit.add(write)
        return outcome

    def _computed(self, received: Tensors, state: Links, step: Step, engine: Engine, lent: bool) -> Outcome:
        with _torch.no_grad():
            assert isinstance(step.params, EagerTensors)
            if self._unreduced:
                check_received(received, self._unreduced)
            if self.shares is not None:
                return zero.computed(self, received, state, step, engine, lent)
            if type(received) is RowGradients or (step.flushing and sparse.is_open(state)):
                return sparse.computed(self, received, state, step, engine, lent)
            done = engine.step(self.chain, step, received, state, step.params, lent)
            if done is not None:
                if self.target.sharded and done.applied:
                    done.commit.after(self.target.reshard)
                # under DDP a gradient may lie in a bucket, which the next reduction overwrites
                shared = lent or self.target.replicated
                return done._replace(state=self.owning(done.state, state, received, lent)) if shared else done
            notes, commit = Notes(step), Commit()
            out, new = self.chain.update(received, state, Context.of(step, notes))
            assert isinstance(new, Links)
            if isinstance(out, Weights) and out.write is not None:
                self._write_in_place(commit, out)
            elif out is not None:
                self.gradients.write(commit, out)
            return Outcome(out is not None, self.owning(new, state, received, lent), notes, commit)

    def _write_in_place(self, commit: Commit, out: Weights) -> None:
        """Have a commit let a link write the weights. What comes after it has looked at them already, by the reference.

        RuntimeError where something does.
        """
        assert out.write is not None and isinstance(out.tensors, EagerTensors)
        last, link = self.chain.named[-1]
        if not link.in_place:
            raise RuntimeError(
                f"update: {last} behind a link with in_place=True is computed after that has written, which only "
                f"kernels can, and none can here: {self.engine.reason}. Leave in_place out, or {last}."
            )
        commit.once(out.write(None))
        commit.after(partial(_torch.increment_version, out.tensors._data))
        commit.after(_torch.forget_casts)

    def activated(self, received: Tensors) -> tuple[Index, Links]:
        """The active parameters and the state, with state for those whose first gradient this is."""
        new = [] if received.index is self.active else [name for name in received if name not in self.active]
        if not new:
            return self.active, self.state
        active = self.target.index.subset([*self.active.names, *new])
        return active, merged(self.state, self._fresh_state_of(active))

    def owning(self, state: Links, before: Links, received: Tensors, users: bool) -> Links:
        """`state`, sharing no memory with the weights, nor with gradients that stay the user's.

        What it keeps in the tensors in which the state before had it is its own already.
        """
        if same_memory(state, before, whole=True):
            return state
        lent = {id(p) for p in self.target.parameters()}
        if self.shares is not None:
            lent |= {id(p) for p in self.shares.weights().values()}
        # a gradient that is a view lies in a bucket of DDP's, which the next reduction overwrites
        lent |= {id(t._base) for t in received.values() if t._base is not None}
        if users:
            lent |= {id(t) for t in received.values()}
        changes = {}
        own_already = {id(v) for _, inner in states(self.chain, before) for _, v in inner.items()}
        for address, inner in states(self.chain, state):
            held = {n: v for n, v in inner.items() if isinstance(v, Tensors) and len(v) and id(v) not in own_already}
            own = {n: owned(v, lent) for n, v in held.items()}
            if any(own[n] is not v for n, v in held.items()):
                changes[address] = inner.replace(**own)
        return rebuilt(self.chain, state, changes) if changes else state

    def info(self, outcome: Outcome, step: Step) -> UpdateInfo:
        """What the user is told of an update. Its clocks are those before it."""
        notes = outcome.notes
        reason = "applied" if outcome.applied else (notes.held[1] if notes.held else "held")
        clocks, overrides, hypers, used = dict(self.clocks), dict(self.hypers.overrides), self.hypers, notes.used
        return UpdateInfo(
            reason,
            int(clocks["step"]),
            step.loss,
            notes.records,
            lambda: {**hypers.values_under(clocks, overrides), **{name: shown(v) for name, v in used.items()}},
            notes.detail,
        )

    def parameters(self) -> dict[str, Tensor]:
        """Name → parameter, as the model has it now."""
        return dict(zip(self.target.index.names, self.target.parameters(), strict=True))
