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
assert_type(gch.rules.adan(1e-3, weight_decay=0.02), gch.chain)
assert_type(gch.rules.scale_by_adopt(b2=0.999).clip_exponent, float)
assert_type(gch.rules.from_torch("AdamW"), gch.from_torch)
assert_type(gch.from_torch("AdamW", in_place=True, lr=0.1).in_place, bool)
gch.from_torch("AdamW", in_place="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
assert_type(gch.rules.muon(0.02, aux=gch.adamw(3e-4), split=[(gch.named("*.qkv.*"), 3)], head=None), gch.chain)
assert_type(gch.rules.scion(gch.linear(0.1, 0.0, 9), constrained=True, ends=gch.embedding), gch.chain)
assert_type(gch.rules.scale_by_lmo("rows", gch.choose((gch.bias, 1.0), rest=2.0)).norm, str)
assert_type(gch.rules.aggmo(0.1, (0.0, gch.linear(0.5, 0.9, 10)), mask=gch.min_ndim(2)), gch.chain)
assert_type(gch.rules.grokfast_ma(50, warmup=False).window_size, int)
assert_type(gch.chain(gch.trace(0.9), gch.rules.msam(0.1, rho=0.3)), gch.chain)
assert_type(gch.rules.gpa_adamw(1e-3, mu_x=0.9934, state_dtype=None), gch.chain)
assert_type(gch.rules.primal_averaging(1e-3), gch.rules.primal_averaging)
assert_type(gch.rules.schedule_free_adamw(0.01, warmup_steps=100), gch.chain)
assert_type(gch.rules.lookahead(5, 0.5).per_parameter, bool)
assert_type(gch.rules.cautious(gch.scale_by_lion()).inner, gch.Transform)
gch.rules.scion("fast")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
gch.rules.muon(0.02, aux=0.1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
gch.rules.grokfast_ma(window="50")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
assert_type(scale(0.1), gch.scale)  # noqa: F405
assert_type(masked(gch.scale(0.1), gch.bias), gch.masked)  # noqa: F405

print(gch.nonsense)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
print(gch.rules.nonsense)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
