"""By the module that holds the parameter: `owner`, and `owner_named` where its class is not at hand."""

from fnmatch import fnmatchcase
from typing import Any, final

import torch

from gradchain.selectors.base import Selector
from gradchain.selectors.source import code


@final
class owner(Selector):
    """Selects the parameters that a module of one of the types holds directly, subclasses included.

    Directly: the weights inside an `nn.TransformerEncoderLayer` belong to its `Linear` and `LayerNorm` modules. For all
    that is below a module, select by name: `named("encoder.*")`. A weight that two modules share has one owner, the
    first.

    Args:
        module_types: classes of modules, at least one.

    Raises:
        TypeError: something else than a class.
        ValueError: no class; or, when asked, no owner is known, since only tensors were given.

    >>> import gradchain as gch
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    >>> facts = [(name, p, model.get_submodule(name.rpartition(".")[0])) for name, p in model.named_parameters()]
    >>> gch.selectors.resolve(gch.owner(torch.nn.LayerNorm), facts)
    ('1.weight', '1.bias')
    """

    module_types: tuple[type, ...]

    def __init__(self, *module_types: type) -> None:
        if not module_types:
            raise ValueError("owner: needs at least one class of modules, got none. Write owner(torch.nn.LayerNorm).")
        for module_type in module_types:
            _check_type(module_type)
        object.__setattr__(self, "module_types", module_types)

    def __call__(self, name: str, parameter: torch.Tensor, owner: torch.nn.Module | None) -> bool:
        return isinstance(require_owner(owner, self), self.module_types)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.module_types, {}


@final
class owner_named(Selector):
    """Selects the parameters that a module holds directly whose class, or a parent class of it, has such a name.

    For classes of libraries that need not be installed; where the class is at hand, `owner(…)` sees misspellings.

    Args:
        patterns: globs over the bare name of the class, such as "*DeformConv2d", at least one.

    Raises:
        TypeError: a pattern is no string.
        ValueError: no pattern, or an empty one; or, when asked, no owner is known.

    >>> import gradchain as gch
    >>> import torch
    >>> layer_norm = torch.nn.LayerNorm(2)
    >>> gch.owner_named("Layer*")("1.weight", layer_norm.weight, layer_norm)
    True
    """

    patterns: tuple[str, ...]

    def __init__(self, *patterns: str) -> None:
        if not patterns:
            raise ValueError('owner_named: needs at least one pattern, got none. Write owner_named("*Norm").')
        for pattern in patterns:
            if not isinstance(pattern, str):
                raise TypeError(f"owner_named: a pattern must be a string, got {code(pattern)}. A class goes to owner.")
            if not pattern:
                raise ValueError("owner_named: a pattern must not be empty.")
        object.__setattr__(self, "patterns", patterns)

    def __call__(self, name: str, parameter: torch.Tensor, owner: torch.nn.Module | None) -> bool:
        classes = [cls.__name__ for cls in type(require_owner(owner, self)).__mro__]
        return any(fnmatchcase(cls, pattern) for cls in classes for pattern in self.patterns)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.patterns, {}


def require_owner(owner: torch.nn.Module | None, selector: Selector) -> torch.nn.Module:
    """Returns the owner, which must be known.

    Args:
        owner: the module that directly holds the parameter, or None.
        selector: what asks, for the error.

    Raises:
        ValueError: it is None.
    """
    if owner is None:
        raise ValueError(
            f"{selector!r} needs a module; here only a tensor is known, not what holds it. "
            "Give the module itself, or select by name with named(...)."
        )
    return owner


def _check_type(value: object) -> None:
    if isinstance(value, type):
        return
    if isinstance(value, torch.nn.Module):
        got, cure = f"a {type(value).__name__} module", f"Write owner({code(type(value))})."
    elif isinstance(value, (list, tuple)):
        got, cure = f"a {type(value).__name__}", "Write owner(*module_types)."
    elif isinstance(value, str):
        got, cure = code(value), "For names of parameters write named(...)."
    else:
        got, cure = code(value), "Write owner(torch.nn.LayerNorm)."
    raise TypeError(f"owner: takes classes of modules, got {got}. {cure}")
