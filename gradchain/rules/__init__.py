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
    from gradchain.rules.adaptive_sharpness import asam as asam
    from gradchain.rules.additive_square import scale_by_yogi as scale_by_yogi
    from gradchain.rules.additive_square import yogi as yogi
    from gradchain.rules.agreement import cautious as cautious
    from gradchain.rules.asynchronous import acprop as acprop
    from gradchain.rules.asynchronous import scale_by_acprop as scale_by_acprop
    from gradchain.rules.atan2 import adam_atan2 as adam_atan2
    from gradchain.rules.atan2 import scale_by_adam_atan2 as scale_by_adam_atan2
    from gradchain.rules.belief import adabelief as adabelief
    from gradchain.rules.belief import scale_by_belief as scale_by_belief
    from gradchain.rules.between_points import schedule_free as schedule_free
    from gradchain.rules.between_points import schedule_free_adamw as schedule_free_adamw
    from gradchain.rules.between_points import schedule_free_radam as schedule_free_radam
    from gradchain.rules.between_points import schedule_free_sgd as schedule_free_sgd
    from gradchain.rules.block_moments import adam_mini as adam_mini
    from gradchain.rules.block_moments import scale_by_adam_mini as scale_by_adam_mini
    from gradchain.rules.block_norms import clip_by_block_rms as clip_by_block_rms
    from gradchain.rules.block_norms import scale_by_param_block_norm as scale_by_param_block_norm
    from gradchain.rules.block_norms import scale_by_param_block_rms as scale_by_param_block_rms
    from gradchain.rules.centred_rows import centralize as centralize
    from gradchain.rules.coin_betting import cocob as cocob
    from gradchain.rules.coin_betting import scale_by_cocob as scale_by_cocob
    from gradchain.rules.confident_steps import came as came
    from gradchain.rules.confident_steps import scale_by_came as scale_by_came
    from gradchain.rules.dimension_moments import scale_by_sm3 as scale_by_sm3
    from gradchain.rules.dimension_moments import sm3 as sm3
    from gradchain.rules.dual_averaging import madgrad as madgrad
    from gradchain.rules.dual_averaging import scale_by_madgrad as scale_by_madgrad
    from gradchain.rules.eigenbases import scale_by_soap as scale_by_soap
    from gradchain.rules.eigenbases import soap as soap
    from gradchain.rules.fixed_norm import hyperball as hyperball
    from gradchain.rules.gradient_difference import adan as adan
    from gradchain.rules.gradient_difference import scale_by_adan as scale_by_adan
    from gradchain.rules.logit_clip import qk_clip as qk_clip
    from gradchain.rules.looks import monitor as monitor
    from gradchain.rules.looks import snapshot as snapshot
    from gradchain.rules.many_momenta import aggmo as aggmo
    from gradchain.rules.many_momenta import scale_by_aggmo as scale_by_aggmo
    from gradchain.rules.mars import correct_gradient as correct_gradient
    from gradchain.rules.momentum_sharpness import msam as msam
    from gradchain.rules.moving_average import ema as ema
    from gradchain.rules.noisy import noisy_sgd as noisy_sgd
    from gradchain.rules.norm_balls import scale_by_lmo as scale_by_lmo
    from gradchain.rules.norm_balls import scion as scion
    from gradchain.rules.normalised_first import laprop as laprop
    from gradchain.rules.normalised_first import scale_by_laprop as scale_by_laprop
    from gradchain.rules.optimistic import optimistic_adam as optimistic_adam
    from gradchain.rules.optimistic import optimistic_gradient_descent as optimistic_gradient_descent
    from gradchain.rules.optimistic import scale_by_optimistic_gradient as scale_by_optimistic_gradient
    from gradchain.rules.orthogonal_steps import muon as muon
    from gradchain.rules.orthogonal_steps import scale_by_muon as scale_by_muon
    from gradchain.rules.orthogonalize import orthogonalize_gradient as orthogonalize_gradient
    from gradchain.rules.past_square import adopt as adopt
    from gradchain.rules.past_square import scale_by_adopt as scale_by_adopt
    from gradchain.rules.primal_averages import gpa_adamw as gpa_adamw
    from gradchain.rules.primal_averages import primal_averaging as primal_averaging
    from gradchain.rules.projections import projection_box as projection_box
    from gradchain.rules.projections import projection_halfspace as projection_halfspace
    from gradchain.rules.projections import projection_hypercube as projection_hypercube
    from gradchain.rules.projections import projection_hyperplane as projection_hyperplane
    from gradchain.rules.projections import projection_l1_ball as projection_l1_ball
    from gradchain.rules.projections import projection_l1_sphere as projection_l1_sphere
    from gradchain.rules.projections import projection_l2_ball as projection_l2_ball
    from gradchain.rules.projections import projection_l2_sphere as projection_l2_sphere
    from gradchain.rules.projections import projection_linf_ball as projection_linf_ball
    from gradchain.rules.projections import projection_non_negative as projection_non_negative
    from gradchain.rules.projections import projection_simplex as projection_simplex
    from gradchain.rules.projections import projection_vector as projection_vector
    from gradchain.rules.proximal import step_proximally as step_proximally
    from gradchain.rules.qhm import scale_by_qhm as scale_by_qhm
    from gradchain.rules.radial import adamp as adamp
    from gradchain.rules.radial import drop_radial as drop_radial
    from gradchain.rules.radial import sgdp as sgdp
    from gradchain.rules.relative_steps import fromage as fromage
    from gradchain.rules.relative_steps import shrink_by_learning_rate as shrink_by_learning_rate
    from gradchain.rules.signs import sign_sgd as sign_sgd
    from gradchain.rules.signs import signum as signum
    from gradchain.rules.signs import tiger as tiger
    from gradchain.rules.slow_gradients import grokfast as grokfast
    from gradchain.rules.slow_gradients import grokfast_ma as grokfast_ma
    from gradchain.rules.slow_weights import lookahead as lookahead
    from gradchain.rules.spikes import skip_large_updates as skip_large_updates
    from gradchain.rules.spikes import skip_spikes as skip_spikes
    from gradchain.rules.stable_adam import scale_by_stable_adam as scale_by_stable_adam
    from gradchain.rules.stable_adam import stable_adamw as stable_adamw
    from gradchain.rules.tensor_moments import novograd as novograd
    from gradchain.rules.tensor_moments import scale_by_novograd as scale_by_novograd
    from gradchain.rules.trust_ratio import lamb as lamb
    from gradchain.rules.trust_ratio import lars as lars
    from gradchain.rules.trust_ratio import scale_by_trust_ratio as scale_by_trust_ratio
    from gradchain.rules.two_means import ademamix as ademamix
    from gradchain.rules.two_means import scale_by_ademamix as scale_by_ademamix
    from gradchain.rules.two_means import scale_by_simplified_ademamix as scale_by_simplified_ademamix
    from gradchain.rules.two_means import simplified_ademamix as simplified_ademamix
    from gradchain.rules.unit_clip import adaptive_grad_clip as adaptive_grad_clip
    from gradchain.rules.unit_norm import normalize as normalize
    from gradchain.rules.unit_norm import normalize_by_update_norm as normalize_by_update_norm
    from gradchain.rules.usual_norms import clip_by_ema_norm as clip_by_ema_norm
    from gradchain.rules.usual_norms import clip_by_zscore as clip_by_zscore

# Where each of the others lives: those of this room, as "rules.muon".
_HOMES = {
    "acprop": "rules.asynchronous",
    "adabelief": "rules.belief",
    "adafactor": "rules.adafactors",
    "adam_atan2": "rules.atan2",
    "adam_mini": "rules.block_moments",
    "adamp": "rules.radial",
    "adamuon": "rules.adaptive_muon",
    "adan": "rules.gradient_difference",
    "adaptive_grad_clip": "rules.unit_clip",
    "ademamix": "rules.two_means",
    "adopt": "rules.past_square",
    "aggmo": "rules.many_momenta",
    "asam": "rules.adaptive_sharpness",
    "came": "rules.confident_steps",
    "cautious": "rules.agreement",
    "centralize": "rules.centred_rows",
    "clip_by_block_rms": "rules.block_norms",
    "clip_by_ema_norm": "rules.usual_norms",
    "clip_by_zscore": "rules.usual_norms",
    "cocob": "rules.coin_betting",
    "correct_gradient": "rules.mars",
    "drop_radial": "rules.radial",
    "ema": "rules.moving_average",
    "from_torch": "adapters",
    "fromage": "rules.relative_steps",
    "gpa_adamw": "rules.primal_averages",
    "grokfast": "rules.slow_gradients",
    "grokfast_ma": "rules.slow_gradients",
    "hyperball": "rules.fixed_norm",
    "lamb": "rules.trust_ratio",
    "laprop": "rules.normalised_first",
    "lars": "rules.trust_ratio",
    "lookahead": "rules.slow_weights",
    "madgrad": "rules.dual_averaging",
    "monitor": "rules.looks",
    "msam": "rules.momentum_sharpness",
    "muon": "rules.orthogonal_steps",
    "noisy_sgd": "rules.noisy",
    "normalize": "rules.unit_norm",
    "normalize_by_update_norm": "rules.unit_norm",
    "normuon": "rules.adaptive_muon",
    "novograd": "rules.tensor_moments",
    "optimistic_adam": "rules.optimistic",
    "optimistic_gradient_descent": "rules.optimistic",
    "orthogonalize_gradient": "rules.orthogonalize",
    "primal_averaging": "rules.primal_averages",
    "projection_box": "rules.projections",
    "projection_halfspace": "rules.projections",
    "projection_hypercube": "rules.projections",
    "projection_hyperplane": "rules.projections",
    "projection_l1_ball": "rules.projections",
    "projection_l1_sphere": "rules.projections",
    "projection_l2_ball": "rules.projections",
    "projection_l2_sphere": "rules.projections",
    "projection_linf_ball": "rules.projections",
    "projection_non_negative": "rules.projections",
    "projection_simplex": "rules.projections",
    "projection_vector": "rules.projections",
    "qk_clip": "rules.logit_clip",
    "scale_by_acprop": "rules.asynchronous",
    "scale_by_adam_atan2": "rules.atan2",
    "scale_by_adam_mini": "rules.block_moments",
    "scale_by_adamuon": "rules.adaptive_muon",
    "scale_by_adan": "rules.gradient_difference",
    "scale_by_ademamix": "rules.two_means",
    "scale_by_adopt": "rules.past_square",
    "scale_by_aggmo": "rules.many_momenta",
    "scale_by_belief": "rules.belief",
    "scale_by_came": "rules.confident_steps",
    "scale_by_cocob": "rules.coin_betting",
    "scale_by_laprop": "rules.normalised_first",
    "scale_by_lmo": "rules.norm_balls",
    "scale_by_madgrad": "rules.dual_averaging",
    "scale_by_muon": "rules.orthogonal_steps",
    "scale_by_normuon": "rules.adaptive_muon",
    "scale_by_novograd": "rules.tensor_moments",
    "scale_by_optimistic_gradient": "rules.optimistic",
    "scale_by_param_block_norm": "rules.block_norms",
    "scale_by_param_block_rms": "rules.block_norms",
    "scale_by_qhm": "rules.qhm",
    "scale_by_simplified_ademamix": "rules.two_means",
    "scale_by_sm3": "rules.dimension_moments",
    "scale_by_soap": "rules.eigenbases",
    "scale_by_stable_adam": "rules.stable_adam",
    "scale_by_trust_ratio": "rules.trust_ratio",
    "scale_by_yogi": "rules.additive_square",
    "schedule_free": "rules.between_points",
    "schedule_free_adamw": "rules.between_points",
    "schedule_free_radam": "rules.between_points",
    "schedule_free_sgd": "rules.between_points",
    "scion": "rules.norm_balls",
    "sgdp": "rules.radial",
    "shrink_by_learning_rate": "rules.relative_steps",
    "sign_sgd": "rules.signs",
    "signum": "rules.signs",
    "simplified_ademamix": "rules.two_means",
    "skip_large_updates": "rules.spikes",
    "skip_spikes": "rules.spikes",
    "sm3": "rules.dimension_moments",
    "snapshot": "rules.looks",
    "soap": "rules.eigenbases",
    "stable_adamw": "rules.stable_adam",
    "step_proximally": "rules.proximal",
    "tiger": "rules.signs",
    "yogi": "rules.additive_square",
}

if not TYPE_CHECKING:  # a checker has the imports: any other name is a mistake to it
    __all__ = sorted(["chain", *_HOMES, *_of_combinators, *_of_optimizers, *_of_transforms])
    __getattr__, __dir__ = on_first_use(__name__, _HOMES)
