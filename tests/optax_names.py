"""Where a user of Optax finds each of its public names: one place to look, and a test keeps it whole.

A name that gradchain has under the same spelling needs no entry. Every other is here once, as
`"gch.…"` (it is there, under that name), `"not here, because …"`, or `"comes with …"` (it is planned, with what).
"""

from __future__ import annotations


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
    # transforms
    "clip": "gch.clip_by_value",
    "clip_by_global_norm": "gch.clip_by_norm",
    "clip_by_block_rms": NORMS,
    "adaptive_grad_clip": NORMS,
    "unitwise_clip": NORMS,
    "unitwise_norm": NORMS,
    "zero_nans": "gch.nan_to_num",
    "keep_params_nonnegative": "gch.project",
    "stateless_with_tree_map": "gch.stateless",
    "identity": "gch.chain",
    "set_to_zero": "gch.freeze",
    "normalize_by_update_norm": NORMS,
    "centralize": "gch.stateless",
    "ema": "comes with the averages of updates",
    "add_noise": "comes with the links that draw random numbers",
    "apply_every": "gch.accumulate",
    "monitor": "gch.Context.record",
    "snapshot": "gch.Context.record",
    "measure_with_ema": "comes with the averages of updates",
    "with_extra_args_support": "not here, because every link gets a Context",
    **_all(
        FAMILY,
        """scale_by_adadelta scale_by_adamax scale_by_adan scale_by_amsgrad scale_by_belief scale_by_factored_rms
        scale_by_novograd scale_by_optimistic_gradient scale_by_radam scale_by_rms scale_by_rprop scale_by_rss
        scale_by_sm3 scale_by_stddev scale_by_yogi""",
    ),
    **_all(NORMS, "scale_by_param_block_norm scale_by_param_block_rms scale_by_trust_ratio"),
    **_all(FREE, "scale_by_distance_over_gradients scale_by_polyak"),
    **_all(SEARCH, "scale_by_backtracking_linesearch scale_by_lbfgs scale_by_zoom_linesearch lbfgs"),
    # combinators
    "named_chain": "gch.chain",
    "multi_transform": "gch.partition",
    "selective_transform": "gch.partition",
    "MultiSteps": "gch.accumulate",
    "skip_not_finite": "gch.skip_nonfinite",
    "skip_large_updates": "comes with the gates on the size of an update",
    "apply_if_finite": "gch.skip_nonfinite",
    "conditionally_mask": "gch.freeze",
    "conditionally_transform": "gch.masked",
    "inject_hyperparams": "gch.Updater.override",
    "inject_stateful_hyperparams": "gch.Updater.override",
    "flatten": "not here, because fused kernels take many tensors at once as they are",
    "lookahead": "comes with the links that own the weights",
    # aliases
    "amsgrad": FAMILY,
    "nadam": "gch.nadamw",
    "sign_sgd": "gch.scale_by_sign",
    "signum": "gch.scale_by_sign",
    **_all(
        FAMILY,
        """adabelief adadelta adafactor adagrad adamax adamaxw adan novograd optimistic_adam optimistic_adam_v2
        optimistic_gradient_descent radam rmsprop rprop sm3 yogi""",
    ),
    **_all(NORMS, "fromage lamb lars"),
    "noisy_sgd": "comes with the links that draw random numbers",
    "polyak_sgd": FREE,
    # schedules
    "constant_schedule": "gch.constant",
    "linear_schedule": "gch.linear",
    "polynomial_schedule": "gch.schedules.polynomial",
    "piecewise_constant_schedule": "gch.schedules.multi_step",
    "piecewise_interpolate_schedule": "gch.join",
    "exponential_decay": "gch.schedules.exponential",
    "cosine_decay_schedule": "gch.cosine",
    "cosine_onecycle_schedule": "gch.schedules.one_cycle",
    "linear_onecycle_schedule": "gch.schedules.one_cycle",
    "warmup_constant_schedule": "gch.linear",
    "warmup_cosine_decay_schedule": "gch.schedules.warmup_cosine",
    "warmup_exponential_decay_schedule": "gch.join",
    "sgdr_schedule": "gch.schedules.cosine_restarts",
    "join_schedules": "gch.join",
    "Schedule": "gch.schedules.ScheduleLike",
    "StatefulSchedule": "not here, because a schedule is a function; what remembers is a link",
    "WrappedSchedule": "not here, because a schedule is a function; what remembers is a link",
    # utilities
    "GradientTransformation": "gch.Transform",
    "GradientTransformationExtraArgs": "gch.Transform",
    "global_norm": "gch.Tensors.norm",
    "incremental_update": "gch.average_params",
    "periodic_update": "gch.average_params",
    "init_empty_state": "gch.Transform.init",
    "update_moment": "gch.Tensors.lerp",
    "update_moment_per_elem_norm": "gch.Tensors.lerp",
    "update_infinity_moment": "gch.Tensors.maximum",
    "bias_correction": "gch.Count",
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
    "assignment": "not here, because scipy.optimize.linear_sum_assignment has it",
    "experimental": EXAMPLES,
    "losses": LOSSES,
    "microbatching": EXAMPLES,
    "perturbations": "not here, because it differentiates through solvers, not an optimizer",
    "projections": "gch.project",
    "second_order": "not here, because torch.func has hessians and products with them",
    "tree": "gch.Tensors",
    "tree_utils": "gch.Tensors",
}
LOOKED_INTO = ("contrib", "schedules", "transforms")
