"""What a mean that starts at zero lacks of its weights."""

from __future__ import annotations

import sys

from gradchain.core.scalars import Count, Scalar, maximum

LEAST = sys.float_info.min
"""Divides in place of 0, where nothing is made of what comes of it and it must not raise."""


def correction(b: Scalar, count: Count) -> Scalar:
    """The sum of the weights in a mean of which `b` stays, 1 - b^t: what divides it to correct for its start."""
    return maximum(1 - b**count, LEAST)
