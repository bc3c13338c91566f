"""How commands read their options: one sentence for a bad one, and numbers with bounds."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

__all__ = ["Parser", "whole", "wholes", "words"]


class Parser(argparse.ArgumentParser):
    """Answers a bad option with one sentence."""

    def error(self, message: str) -> NoReturn:
        """Print it and leave with exit code 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def whole(least: int, most: int = 2**31 - 1) -> type[int]:
    """What reads an option that is a whole number within bounds."""

    def read(text: str) -> int:
        number = int(text) if text.strip().lstrip("-").isdecimal() else None
        if number is None or not least <= number <= most:
            high = number is not None and number > most
            bounds = f"from {least} to {most}" if most < 2**31 - 1 or high else f"of at least {least}"
            raise argparse.ArgumentTypeError(f"must be a whole number {bounds}, got {text!r}.")
        return number

    return read  # type: ignore[return-value]  # argparse takes any function


def wholes(least: int) -> type[int]:
    """What reads an option that is whole numbers with commas between them."""
    one: Any = whole(least)

    def read(text: str) -> list[int]:
        return [one(part) for part in text.split(",")]

    return read  # type: ignore[return-value]  # argparse takes any function


def words(text: str) -> list[str]:
    """Reads an option that is names with commas between them."""
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"must be names with commas between them, got {text!r}.")
    return found
