"""Names that load on first use are what they are to both checkers: by the front door, by a star, among the rules."""

from __future__ import annotations

from typing_extensions import assert_type

import gradchain as gch
from gradchain import *  # noqa: F403

assert_type(gch.adamw(1e-3), gch.chain)
assert_type(adamw(1e-3), gch.chain)  # noqa: F405
assert_type(gch.rules.adamw(1e-3), gch.chain)
assert_type(gch.rmsprop(gch.cosine(0.1, 0.0, 100), momentum=0.9, maximize=True), gch.chain)
assert_type(gch.rules.scale_by_sign(), gch.scale_by_sign)
assert_type(gch.rules.from_torch("AdamW"), gch.from_torch)
assert_type(gch.from_torch("AdamW", in_place=True, lr=0.1).in_place, bool)
gch.from_torch("AdamW", in_place="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
assert_type(scale(0.1), gch.scale)  # noqa: F405
assert_type(masked(gch.scale(0.1), gch.bias), gch.masked)  # noqa: F405

print(gch.nonsense)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
print(gch.rules.nonsense)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
