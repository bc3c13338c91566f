"""Transform: a frozen value that turns updates into updates. Subclassing it is all that a new link needs."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

from torch import Tensor
from typing_extensions import Self, Unpack, dataclass_transform

from gradchain.core import mistakes
from gradchain.core.context import Context
from gradchain.core.hyper import Hyper, evaluated, varies
from gradchain.core.index import Index
from gradchain.core.says import Role, Said, Says, check_role
from gradchain.core.scalars import Scalars, on_host
from gradchain.core.state import Empty, Links, State, as_stored
from gradchain.core.step import Step
from gradchain.core.tensors import Tensors
from gradchain.core.weights import Weights, in_place_of
from gradchain.schedules import Schedule
from gradchain.selectors import PerParameter, SelectorLike
from gradchain.selectors.source import Written, call, code
from gradchain.words.arguments import Nothing, answering

if TYPE_CHECKING:
    import torch

    from gradchain.updater import Updater

registry: dict[str, type[Transform]] = {}
"""Every link of gradchain's own, by name; what `from_config` knows without being told."""


_roles: set[type] = set()  # Transforms that are no links, but what links may be


@dataclass_transform(frozen_default=True)
class Transform:
    """A link: `init(params) -> state` and `update(updates, state, ctx) -> (updates or None, state)`, both pure.

    Subclassing makes a frozen dataclass: typed fields are hyperparameters, numeric ones are typed `Hyper`. Inside
    `update` they are numbers, or numbers per parameter, whatever schedule or override they were given. `update` may
    return None for the updates to hold the chain, or `Weights` where the link owns the weights. Concrete links are
    final: to tweak one, wrap it.

    What a link says of itself, for the checks at bind. It is a class attribute, `descends = False` in the class body;
    where an argument decides, the method `says` returns what this one says otherwise: `return {"per_parameter":
    self.per == "tensor"}`. Either way it is read as an attribute of the link.
        descends: True if it turns a gradient into a descent step (flips the sign), False if it does not; None (a
            user's link that says nothing) is trusted.
        role: what it is to its neighbours: "clip", "unscale", "scale", "normalise", "decay", "learning_rate",
            "weights" (it owns them), "optimizer" (it does so in the outermost chain), "average", "freeze",
            "gradient" (it puts one evaluated anew in place of what it is given), or "" for none of these. The one that
            no argument decides.
        per_parameter: what becomes of a parameter depends on nothing of the others (apart from held links, which say
            so themselves): `bind(in_backward=True)` needs that of every link.
        holds: the reason it holds the chain for, where it may.
        read_once: hyperparameters that only `init` reads, which an override would not reach.
        calls_back: whether `update` calls a function of the user's, which must then be called at every step.
        multiplies_loss: whether `scale_loss` does nothing but multiply: then those of several links are one product.
        factor_holds: whether that factor is the same for all micro-batches without a weight that are added to an open
            window: it follows from the link's constants and its state.
        uniform: hyperparameters that are one number for all parameters, and take no per-parameter value.
        observes: the names given to `updater.observe` that it waits for.
        in_place: whether it writes the weights where they lie: its `update` returns `Weights` with a `write`.
        applies: the parameters that the rule is for, a selector: `min_ndim(2)` for one of matrices. `init` and
            `update` see these alone; the updates of all others go by unchanged, as around `masked`.
        refuses_rows: why it cannot take a sparse gradient, which is that of the rows it names, and the cure, as "decays
            all rows. Write …"; "" where it can, and sees these rows of gradients, weights and state.

    What else the updater does with a link goes by type: `AtTicks`, `Gate`, `KeepsWindow`, `Freezes` and `Wraps` are
    Transforms to derive from, `WindowState` and `AverageState` States.
    """

    descends: ClassVar[bool | None] = None
    role: ClassVar[Role] = ""
    per_parameter: ClassVar[bool] = False
    holds: ClassVar[str] = ""
    read_once: ClassVar[frozenset[str]] = frozenset()
    calls_back: ClassVar[bool] = False
    multiplies_loss: ClassVar[bool] = False
    factor_holds: ClassVar[bool] = False
    uniform: ClassVar[frozenset[str]] = frozenset()
    observes: ClassVar[frozenset[str]] = frozenset()
    in_place: ClassVar[bool] = False
    applies: ClassVar[SelectorLike | None] = None
    refuses_rows: ClassVar[str] = ""
    hypers: ClassVar[dict[str, Hyper]] = {}

    def __init_subclass__(cls, *, role_only: bool = False) -> None:
        """Make the class a link, or with `role_only` something that links may be, to derive from."""
        super().__init_subclass__()
        if role_only:
            _roles.add(cls)
            return
        above = next((b for b in cls.__mro__[1:] if issubclass(b, Transform) and b not in (Transform, *_roles)), None)
        if above is not None:
            raise TypeError(f"{cls.__name__}: {above.__name__} is final. To tweak a link, wrap it in your own.")
        check_role(cls)
        hints = {**get_type_hints(cls, _names_in_sight(cls), include_extras=True)}
        cls.hypers = {}
        for name in inspect.get_annotations(cls):
            hyper = cls.__dict__.get(name)
            if not isinstance(hyper, Hyper):
                hyper = Hyper.declared(hints[name]) if name not in cls.__dict__ else None
                if hyper is None:
                    continue
                hyper.__set_name__(cls, name)
                setattr(cls, name, hyper)
            cls.hypers[name] = hyper
        dataclass(frozen=True, repr=False, init="__init__" not in cls.__dict__)(cls)
        cls.__setattr__ = mistakes.refuse_set  # type: ignore[method-assign]  # that of a dataclass does not say how
        cls.__init__ = answering(cls.__init__)  # type: ignore[method-assign]  # the dataclass gave each class its own
        if "update" in cls.__dict__:
            cls.update = _resolving(_of_those(cls, "update", _among))  # type: ignore[method-assign]
        if "init" in cls.__dict__:
            cls.init = mistakes.checking_init(_of_those(cls, "init", _for_those))  # type: ignore[method-assign]
        if "says" in cls.__dict__:
            for name in Says.__annotations__:
                setattr(cls, name, Said(name, getattr(cls, name)))
        if cls.__module__.partition(".")[0] == "gradchain":
            registry[cls.__name__] = cls

    # the contract

    def init(self, params: Tensors, /) -> State:
        """The state before the first update. By default: that of the held links, else none."""
        mistakes.check_params(type(self).__name__, params)
        parts = list(self.parts(params.index))
        return Links({n: link.init(params.select(index)) for n, link, index in parts}) if parts else Empty()

    def update(self, updates: Any, state: Any, ctx: Context, /) -> tuple[Tensors | Weights | None, State]:
        """The new updates (None holds the chain) and the new state. Changes none of its arguments."""
        raise NotImplementedError(f"{type(self).__name__}: a link needs update(updates, state, ctx).")

    def scale_loss(self, loss: Any, state: Any, ctx: Context, /) -> Any:
        """The loss as backward should see it. Called in chain order, before backward."""
        return loss

    def drop_window(self, state: Any, /) -> State:
        """The state without its open window of micro-batches. By default: that of the held links."""
        own: State = state
        return own.holding({n: link.drop_window(own.held()[n]) for n, link, _ in self.parts(None)})

    def parts(self, index: Index | None) -> Iterable[tuple[str, Transform, Any]]:
        """The held links: name, link, and which of `index`'s parameters each sees (None where index is None)."""
        return ()

    def check(self) -> None:
        """Check the hyperparameters against each other. Raises ValueError or TypeError in a full sentence."""

    def written(self) -> dict[str, Any]:
        """What a config has of it: arguments that make it again. By default its fields."""
        return {f.name: self.__dict__[f.name] for f in fields(self)}  # type: ignore[arg-type]  # once subclassed

    def told(self, index: Index, /) -> Mapping[str, tuple[Mapping[str, float], Mapping[str, tuple[str, ...]]]]:
        """Numbers that it makes of each parameter itself, for `settings()`: name → those by parameter, and why."""
        return {}

    def says(self) -> Says:
        """What this link says of itself otherwise than its class does: for what an argument decides."""
        return {}

    # what every link has

    def at(self, ctx: Context) -> Self:
        """This link with every schedule and override replaced by the number for this update."""
        changes: dict[str, Any] = {}
        overrides = ctx.overridden()
        if not overrides and not self._varying:
            return self
        for name, hyper in self.hypers.items():
            if name not in self._varying and f"{ctx.address}.{name}" not in overrides:
                continue
            if ctx.recorder is None:
                changes[name] = self.value_of(hyper, ctx)
            else:
                changes[name] = ctx.recorder.number_from(functools.partial(self._value_in, hyper, ctx.under(Step())))
            ctx.use(name, changes[name])
        if not changes:
            return self
        resolved = object.__new__(type(self))
        resolved.__dict__.update(self.__dict__)
        resolved.__dict__.update(changes)
        return resolved

    @functools.cached_property
    def _varying(self) -> frozenset[str]:
        """The hyperparameters that are not mere numbers."""
        return frozenset(name for name in self.hypers if varies(self.__dict__[name]))

    def value_of(self, hyper: Hyper, ctx: Context) -> Any:
        """The number a hyperparameter has under the schedules and overrides of `ctx`, checked."""
        own = self.__dict__[hyper.name]
        overrides = ctx.overridden()
        override = overrides.get(f"{ctx.address}.{hyper.name}") if overrides else None
        source = own if override is None else override.source(own)
        value = evaluated(source, ctx)
        if override is not None:
            value = override.applied(value)
        if isinstance(value, (int, float, Scalars)) and hyper.accepts(value):
            return value
        cause = f" It came from {source!r} at step {ctx.clocks.get('step')}." if varies(source) else ""
        if override is not None and override.factor is not None:
            cause += f" An override multiplies it by {override.factor!r}."
        return hyper.checked(value, ctx.address or type(self).__name__, cause)

    def _value_in(self, hyper: Hyper, sight: Context, step: Step) -> Any:
        """The number a hyperparameter has in an update, at the address of `sight`."""
        own = self.__dict__[hyper.name]
        if isinstance(own, Schedule) and not step.overrides:  # without a context, which is paid at every step
            value = own.at(step.clocks)
            if type(value) is float and hyper.accepts(value):
                return value
        return self.value_of(hyper, sight.turned(step))

    def bind(
        self,
        target: Any,
        *,
        autocast: torch.dtype | None = None,
        in_backward: bool = False,
        zero_redundancy: bool = False,
        **options: Unpack[Nothing],
    ) -> Updater:
        """This chain bound to a model: see `Updater`."""
        from gradchain.updater import Updater  # the one door upwards: a chain is where a user meets the Updater

        return Updater(
            self, target, autocast=autocast, in_backward=in_backward, zero_redundancy=zero_redundancy, **options
        )

    if not TYPE_CHECKING:  # to a checker an attribute that is not here is a mistake

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(_absent(type(self).__name__, name))

    def check_uniform(self, name: str, source: Any) -> None:
        """TypeError for a per-parameter value where there is one number for all parameters."""
        if name in self.uniform and isinstance(source, PerParameter):
            raise TypeError(
                f"{type(self).__name__}: {name} must be one number for all parameters, got {source!r}. partition gives "
                "groups of parameters links of their own."
            )

    def _read_once(self, name: str, source: Any) -> Any:
        """A hyperparameter as `init` reads it: what it holds later does not matter. TypeError where it has a later."""
        if isinstance(source, PerParameter) or callable(source):
            raise TypeError(
                f"{type(self).__name__}: {name} must be a number: it is read before the first update only, got "
                f"{source!r}."
            )
        return on_host(source) if isinstance(source, Tensor) else source

    def __post_init__(self) -> None:
        mistakes.check_numbers(self)
        for name in self.hypers:
            source = self.__dict__[name]
            self.check_uniform(name, source)
            if name in self.read_once:
                self.__dict__[name] = self._read_once(name, source)
        self.check()

    def as_call(self) -> Iterator[tuple[str, Any]]:
        """The arguments of the call that makes this link: by name, or with "" by their place. Defaults are left out."""
        keyword = False
        for f in fields(self):  # type: ignore[arg-type]  # a dataclass once subclassed
            value = self.__dict__[f.name]
            if f.default is not MISSING and type(value) is type(f.default) and value == f.default:
                keyword = True
                continue
            keyword = keyword or f.default is not MISSING
            yield f.name if keyword else "", value

    def __repr__(self) -> str:
        given = [*self.as_call()]
        shown = (f"{name}={as_code(value)}" if name else as_code(value) for name, value in given)
        return call(type(self).__name__, shown, wraps=any(holds_link(value) for _, value in given))

    def __rich_repr__(self) -> Iterator[tuple[str, Any]]:
        for name, value in self.as_call():
            yield name, as_printed(value)

    def _repr_html_(self) -> str:
        from gradchain.core.html import of_link  # where a notebook asks

        return of_link(self)


def holds_link(value: Any) -> bool:
    """Whether an argument of a link is a link, or a tuple with one in it: a name or a selector with its link."""
    return isinstance(value, Transform) or (isinstance(value, tuple) and any(map(holds_link, value)))


def as_code(value: Any) -> str:
    """An argument of a link as code: a tuple with a link in it is a column where it is long, as a link is."""
    if isinstance(value, tuple) and holds_link(value):
        return call("", map(as_code, value), wraps=True)
    return code(value)


def as_printed(value: Any) -> Any:
    """An argument for rich: links, which it opens where they are long, and the code of all else."""
    if isinstance(value, tuple) and holds_link(value):
        return tuple(map(as_printed, value))
    return value if isinstance(value, Transform) else Written(value)


def _names_in_sight(cls: type) -> dict[str, Any]:
    """Where the names in a link's annotations are looked up: its module, and this one's for classes made inside."""
    module = sys.modules.get(cls.__module__)
    return {**globals(), **(vars(module) if module is not None else {})}


def _resolving(update: Callable[..., Any]) -> Callable[..., Any]:
    """`update` as it is called from outside: hyperparameters resolved before it, its state settled after it."""

    @functools.wraps(update)
    def resolved(
        self: Transform, updates: Any = None, state: Any = None, ctx: Context | None = None, **other: Any
    ) -> tuple[Any, State]:
        if ctx is None or other:  # a loss, most often
            raise TypeError(_unbound(type(self).__name__))
        # a link of a user's is asked at every step: what is plainly right is seen by its type alone
        if type(ctx) is not Context or isinstance(updates, dict):
            mistakes.check_called(type(self).__name__, updates, ctx, Context)
        owner = ctx.address or type(self).__name__
        try:
            made = update(self.at(ctx), updates, state, ctx)
        except AttributeError as error:
            raise mistakes.explained(error, state, owner) from error.__cause__
        if type(made) is not tuple or len(made) != 2 or type(made[0]) not in mistakes.UPDATES:
            made = mistakes.checked_result(made, owner)
        out, new = made
        if out is None and self.holds:
            ctx.held(self.holds)
        return out, as_stored(state, new, owner)

    return resolved


def _of_those(cls: type[Transform], name: str, narrowed: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a link as it sees the parameters that its rule applies to: itself where that is all of them."""
    method: Callable[..., Any] = cls.__dict__[name]
    return method if cls.applies is None else narrowed(method, cls.applies)


def _for_those(init: Callable[..., State], selector: Any) -> Callable[..., State]:
    @functools.wraps(init)
    def narrowed(self: Transform, params: Tensors) -> State:
        return init(self, params.select(params.index.members(selector)))

    return narrowed


def _among(update: Callable[..., Any], selector: Any) -> Callable[..., Any]:
    @functools.wraps(update)
    def narrowed(self: Transform, updates: Any, state: Any, ctx: Context) -> tuple[Any, State]:
        members = ctx.members(selector)
        mine = updates.select(members)
        out, new = update(self, mine, state, ctx.narrow(members))
        return (out if out is None else in_place_of(mine, out, updates, ctx)), new

    return narrowed


def _absent(owner: str, name: str) -> str:
    """The sentence for an attribute that a link has not: most often it is the Updater's."""
    if name[:1] == "_":
        return f"{owner!r} object has no attribute {name!r}"
    from gradchain.updater import Updater, foreign

    if name in foreign.NAMES:
        return f"{owner}: has no {name!r}. Bind it, updater = {owner}(…).bind(model); then use {foreign.NAMES[name]}."
    if not hasattr(Updater, name):
        return f"{owner}: has no {name!r}."
    call = "(…)" if callable(getattr(Updater, name)) else ""
    return f"{owner}: has no {name!r} before it is bound. Write updater = {owner}(…).bind(model); updater.{name}{call}."


def _unbound(owner: str) -> str:
    """The sentence for an `update` that was not given what a link's own takes."""
    return (
        f"{owner}: update must be given (updates, state, ctx), a link's own arguments. To train a model bind it: "
        f"updater = {owner}(…).bind(model); updater.update(loss)."
    )


def named_parts(links: Iterable[Transform | tuple[str, Transform]]) -> list[tuple[str, Transform]]:
    """Names for held links: the given one, else the class name, `name#2` for the second of that name."""
    seen: dict[str, int] = {}
    out = []
    for entry in links:
        name, link = entry if isinstance(entry, tuple) else (type(entry).__name__, entry)
        seen[name] = seen.get(name, 0) + 1
        out.append((name if seen[name] == 1 else f"{name}#{seen[name]}", link))
    return out


def walk(link: Transform, index: Any, path: str = "") -> Iterator[tuple[str, Transform, Any]]:
    """Every held link, in chain order, with its address and the parameters it sees. `link` itself is not among them."""
    for name, part, seen in link.parts(index):
        address = f"{path}/{name}" if path else name
        yield address, part, seen
        yield from walk(part, seen, address)
