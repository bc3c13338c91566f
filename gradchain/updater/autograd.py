"""What autograd raises where the training loop is wrong, in a sentence about the loop."""

from __future__ import annotations

_SENTENCES = {
    "backward through the graph a second time": (
        "update: the graph of the loss was freed by a backward before this one. The updater calls backward itself: "
        "leave out loss.backward(), in a closure too. Where a graph is used twice, give the first backward "
        "retain_graph=True."
    ),
    "has been modified by an inplace operation": (
        "update: a tensor that the graph of the loss needs was written over after the forward: weights by an update, "
        "or an activation by an in-place operation. Compute the loss anew after each update."
    ),
}
"""What torch's sentence has in it → ours."""


def raise_explained(error: RuntimeError) -> None:
    """Raise the sentence for an error of autograd, with it as the cause; nothing where it may be anybody's."""
    if type(error) is not RuntimeError:  # a user's class, from a hook or a function of his
        return
    for found, sentence in _SENTENCES.items():
        if found in str(error):
            raise RuntimeError(sentence) from error
