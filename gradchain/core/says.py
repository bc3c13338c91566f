"""What a link says of itself: the names it may say something under, and how its arguments may decide it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

if TYPE_CHECKING:
    from gradchain.core.transform import Transform

Role = Literal[
    "",
    "clip",
    "unscale",
    "scale",
    "normalise",
    "decay",
    "learning_rate",
    "weights",
    "optimizer",
    "average",
    "freeze",
    "gradient",
]
"""What a link is to its neighbours; see `Transform`."""


class Says(TypedDict, total=False):
    """What `Transform.says` may be about; each is an attribute of `Transform`, described there.

    >>> import gradchain as gch
    >>> gch.clip_by_norm(1.0, per="tensor").says()
    {'per_parameter': True}
    """

    descends: bool | None
    per_parameter: bool
    holds: str
    read_once: frozenset[str]
    calls_back: bool
    uniform: frozenset[str]
    observes: frozenset[str]
    refuses_rows: str


class Said:
    """One of these attributes of a link with a `says` of its own: what that returns, or else what the class has."""

    def __init__(self, name: str, common: Any) -> None:
        self.name, self.common = name, common

    def __get__(self, link: Transform | None, owner: type[Transform]) -> Any:
        if link is None:
            return self.common
        said = link.says()
        unknown = next((name for name in said if name not in Says.__annotations__), None)
        if unknown is not None:
            allowed = ", ".join(Says.__annotations__)
            raise ValueError(f"{owner.__name__}: says must be about {allowed}, got {unknown!r}.")
        return said.get(self.name, self.common)


def check_role(cls: type[Transform]) -> None:
    """ValueError for a role that no check knows."""
    allowed = get_args(Role)
    if not isinstance(cls.role, str) or cls.role not in allowed:
        names = ", ".join(repr(name) for name in allowed if name)
        raise ValueError(
            f"{cls.__name__}: role must be one of {names}, got {cls.role!r}. Leave it out where none is meant."
        )
