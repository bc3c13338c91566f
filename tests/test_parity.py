"""Every row equals its peers: 20 steps in float64, compared by displacement."""

import pytest
from cases import CASES, Case
from harness import STEPS, gap, off, trajectory
from peers import Peer

PAIRS = [pytest.param(case, peer, id=f"{case.id}-{peer.name}") for case in CASES for peer in case.peers]


def ours(case: Case, problem):
    """Our trajectory of a row's problem."""
    return trajectory(case.tx, problem, scaled=case.scaled, watch=case.watch)


@pytest.mark.parametrize(("case", "peer"), PAIRS)
def test_row_moves_the_weights_as_its_peer_does(case: Case, peer: Peer):
    """The displacement of every parameter after every one of 20 steps is the peer's, to the stated part of its largest.

    That holds for sign-type rules too: float64 gradients from a seed have no near-ties, so none is left out.
    """
    problem = case.problem()
    theirs = peer.run(problem)
    assert len(theirs) == STEPS
    mine = ours(case, problem)
    assert gap(mine, theirs) <= peer.rtol, f"{off(mine, theirs, peer.rtol):.1%} of the entries differ at the end"


COMPLEX = [
    pytest.param(case, peer, id=f"{case.id}-{peer.name}") for case in CASES for peer in case.peers if peer.complex
]


@pytest.mark.parametrize(("case", "peer"), COMPLEX)
def test_complex_parameters_move_as_torch_moves_them(case: Case, peer: Peer):
    """A complex parameter is to every rule what it is to torch.optim: a pair of reals."""
    real, imaginary = case.problem(), case.problem(1)
    problem = type(real)(
        {n: p + 1j * imaginary.params[n] for n, p in real.params.items()},
        tuple({n: g + 1j * h[n] for n, g in gs.items()} for gs, h in zip(real.grads, imaginary.grads, strict=True)),
        real.lr,
    )
    assert gap(ours(case, problem), peer.run(problem)) <= peer.rtol


def test_a_tolerance_above_1e_12_has_its_reason():
    """Whoever computes in float64 is held to 1e-12; each exception says why."""
    assert [f"{c.id}: {p.name}" for c in CASES for p in c.peers if p.rtol > 1e-12 and not p.why] == []
