"""What a saved state must be outside of the states of its links, checked before anything changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gradchain.core.domain import Domain
from gradchain.core.readable import as_name, shown

FORMAT = 1
CLOCK = Domain(float, "[0, inf)")
_COUNT = Domain(int, "integer [0, inf)")
_NUMBER = Domain(float)
_WHOLE_CLOCKS = ("step", "micro")
_PLAIN = (str, int, float, bool, type(None))
_FLOAT_BITS = 1024  # those of an integer that a float still holds


def check(saved: Any) -> None:
    """ValueError unless it is made as `state_dict()` makes it, with values that it can have."""
    if not isinstance(saved, Mapping) or not set(saved) >= set(_FIELDS):
        found = sorted(map(as_name, saved))[:6] if isinstance(saved, Mapping) else type(saved).__name__
        raise ValueError(f"load_state_dict: expected what state_dict() gives, found {found}.")
    if type(saved["format"]) is not int or saved["format"] != FORMAT:
        raise ValueError(f"load_state_dict: format must be {FORMAT}, got {shown(saved['format'])}.")
    for name, (kind, check_field) in _FIELDS.items():
        if not isinstance(saved[name], kind):
            raise ValueError(f"load_state_dict: {name} must be a {kind.__name__}, got {type(saved[name]).__name__}.")
        check_field(saved[name])


def unexpected(saved: Mapping[Any, Any]) -> list[str]:
    """The names that no state has."""
    return [f"the field {as_name(name)!r}" for name in saved if name not in _FIELDS and name != "inventory"]


def _refuse(what: str, rule: str, value: Any, where: Any = None) -> None:
    place = "" if where is None else f" for {shown(where)}"
    raise ValueError(f"load_state_dict: {what} must be {rule}, got {shown(value)}{place}.")


def _numbers(what: str, rule: str, domain: Callable[[str], Domain]) -> Callable[[Mapping[Any, Any]], None]:
    """A check of numbers by name."""

    def check_numbers(values: Mapping[Any, Any]) -> None:
        for name, value in values.items():
            if not isinstance(name, str):
                _refuse(what, f"a dict of {rule} by name", name)
            if isinstance(value, _PLAIN) and domain(name).holds(value):
                continue
            _refuse(what, f"a dict of {rule}", value, name)

    return check_numbers


def _news(values: Mapping[Any, Any]) -> None:
    """Name → how often it was observed, and the latest of them."""
    for name, numbers in values.items():
        plain = isinstance(numbers, list) and all(isinstance(n, _PLAIN) and _NUMBER.holds(n) for n in numbers)
        if not isinstance(name, str) or not plain or not numbers:
            _refuse("news", "lists of numbers by name", numbers, name)
        count, *latest = numbers
        if not _COUNT.holds(count) or count < len(latest):
            _refuse("news", f"a count of at least {len(latest)}, and as many numbers at most", numbers, name)


def _names(values: list[Any]) -> None:
    for name in values:
        if not isinstance(name, str):
            _refuse("inactive", "a list of names", name)


def _fingerprints(values: Mapping[Any, Any]) -> None:
    for name, value in values.items():
        if not isinstance(name, str) or type(value) is not int:
            _refuse("fingerprint", "a dict of integers by name", value, name)


def _overrides(values: Mapping[Any, Any]) -> None:
    for address, data in values.items():
        if not isinstance(address, str) or not isinstance(data, Mapping) or set(data) != {"value", "factor"}:
            _refuse("overrides", "a value and a factor by address", data, address)
        if (data["value"] is None) == (data["factor"] is None) or not _is_config(data):
            _refuse("overrides", "either a value or a factor, as data", dict(data), address)


def _is_config(value: Any) -> bool:
    """Whether it is made as `to_config` makes it."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_config(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_config, value))
    return isinstance(value, _PLAIN) and not (isinstance(value, int) and value.bit_length() > _FLOAT_BITS)


def _config(value: Mapping[Any, Any]) -> None:
    if not _is_config(value) or "link" not in value:
        _refuse("chain", "what to_config gives", dict(value))


def _skipped(value: int) -> None:
    if not _COUNT.holds(value):
        _refuse("num_skipped", _COUNT.rule, value)


def _anything(value: object) -> None:
    """What is checked elsewhere."""


_FIELDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "format": (int, _anything),
    "chain": (dict, _config),
    "clocks": (
        dict,
        _numbers(
            "clocks",
            "finite numbers of at least 0, whole ones for 'step' and 'micro'",
            lambda name: _COUNT if name in _WHOLE_CLOCKS else CLOCK,
        ),
    ),
    "links": (dict, _anything),
    "overrides": (dict, _overrides),
    "observed": (dict, _numbers("observed", "numbers", lambda name: _NUMBER)),
    "news": (dict, _news),
    "num_skipped": (int, _skipped),
    "inactive": (list, _names),
    "fingerprint": (dict, _fingerprints),
}
