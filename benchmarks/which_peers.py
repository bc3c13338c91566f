"""What a row of `which.py` is: a rule's code, its peers as they are and at pinned arguments, and what differs."""

from __future__ import annotations

from dataclasses import dataclass

EVERY = ("matrix", "tall", "filters", "bias")
MATRICES = ("matrix", "tall")


@dataclass(frozen=True)
class Peer:
    """Another implementation.

    Attributes:
        code: it, at its defaults.
        pinned: it, at the arguments that make it the same rule; empty where it needs none.
        ours: gradchain's at the arguments that make it the same rule; empty where that is the rule at its defaults.
        why: what differs, at defaults and at pinned arguments.
    """

    code: str
    pinned: str = ""
    ours: str = ""
    why: str = ""


@dataclass(frozen=True)
class Rule:
    """A name of `gch.rules`, and who else has it.

    Attributes:
        name: of the rule.
        code: it, at its defaults; "" where it is not run.
        peers: who else has it.
        on: the shapes for which it is run.
        note: where there is no peer, who says what it should do.
    """

    name: str
    code: str = ""
    peers: tuple[Peer, ...] = ()
    on: tuple[str, ...] = EVERY
    note: str = "a twin from the paper, in the tests"


def rule(name: str, code: str, *peers: Peer, on: tuple[str, ...] = EVERY) -> Rule:
    """A rule that is run."""
    return Rule(name, code, peers, on)


def alone(note: str, *names: str) -> tuple[Rule, ...]:
    """Names without a peer that could be run beside them."""
    return tuple(Rule(name, note=note) for name in names)


def linked(name: str, ours: str, *codes: str, why: str = "") -> Rule:
    """A link of which Optax has the same under a name."""
    return rule(name, ours, *(Peer(code, why=why) for code in codes))


DECAY = "its decay is {} where ours is {}"
EPS_IN_ROOT = "eps is inside the root by default"
CORRECTED_EPS = "its eps is divided by the correction of the mean square"
BFLOAT16 = "both compute in bfloat16, whose rounding depends on the order of sums"
FLOAT32 = "it computes in float32"
FLOAT32_BASES = "its eigenvectors are found in float32; many of the tall matrix are of 0, where any will do"
