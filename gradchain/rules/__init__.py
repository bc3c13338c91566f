"""Every rule by its name: links, combinators and aliases, those on top and the families that are here only.

    >>> import gradchain as gch
    >>> gch.rules.scale_by_adam is gch.scale_by_adam
    True

The front door has what is used every day. What goes beyond torch.optim's rules has a file in this room, and loads on
first use.
"""

from typing import TYPE_CHECKING

from gradchain._lazy import on_first_use
from gradchain.combinators import *  # noqa: F403  # all of a room, whatever it has: its own list says
from gradchain.combinators import __all__ as _of_combinators
from gradchain.core.chain import chain as chain
from gradchain.optimizers import *  # noqa: F403
from gradchain.optimizers import __all__ as _of_optimizers
from gradchain.transforms import *  # noqa: F403
from gradchain.transforms import __all__ as _of_transforms

if TYPE_CHECKING:
    from gradchain.adapters import from_torch as from_torch
    from gradchain.rules.adafactors import adafactor as adafactor
    from gradchain.rules.adaptive_muon import adamuon as adamuon
    from gradchain.rules.adaptive_muon import normuon as normuon
    from gradchain.rules.adaptive_muon import scale_by_adamuon as scale_by_adamuon
    from gradchain.rules.adaptive_muon import scale_by_normuon as scale_by_normuon
    from gradchain.rules.block_moments import adam_mini as adam_mini
    from gradchain.rules.block_moments import scale_by_adam_mini as scale_by_adam_mini
    from gradchain.rules.block_norms import clip_by_block_rms as clip_by_block_rms
    from gradchain.rules.block_norms import scale_by_param_block_norm as scale_by_param_block_norm
    from gradchain.rules.block_norms import scale_by_param_block_rms as scale_by_param_block_rms
    from gradchain.rules.centred_rows import centralize as centralize
    from gradchain.rules.confident_steps import came as came
    from gradchain.rules.confident_steps import scale_by_came as scale_by_came
    from gradchain.rules.dimension_moments import scale_by_sm3 as scale_by_sm3
    from gradchain.rules.dimension_moments import sm3 as sm3
    from gradchain.rules.eigenbases import scale_by_soap as scale_by_soap
    from gradchain.rules.eigenbases import soap as soap
    from gradchain.rules.orthogonal_steps import muon as muon
    from gradchain.rules.orthogonal_steps import scale_by_muon as scale_by_muon
    from gradchain.rules.radial import adamp as adamp
    from gradchain.rules.radial import drop_radial as drop_radial
    from gradchain.rules.radial import sgdp as sgdp
    from gradchain.rules.relative_steps import fromage as fromage
    from gradchain.rules.relative_steps import shrink_by_learning_rate as shrink_by_learning_rate
    from gradchain.rules.stable_adam import scale_by_stable_adam as scale_by_stable_adam
    from gradchain.rules.stable_adam import stable_adamw as stable_adamw
    from gradchain.rules.tensor_moments import novograd as novograd
    from gradchain.rules.tensor_moments import scale_by_novograd as scale_by_novograd
    from gradchain.rules.trust_ratio import lamb as lamb
    from gradchain.rules.trust_ratio import lars as lars
    from gradchain.rules.trust_ratio import scale_by_trust_ratio as scale_by_trust_ratio
    from gradchain.rules.unit_clip import adaptive_grad_clip as adaptive_grad_clip
    from gradchain.rules.unit_norm import normalize as normalize
    from gradchain.rules.unit_norm import normalize_by_update_norm as normalize_by_update_norm

# Where each of the others lives: those of this room, as "rules.muon".
_HOMES = {
    "adafactor": "rules.adafactors",
    "adam_mini": "rules.block_moments",
    "adamuon": "rules.adaptive_muon",
    "adamp": "rules.radial",
    "adaptive_grad_clip": "rules.unit_clip",
    "came": "rules.confident_steps",
    "centralize": "rules.centred_rows",
    "clip_by_block_rms": "rules.block_norms",
    "drop_radial": "rules.radial",
    "from_torch": "adapters",
    "fromage": "rules.relative_steps",
    "lamb": "rules.trust_ratio",
    "lars": "rules.trust_ratio",
    "muon": "rules.orthogonal_steps",
    "normalize": "rules.unit_norm",
    "normalize_by_update_norm": "rules.unit_norm",
    "normuon": "rules.adaptive_muon",
    "novograd": "rules.tensor_moments",
    "scale_by_adam_mini": "rules.block_moments",
    "scale_by_adamuon": "rules.adaptive_muon",
    "scale_by_came": "rules.confident_steps",
    "scale_by_muon": "rules.orthogonal_steps",
    "scale_by_normuon": "rules.adaptive_muon",
    "scale_by_novograd": "rules.tensor_moments",
    "scale_by_param_block_norm": "rules.block_norms",
    "scale_by_param_block_rms": "rules.block_norms",
    "scale_by_sm3": "rules.dimension_moments",
    "scale_by_soap": "rules.eigenbases",
    "scale_by_stable_adam": "rules.stable_adam",
    "scale_by_trust_ratio": "rules.trust_ratio",
    "sgdp": "rules.radial",
    "shrink_by_learning_rate": "rules.relative_steps",
    "sm3": "rules.dimension_moments",
    "soap": "rules.eigenbases",
    "stable_adamw": "rules.stable_adam",
}

if not TYPE_CHECKING:  # a checker has the imports: any other name is a mistake to it
    __all__ = sorted(["chain", *_HOMES, *_of_combinators, *_of_optimizers, *_of_transforms])
    __getattr__, __dir__ = on_first_use(__name__, _HOMES)
