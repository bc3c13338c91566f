"""Where a user of Optax finds each of its public names: one place to look, and a test keeps it whole.

A name that gradchain has under the same spelling needs no entry. Every other is here once, as
`"gch.…"` (it is there, under that name), `"not here, because …"`, or `"comes with …"` (it is planned, with what).
"""

from __future__ import annotations

from gradchain.words import names


def _all(reason: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


STATES = "not here, because the state of a link is its own: it is addressed by name, as in state_dict()"
TYPES = "not here, because a type alias of jax's trees has no use for Tensors"
LOSSES = "not here, because torch.nn.functional has the losses"
FAMILY = "comes with the adaptive rules"
FREE = "comes with the rules that need no learning rate"
NORMS = "comes with the layerwise rules"
SEARCH = "not here, because torch.optim.LBFGS searches along lines; a chain takes one step"
EXAMPLES = "not here, because gradients per example belong to torch.func and Opacus"
COUNTERS = "not here, because a Count is a Python int and cannot overflow"

OPTAX: dict[str, str] = {
    **names.OPTAX,
    # transforms
    "clip_by_block_rms": NORMS,
    "adaptive_grad_clip": NORMS,
    "unitwise_clip": NORMS,
    "unitwise_norm": NORMS,
    "normalize_by_update_norm": NORMS,
    "ema": "comes with the averages of updates",
    "measure_with_ema": "comes with the averages of updates",
    "with_extra_args_support": "not here, because every link gets a Context",
    **_all(
        FAMILY,
        """scale_by_adan scale_by_belief scale_by_factored_rms scale_by_novograd scale_by_optimistic_gradient
        scale_by_sm3 scale_by_yogi""",
    ),
    **_all(NORMS, "scale_by_param_block_norm scale_by_param_block_rms scale_by_trust_ratio"),
    **_all(FREE, "scale_by_distance_over_gradients scale_by_polyak"),
    **_all(SEARCH, "scale_by_backtracking_linesearch scale_by_lbfgs scale_by_zoom_linesearch lbfgs"),
    # combinators
    "skip_large_updates": "comes with the gates on the size of an update",
    "flatten": "not here, because fused kernels take many tensors at once as they are",
    "lookahead": "comes with the links that own the weights",
    # aliases
    **_all(
        FAMILY,
        """adabelief adafactor adan novograd optimistic_adam optimistic_adam_v2 optimistic_gradient_descent sm3 yogi""",
    ),
    **_all(NORMS, "fromage lamb lars"),
    "noisy_sgd": "comes with the links that draw random numbers",
    "polyak_sgd": FREE,
    # schedules
    "StatefulSchedule": "not here, because a schedule is a function; what remembers is a link",
    "WrappedSchedule": "not here, because a schedule is a function; what remembers is a link",
    # utilities
    "tree_map_params": "not here, because a state says itself which of its fields are Tensors",
    "scale_gradient": "not here, because it changes the loss, not the updates: torch.autograd.Function",
    "value_and_grad_from_state": SEARCH,
    **_all(COUNTERS, "safe_increment safe_int32_increment"),
    **_all("not here, because norms are accumulated in float64", "safe_norm safe_root_mean_squares"),
    **_all(EXAMPLES, "per_example_global_norm_clip per_example_layer_norm_clip microbatch"),
    **_all("comes with the matrix rules", "matrix_inverse_pth_root power_iteration"),
    "nnls": "not here, because it solves a linear problem: scipy.optimize.nnls",
    "multi_normal": "not here, because torch.distributions has it",
    # losses
    **_all(
        LOSSES,
        """convex_kl_divergence cosine_distance cosine_similarity ctc_loss ctc_loss_with_forward_probs
        generalized_kl_divergence hinge_loss huber_loss kl_divergence l2_loss log_cosh ntxent
        safe_softmax_cross_entropy sigmoid_binary_cross_entropy sigmoid_focal_loss smooth_labels softmax_cross_entropy
        softmax_cross_entropy_with_integer_labels squared_error""",
    ),
    # contrib
    "dpsgd": EXAMPLES,
    "differentially_private_aggregate": EXAMPLES,
    "split_real_and_imaginary": "not here, because complex parameters are pairs of reals to every link",
    "hutchinson_estimator_diag_hessian": "comes with the second-order rules",
    "sophia": "comes with the second-order rules",
    "normalize": NORMS,
    **_all("comes with the matrix rules", "muon scale_by_muon galore scale_by_galore"),
    **_all(
        FAMILY,
        """acprop scale_by_acprop ademamix scale_by_ademamix adopt scale_by_adopt madgrad scale_by_madgrad
        simplified_ademamix scale_by_simplified_ademamix""",
    ),
    **_all(FREE, "cocob scale_by_cocob dadapt_adamw dog dowg mechanize momo momo_adam prodigy"),
    **_all(
        "comes with the links that own the weights",
        "schedule_free schedule_free_adamw schedule_free_eval_params schedule_free_sgd",
    ),
    # types and states
    **_all(
        TYPES,
        """ConditionFn MaskOrFn OptState Params ScalarOrSchedule ShouldSkipUpdateFunction TransformInitFn
        TransformUpdateExtraArgsFn TransformUpdateFn Updates GaLoreDimensionNumbers MuonDimensionNumbers""",
    ),
    **_all(
        STATES,
        """AdaptiveGradClipState AddDecayedWeightsState AddNoiseState ApplyEvery ApplyIfFiniteState
        ClipByGlobalNormState ClipState ConditionallyMaskState ConditionallyTransformState EmaState EmptyState
        FactoredState InjectHyperparamsState InjectStatefulHyperparamsState LookaheadParams LookaheadState MaskedNode
        MaskedState MonitorState MultiStepsState MultiTransformState NonNegativeParamsState PartitionState
        ScaleByAdaDeltaState ScaleByAdamState ScaleByAdanState ScaleByAmsgradState ScaleByBacktrackingLinesearchState
        ScaleByBeliefState ScaleByLBFGSState ScaleByLionState ScaleByNovogradState ScaleByRStdDevState ScaleByRmsState
        ScaleByRpropState ScaleByRssState ScaleBySM3State ScaleByScheduleState ScaleByTrustRatioState
        ScaleByZoomLinesearchState ScaleState SnapshotState TraceState ZeroNansState ZoomLinesearchInfo
        COCOBState DAdaptAdamWState DifferentiallyPrivateAggregateState DoGState DoWGState GaLoreState HutchinsonState
        MadgradState MechanicState MomoAdamState MomoState MuonState NormalizeState ProdigyState
        ReduceLROnPlateauState SAMState ScaleByAdemamixState ScaleBySimplifiedAdEMAMixState ScheduleFreeState
        SophiaState SplitRealAndImaginaryState""",
    ),
}

# The rest of Optax's namespace is modules. Those that are not looked into, with the reason.
MODULES: dict[str, str] = {
    **names.OPTAX_MODULES,
    "assignment": "not here, because scipy.optimize.linear_sum_assignment has it",
    "experimental": EXAMPLES,
    "losses": LOSSES,
    "microbatching": EXAMPLES,
    "perturbations": "not here, because it differentiates through solvers, not an optimizer",
    "second_order": "not here, because torch.func has hessians and products with them",
}
LOOKED_INTO = ("contrib", "schedules", "transforms")
