"""What recording, planning and executors all know: the operations, the dtypes, and why a chain cannot run."""

from __future__ import annotations

import torch

BOOLEAN = frozenset({"lt", "le", "gt", "ge", "eq", "and", "or", "not", "isfinite", "isnan"})
"""Operations whose elements are true or false."""

TYPES = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16"}
"""The dtypes that kernels read and write, and what a printed program calls them."""


class Unrecorded(Exception):  # noqa: N818  # not an error: it says that this step runs by the reference
    """A link did what no tape can hold; the sentence says what."""
