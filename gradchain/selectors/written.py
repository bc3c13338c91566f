"""Frozen values that are printed as the code that makes them: what rules and depths are made of."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from typing_extensions import dataclass_transform

from gradchain.selectors.source import code
from gradchain.words.arguments import answering


@dataclass_transform(frozen_default=True)
@dataclass(frozen=True, repr=False)
class Written:
    """A frozen value: its typed fields are its arguments; repr, equality, hash, pickling and a config come free."""

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, repr=False)(cls)
        cls.__init__ = answering(cls.__init__)  # type: ignore[method-assign]  # the dataclass gave each class its own
        made = cls.__hash__

        def cached_hash(self: Any) -> int:
            # asked at every step, of what may be a thousand rules
            if "_hash" not in self.__dict__:
                self.__dict__["_hash"] = made(self)
            return self.__dict__["_hash"]  # type: ignore[no-any-return]

        cls.__hash__ = cached_hash  # type: ignore[method-assign]

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns `(args, kwargs)` with `type(self)(*args, **kwargs) == self`: for the repr, and for a config."""
        return (), {field.name: getattr(self, field.name) for field in fields(self)}

    def __repr__(self) -> str:
        args, kwargs = self.arguments()
        written = [code(value) for value in args] + [f"{key}={code(value)}" for key, value in kwargs.items()]
        return f"{type(self).__name__}({', '.join(written)})"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_hash"}  # another process has others
