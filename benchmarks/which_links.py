"""The rows of `which.py` that are links, projections, and what has no peer that could be run beside it."""

from __future__ import annotations

from benchmarks.which_peers import BFLOAT16, EPS_IN_ROOT, FLOAT32_BASES, MATRICES, Peer, alone, linked, rule

COMPOSING = (
    rule(
        "cautious",
        "gch.chain(gch.rules.cautious(gch.scale_by_adam()), gch.scale_by_learning_rate(lr))",
        Peer(
            "timm.optim.Lion(params, lr=lr, caution=True)",
            ours="gch.chain(gch.rules.cautious(gch.scale_by_lion()), gch.scale_by_learning_rate(lr))",
            why="here around Lion",
        ),
        Peer(
            "pytorch_optimizer.Lion(params, lr=lr, cautious=True)",
            ours="gch.chain(gch.rules.cautious(gch.scale_by_lion()), gch.scale_by_learning_rate(lr))",
            why="divides by (Σ k + 1) / n where ours has the mean of k",
        ),
    ),
    rule(
        "correct_gradient",
        "gch.chain(gch.rules.correct_gradient(0.025, 0.95), gch.adam(lr, 0.95, 0.99))",
        Peer(
            "pytorch_optimizer.MARS(params, lr=lr)",
            "pytorch_optimizer.MARS(params, lr=lr, optimize_1d=True, weight_decay=0.0)",
            why="vectors have AdamW by default; it adds 1e-15 to the square",
        ),
        Peer(
            "timm.optim.Mars(params, lr=lr)",
            "timm.optim.Mars(params, lr=lr, betas=(0.95, 0.99), optimize_1d=True)",
            why="b1 0.9, and vectors have AdamW by default",
        ),
    ),
    rule(
        "grokfast",
        "gch.chain(gch.rules.grokfast(0.98, 2.0), gch.adamw(lr, b2=0.99, weight_decay=0.0))",
        Peer(
            "pytorch_optimizer.GrokFastAdamW(params, lr=lr)",
            ours="gch.chain(gch.rules.grokfast(0.98, 2.0), gch.adamw(lr / 3.0, b2=0.99, weight_decay=0.0))",
            why="it divides the rate by 1 + lamb; eps is a floor of the root",
        ),
    ),
    rule(
        "orthogonalize_gradient",
        "gch.chain(gch.rules.orthogonalize_gradient(), gch.sgd(lr))",
        Peer("pytorch_optimizer.OrthoGrad(torch.optim.SGD(params, lr=lr))"),
    ),
    rule(
        "lookahead",
        "gch.chain(gch.sgd(lr), gch.rules.lookahead(5, 0.5))",
        Peer("fast_of(optax.lookahead(optax.sgd(lr), 5, 0.5))"),
        Peer("pytorch_optimizer.Lookahead(torch.optim.SGD(params, lr=lr), k=5, alpha=0.5)"),
        Peer(
            "timm.optim.Lookahead(torch.optim.SGD(params, lr=lr), alpha=0.5, k=5)",
            why="its slow weights are made at the first synchronisation, which so does nothing",
        ),
        Peer(
            "torch_optimizer.Lookahead(torch.optim.SGD(params, lr=lr), k=5, alpha=0.5)",
            why="it synchronises at the first step of each period",
        ),
    ),
    rule(
        "sam",
        "gch.chain(gch.sam(0.05), gch.sgd(lr))",
        Peer("pytorch_optimizer.SAM(params, torch.optim.SGD, rho=0.05, lr=lr)", why="its norm is a float32"),
    ),
    rule(
        "asam",
        "gch.chain(gch.rules.asam(0.5, 0.0), gch.sgd(lr))",
        Peer(
            "pytorch_optimizer.SAM(params, torch.optim.SGD, rho=0.5, adaptive=True, lr=lr)", why="its norm is a float32"
        ),
    ),
    rule("from_torch", 'gch.chain(gch.from_torch("AdamW", lr=lr))', Peer("torch.optim.AdamW(params, lr=lr)")),
    rule(
        "add_decayed_weights",
        "gch.chain(gch.add_decayed_weights(0.1), gch.sgd(lr))",
        Peer("optax.chain(optax.add_decayed_weights(0.1), optax.sgd(lr))"),
        Peer("torch.optim.SGD(params, lr=lr, weight_decay=0.1)"),
        Peer(
            "timm.optim.SGDW(params, lr=lr, weight_decay=0.1, corrected_weight_decay=True)",
            ours='gch.chain(gch.add_decayed_weights(0.1, by="corrected", rate=lr), gch.sgd(lr))',
            why="here multiplied by lr² / lr of the highest rate",
        ),
    ),
)

LINKS = (
    linked("chain", "gch.chain(gch.trace(0.9), gch.scale(0.5))", "optax.chain(optax.trace(0.9), optax.scale(0.5))"),
    linked(
        "accumulate",
        "gch.chain(gch.accumulate(5), gch.sgd(lr))",
        "optax.MultiSteps(optax.sgd(lr), 5).gradient_transformation()",
        why="it accumulates in float32",
    ),
    linked(
        "masked",
        "gch.masked(gch.trace(0.9), gch.min_ndim(2))",
        "optax.masked(optax.trace(0.9), lambda tree: {n: x.ndim > 1 for n, x in tree.items()})",
    ),
    linked(
        "partition",
        "gch.partition((gch.min_ndim(2), gch.trace(0.9)), (gch.rest, gch.scale(0.5)))",
        'optax.partition({"a": optax.trace(0.9), "b": optax.scale(0.5)}, '
        'lambda tree: {n: "a" if x.ndim > 1 else "b" for n, x in tree.items()})',
    ),
    linked(
        "rest",
        "gch.partition((gch.ndim(1), gch.sgd(lr)), (gch.rest, gch.adam(lr)))",
        'optax.partition({"a": optax.adam(lr), "b": optax.sgd(lr)}, '
        'lambda tree: {n: "a" if x.ndim > 1 else "b" for n, x in tree.items()})',
    ),
    linked(
        "freeze",
        "gch.chain(gch.freeze(gch.ndim(1)), gch.sgd(lr))",
        "optax.chain(optax.freeze({n: n == 'bias' for n in ('matrix', 'tall', 'filters', 'bias')}), optax.sgd(lr))",
    ),
    linked(
        "stateless",
        "gch.stateless(lambda g, w: g + 0.1 * w)",
        "optax.stateless(lambda g, w: {n: g[n] + 0.1 * w[n] for n in g})",
    ),
    linked(
        "when",
        "gch.when(lambda step: step % 3 != 1, gch.trace(0.9))",
        "optax.conditionally_transform(optax.trace(0.9), lambda step: step % 3 != 1)",
    ),
    linked(
        "project",
        "gch.chain(gch.sgd(lr), gch.project(gch.rules.projection_non_negative()))",
        "optax.chain(optax.sgd(lr), optax.keep_params_nonnegative())",
    ),
    linked("scale", "gch.scale(0.5)", "optax.scale(0.5)"),
    linked("scale_by_learning_rate", "gch.chain(gch.scale_by_learning_rate(lr))", "optax.scale_by_learning_rate(lr)"),
    linked(
        "scale_by_schedule",
        "gch.chain(gch.scale_by_schedule(lambda step: -lr / (1.0 + step)))",
        "optax.scale_by_schedule(lambda step: -lr / (1.0 + step))",
    ),
    linked("trace", "gch.trace(0.9)", "optax.trace(0.9)"),
    linked("ema", "gch.rules.ema(0.9)", "optax.ema(0.9)"),
    rule(
        "clip_by_norm",
        "gch.clip_by_norm(1.0)",
        Peer("optax.clip_by_global_norm(1.0)", ours="gch.clip_by_norm(1.0, eps=0.0)", why="torch's has an eps of 1e-6"),
    ),
    linked("clip_by_value", "gch.clip_by_value(0.5)", "optax.clip(0.5)"),
    linked("clip_by_block_rms", "gch.rules.clip_by_block_rms(0.5)", "optax.clip_by_block_rms(0.5)"),
    rule(
        "adaptive_grad_clip",
        "gch.rules.adaptive_grad_clip(0.1)",
        Peer("optax.adaptive_grad_clip(0.1)", why="its units are columns: the kernels of Flax are transposed"),
    ),
    rule("centralize", "gch.rules.centralize()", Peer("optax.centralize()")),
    linked("normalize_by_update_norm", "gch.rules.normalize_by_update_norm()", "optax.normalize_by_update_norm()"),
    linked(
        "normalize",
        "gch.chain(gch.rules.normalize(), gch.sgd(lr))",
        "optax.chain(optax.contrib.normalize(), optax.sgd(lr))",
    ),
    linked(
        "skip_large_updates",
        "gch.chain(gch.rules.skip_large_updates(90.0), gch.sgd(lr))",
        "optax.MultiSteps(optax.sgd(lr), 1, should_skip_update_fn=lambda updates, gradient_step, params: "
        "optax.skip_large_updates(updates, gradient_step, params, 90.0)).gradient_transformation()",
    ),
    linked("maximize", "gch.chain(gch.rules.maximize(), gch.sgd(lr))", "torch.optim.SGD(params, lr=lr, maximize=True)"),
    linked("scale_by_sign", "gch.scale_by_sign()", "optax.scale_by_sign()"),
    linked("scale_by_lion", "gch.scale_by_lion()", "optax.scale_by_lion()"),
    linked("scale_by_adam", "gch.scale_by_adam()", "optax.scale_by_adam()"),
    linked("scale_by_adamax", "gch.rules.scale_by_adamax()", "optax.scale_by_adamax()"),
    linked("scale_by_adadelta", "gch.rules.scale_by_adadelta()", "optax.scale_by_adadelta()"),
    rule(
        "scale_by_amsgrad",
        "gch.rules.scale_by_amsgrad()",
        Peer(
            "optax.scale_by_amsgrad()",
            ours='gch.rules.scale_by_amsgrad(max_of="nu_hat")',
            why="its largest mean square is of corrected ones",
        ),
        Peer("torch.optim.Adam(params, lr=lr, amsgrad=True)"),
    ),
    rule(
        "scale_by_nadam",
        "gch.rules.scale_by_nadam()",
        Peer("torch.optim.NAdam(params, lr=lr)", why="it keeps a product of momenta in float32"),
    ),
    rule(
        "scale_by_radam",
        "gch.rules.scale_by_radam()",
        Peer("optax.scale_by_radam()", ours="gch.rules.scale_by_radam(eps_hat=False)", why="eps behind the correction"),
        Peer("torch.optim.RAdam(params, lr=lr)"),
    ),
    rule(
        "scale_by_rms",
        "gch.rules.scale_by_rms()",
        Peer(
            "optax.scale_by_rms()",
            ours="gch.rules.scale_by_rms(decay=0.9, eps_in_sqrt=True)",
            why="decay 0.9, and " + EPS_IN_ROOT,
        ),
        Peer("torch.optim.RMSprop(params, lr=lr)"),
    ),
    rule(
        "scale_by_stddev",
        "gch.rules.scale_by_stddev()",
        Peer(
            "optax.scale_by_stddev()",
            ours="gch.rules.scale_by_stddev(decay=0.9, eps_in_sqrt=True)",
            why="decay 0.9, and " + EPS_IN_ROOT,
        ),
        Peer("torch.optim.RMSprop(params, lr=lr, centered=True)"),
    ),
    rule(
        "scale_by_rss",
        "gch.rules.scale_by_rss()",
        Peer(
            "optax.scale_by_rss()",
            ours="gch.rules.scale_by_rss(0.1, 1e-7, eps_in_sqrt=True)",
            why="the sum begins at 0.1, " + EPS_IN_ROOT,
        ),
        Peer("torch.optim.Adagrad(params, lr=lr)"),
    ),
    rule(
        "scale_by_rprop",
        "gch.chain(gch.rules.scale_by_rprop(lr), gch.scale(-1.0))",
        Peer("torch.optim.Rprop(params, lr=lr)"),
        Peer("optax.rprop(lr)", why="its step is that of the update before"),
    ),
    rule(
        "scale_by_asgd",
        "gch.chain(gch.rules.scale_by_asgd(lr))",
        Peer("torch.optim.ASGD(params, lr=lr)", why="it keeps its rate in float32"),
    ),
    rule(
        "scale_by_factored_rms",
        "gch.rules.scale_by_factored_rms(min_dim_size_to_factor=2)",
        Peer("optax.scale_by_factored_rms(min_dim_size_to_factor=2)", why="its decay is a float32"),
    ),
    linked("scale_by_belief", "gch.rules.scale_by_belief()", "optax.scale_by_belief()"),
    linked("scale_by_yogi", "gch.rules.scale_by_yogi()", "optax.scale_by_yogi()"),
    linked(
        "scale_by_adan",
        "gch.rules.scale_by_adan()",
        "optax.scale_by_adan()",
        why="it looks ahead by 1 - b2 of the difference where the paper has b2",
    ),
    linked("scale_by_adopt", "gch.rules.scale_by_adopt()", "optax.contrib.scale_by_adopt()"),
    linked("scale_by_ademamix", "gch.rules.scale_by_ademamix()", "optax.contrib.scale_by_ademamix()"),
    linked(
        "scale_by_simplified_ademamix",
        "gch.rules.scale_by_simplified_ademamix()",
        "optax.contrib.scale_by_simplified_ademamix()",
    ),
    linked(
        "scale_by_acprop",
        "gch.rules.scale_by_acprop(eps=1e-3, eps_root=1e-3)",
        "optax.contrib.scale_by_acprop(eps=1e-3, eps_root=1e-3)",
    ),
    linked(
        "scale_by_cocob",
        "gch.chain(gch.scale(lr), gch.rules.scale_by_cocob())",
        "optax.chain(optax.scale(lr), optax.contrib.scale_by_cocob())",
    ),
    linked(
        "scale_by_madgrad",
        "gch.chain(gch.rules.scale_by_madgrad(lr))",
        "optax.contrib.scale_by_madgrad(lr)",
        why="the root of its counter is taken in float32",
    ),
    rule(
        "scale_by_laprop",
        "gch.rules.scale_by_laprop()",
        Peer("pytorch_optimizer.LaProp(params, lr=lr)", why="adds its eps, 1e-15, to the mean square"),
    ),
    rule(
        "scale_by_qhm",
        "gch.rules.scale_by_qhm(0.9, 0.7)",
        Peer("torch_optimizer.QHM(params, lr=lr, momentum=0.9)"),
        Peer("pytorch_optimizer.QHM(params, lr=lr, momentum=0.9, nu=0.7)"),
    ),
    rule(
        "scale_by_aggmo",
        "gch.rules.scale_by_aggmo()",
        Peer("pytorch_optimizer.AggMo(params, lr=lr)"),
        Peer("torch_optimizer.AggMo(params, lr=lr)"),
    ),
    linked(
        "scale_by_optimistic_gradient",
        "gch.rules.scale_by_optimistic_gradient()",
        "optax.scale_by_optimistic_gradient()",
    ),
    linked("scale_by_novograd", "gch.rules.scale_by_novograd()", "optax.scale_by_novograd()"),
    linked("scale_by_param_block_norm", "gch.rules.scale_by_param_block_norm()", "optax.scale_by_param_block_norm()"),
    linked("scale_by_param_block_rms", "gch.rules.scale_by_param_block_rms()", "optax.scale_by_param_block_rms()"),
    linked("scale_by_trust_ratio", "gch.rules.scale_by_trust_ratio()", "optax.scale_by_trust_ratio()"),
    linked("scale_by_sm3", "gch.rules.scale_by_sm3()", "optax.scale_by_sm3()"),
    rule(
        "scale_by_stable_adam",
        "gch.rules.scale_by_stable_adam()",
        Peer(
            "pytorch_optimizer.StableAdamW(params, lr=lr, weight_decay=0.0)",
            ours="gch.rules.scale_by_stable_adam(b2=0.99, eps=1e-8)",
            why="eps 1e-8; a compensated sum of its own",
        ),
    ),
    rule(
        "scale_by_came",
        "gch.rules.scale_by_came()",
        Peer("pytorch_optimizer.CAME(params, lr=lr)"),
        on=(*MATRICES, "bias"),
    ),
    rule(
        "scale_by_soap",
        "gch.rules.scale_by_soap()",
        Peer("pytorch_optimizer.SOAP(params, lr=lr, weight_decay=0.0)", why=FLOAT32_BASES),
    ),
    rule(
        "scale_by_muon",
        "gch.rules.scale_by_muon()",
        Peer("torch.optim.Muon(params, lr=lr, weight_decay=0.0)", why=BFLOAT16),
        on=MATRICES,
    ),
    rule(
        "scale_by_lmo",
        "gch.rules.scale_by_lmo()",
        Peer(
            "pytorch_optimizer.SCION(params, lr=lr)",
            "pytorch_optimizer.SCION(params, lr=lr, momentum=1.0)",
            why="has momentum in it; " + BFLOAT16,
        ),
        on=MATRICES,
    ),
    rule("drop_radial", "gch.rules.drop_radial(gch.scale_by_adam())", Peer("torch_optimizer.AdamP(params, lr=lr)")),
    rule(
        "schedule_free",
        "gch.chain(gch.rules.schedule_free(lr))",
        Peer("schedulefree.SGDScheduleFree(params, lr=lr)"),
        Peer("optax.contrib.schedule_free(optax.sgd(lr), lr)"),
    ),
    rule(
        "step_proximally",
        "gch.chain(gch.rules.scale_by_adan(), gch.rules.step_proximally(lr, 0.1))",
        Peer("pytorch_optimizer.Adan(params, lr=lr, weight_decay=0.1)"),
    ),
    rule(
        "shrink_by_learning_rate",
        "gch.chain(gch.rules.scale_by_trust_ratio(1e-6), gch.rules.shrink_by_learning_rate(lr))",
        Peer("optax.fromage(lr)"),
    ),
    rule(
        "clip_by_ema_norm",
        "gch.chain(gch.rules.clip_by_ema_norm(), gch.adamw(lr, weight_decay=0.1))",
        Peer("pytorch_optimizer.AdaGC(params, lr=lr)", why="its norms are float32"),
    ),
    rule("cap_learning_rate", "gch.adafactor(10 * lr)", Peer("torch.optim.Adafactor(params, lr=10 * lr)"), on=MATRICES),
)

SETS = {
    "non_negative": ("", "projection_non_negative"),
    "box": ("-0.5, 0.75", "projection_box, -0.5, 0.75"),
    "hypercube": ("0.7", "projection_hypercube, 0.7"),
    "linf_ball": ("0.4", "projection_linf_ball, 0.4"),
    "simplex": ("1.5", "projection_simplex, 1.5"),
    "l1_sphere": ("2.0", "projection_l1_sphere, 2.0"),
    "l1_ball": ("2.0", "projection_l1_ball, 2.0"),
    "l2_sphere": ("1.5", "projection_l2_sphere, 1.5"),
    "l2_ball": ("1.5", "projection_l2_ball, 1.5"),
    "halfspace": ("torch.ones(7).double(), 0.3", "projection_halfspace, torch.ones(7).double().numpy(), 0.3"),
    "hyperplane": ("torch.ones(7).double(), 0.3", "projection_hyperplane, torch.ones(7).double().numpy(), 0.3"),
    "vector": ("torch.ones(7).double()", "projection_vector, torch.ones(7).double().numpy()"),
}
PROJECTIONS = tuple(
    rule(
        f"projection_{name}",
        f"gch.chain(gch.sgd(lr), gch.project(gch.rules.projection_{name}({ours})))",
        Peer(f"projected(lr, optax.projections.{theirs})"),
        on=("bias",),
    )
    for name, (ours, theirs) in SETS.items()
)

REST = (
    *alone("Optax's draws other numbers: the tests hold mean and spread to it", "add_noise", "noisy_sgd"),
    *alone("torch.amp.GradScaler, in a loop of the tests", "amp_scale"),
    *alone("it moves no weights: its averages are compared in the table of cases", "average_each", "average_params"),
    *alone("it waits for what is observed: torch's ReduceLROnPlateau, in a loop of the tests", "reduce_on_plateau"),
    *alone("it moves no weights: MMEngine's schedulers of other numbers, in a loop of the tests", "tick_on_plateau"),
    *alone("gradients here are finite: the table of cases has others", "guard", "nan_to_num", "skip_nonfinite"),
    *alone("torch.optim.SparseAdam, whose gradients are sparse: the table of cases has them", "sparse_adam"),
    *alone("pytorch_optimizer's knows blocks by names of parameters: the tests have a model", "adam_mini"),
    *alone("pytorch_optimizer's SCION takes groups with their norms: the tests have a model", "scion"),
    *alone("gradfilter_ma of pytorch_optimizer, in a loop of the tests", "grokfast_ma"),
    *alone("it moves no weights: it records", "monitor", "snapshot"),
    *alone(
        "a twin from the paper, in the tests",
        "adam_atan2", "clip_by_zscore", "gpa_adamw", "hyperball", "msam", "primal_averaging", "qk_clip",
        "scale_by_adam_atan2", "scale_by_adam_mini",
        "scale_by_adamuon", "scale_by_normuon", "skip_spikes", "switch",
    ),
)  # fmt: skip
