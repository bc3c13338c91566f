"""The rows of `which.py` that are whole rules: those of torch.optim, and those beyond by their families."""

from __future__ import annotations

from benchmarks.which_peers import (
    BFLOAT16,
    CORRECTED_EPS,
    DECAY,
    EPS_IN_ROOT,
    FLOAT32,
    FLOAT32_BASES,
    MATRICES,
    Peer,
    rule,
)

OF_TORCH = (
    rule(
        "sgd",
        "gch.sgd(lr)",
        Peer("torch.optim.SGD(params, lr=lr)"),
        Peer(
            "torch.optim.SGD(params, lr=lr, momentum=0.9)", ours="gch.sgd(lr, momentum=0.9)", why="here with momentum"
        ),
        Peer("optax.sgd(lr)"),
        Peer(
            "optax.sgd(lr, momentum=0.9, nesterov=True)",
            ours="gch.sgd(lr, momentum=0.9, nesterov=True)",
            why="here with momentum",
        ),
        Peer("pytorch_optimizer.SGDW(params, lr=lr)"),
    ),
    rule(
        "adam",
        "gch.adam(lr)",
        Peer("torch.optim.Adam(params, lr=lr)"),
        Peer("optax.adam(lr)"),
        Peer("bitsandbytes.optim.Adam32bit(params, lr=lr)", why=FLOAT32),
        Peer(
            "torch.optim.Adam(params, lr=lr, amsgrad=True)", ours="gch.adam(lr, amsgrad=True)", why="here with amsgrad"
        ),
        Peer(
            "optax.amsgrad(lr)",
            ours='gch.chain(gch.rules.scale_by_amsgrad(max_of="nu_hat"), gch.scale_by_learning_rate(lr))',
            why="its largest mean square is of corrected ones, torch's of those that are not",
        ),
    ),
    rule(
        "adamw",
        "gch.adamw(lr)",
        Peer("torch.optim.AdamW(params, lr=lr)"),
        Peer("optax.adamw(lr)", ours="gch.adamw(lr, weight_decay=1e-4)", why=DECAY.format("1e-4", "0.01")),
        Peer("timm.optim.AdamWLegacy(params, lr=lr)"),
        Peer("bitsandbytes.optim.AdamW32bit(params, lr=lr)", why=FLOAT32),
        Peer(
            "heavyball.AdamW(params, lr=lr)",
            "heavyball.AdamW(params, lr=torch.tensor(lr, dtype=torch.float64), betas=(0.9, 0.999), eps=1e-30, "
            'weight_decay=0.01, storage_dtype="float64")',
            "gch.adamw(lr, eps=1e-30)",
            "by default b2 is 0.99, there is no decay, moments are in float32; its eps is a floor of the root, its "
            "rate is a float32 unless a tensor",
        ),
    ),
    rule(
        "nadam",
        "gch.nadam(lr)",
        Peer("torch.optim.NAdam(params, lr=lr)", why="it keeps a product of momenta in float32"),
        Peer(
            "optax.nadam(lr)",
            ours="gch.chain(gch.scale_by_adam(nesterov=True), gch.scale_by_learning_rate(lr))",
            why="its momentum has no schedule",
        ),
    ),
    rule(
        "nadamw",
        "gch.nadamw(lr)",
        Peer("optax.nadamw(lr)", ours="gch.nadamw(lr, weight_decay=1e-4)", why=DECAY.format("1e-4", "0.01")),
        Peer("timm.optim.NAdamW(params, lr=lr)", why="its b1 m + (1 - b1) g is divided by 1 - b1^t, both parts"),
    ),
    rule(
        "radam",
        "gch.radam(lr)",
        Peer("torch.optim.RAdam(params, lr=lr)"),
        Peer("optax.radam(lr)", ours="gch.radam(lr, eps_hat=False)", why="eps behind the correction"),
        Peer(
            "pytorch_optimizer.RAdam(params, lr=lr)",
            "pytorch_optimizer.RAdam(params, lr=lr, degenerated_to_sgd=True)",
            why="by default no step at all until the mean square is known, 5 updates",
        ),
        Peer("torch_optimizer.RAdam(params, lr=lr)", why=FLOAT32),
    ),
    rule(
        "adamax",
        "gch.adamax(lr)",
        Peer("torch.optim.Adamax(params, lr=lr)"),
        Peer("optax.adamax(lr)"),
        Peer("pytorch_optimizer.AdaMax(params, lr=lr)"),
    ),
    rule(
        "rmsprop",
        "gch.rmsprop(lr)",
        Peer("torch.optim.RMSprop(params, lr=lr)"),
        Peer("bitsandbytes.optim.RMSprop32bit(params, lr=lr)", why=FLOAT32),
        Peer(
            "optax.rmsprop(lr)",
            ours="gch.rmsprop(lr, decay=0.9, eps_in_sqrt=True)",
            why="decay 0.9, and " + EPS_IN_ROOT,
        ),
        Peer(
            "timm.optim.RMSpropTF(params, lr=lr)",
            ours="gch.rmsprop(lr, decay=0.9, eps=1e-10, eps_in_sqrt=True, initial_scale=1.0)",
            why="the mean square begins at 1, decay 0.9, eps 1e-10 in the root",
        ),
    ),
    rule(
        "adagrad",
        "gch.adagrad(lr)",
        Peer("torch.optim.Adagrad(params, lr=lr)"),
        Peer("bitsandbytes.optim.Adagrad32bit(params, lr=lr)", why=FLOAT32),
        Peer(
            "optax.adagrad(lr)",
            ours="gch.adagrad(lr, initial_accumulator_value=0.1, eps=1e-7, eps_in_sqrt=True)",
            why="the sum begins at 0.1, " + EPS_IN_ROOT,
        ),
    ),
    rule(
        "adadelta",
        "gch.adadelta(lr)",
        Peer("torch.optim.Adadelta(params, lr=lr)"),
        Peer("optax.adadelta(lr)"),
        Peer("pytorch_optimizer.AdaDelta(params, lr=lr)"),
    ),
    rule(
        "rprop",
        "gch.rprop(lr)",
        Peer("torch.optim.Rprop(params, lr=lr)"),
        Peer("optax.rprop(lr)", why="its step is that of the update before, and the first is none: optax PR 1725"),
    ),
    rule(
        "asgd",
        "gch.asgd(lr)",
        Peer("torch.optim.ASGD(params, lr=lr)", why="it keeps its rate in float32"),
        Peer("pytorch_optimizer.ASGD(params, lr=lr)", why="another rule of that name: no average, a step by norms"),
    ),
    rule(
        "lion",
        "gch.lion(lr)",
        Peer("optax.lion(lr)"),
        Peer("lion_pytorch.Lion(params, lr=lr)", ours="gch.lion(lr, weight_decay=0.0)", why=DECAY.format("0", "1e-3")),
        Peer(
            "pytorch_optimizer.Lion(params, lr=lr)",
            ours="gch.lion(lr, weight_decay=0.0)",
            why=DECAY.format("0", "1e-3"),
        ),
        Peer("timm.optim.Lion(params, lr=lr)", ours="gch.lion(lr, weight_decay=0.0)", why=DECAY.format("0", "1e-3")),
        Peer(
            "bitsandbytes.optim.Lion32bit(params, lr=lr)",
            ours="gch.lion(lr, weight_decay=0.0)",
            why=DECAY.format("0", "1e-3") + "; " + FLOAT32,
        ),
    ),
    rule(
        "adafactor",
        "gch.adafactor(lr)",
        Peer("torch.optim.Adafactor(params, lr=lr)"),
        Peer(
            "transformers.optimization.Adafactor(params, lr=lr, relative_step=False, scale_parameter=True)",
            why="its rate is not held below 1 / √t, which comes after 400 updates here",
        ),
        Peer(
            "pytorch_optimizer.AdaFactor(params, lr=lr)",
            "pytorch_optimizer.AdaFactor(params, lr=lr, relative_step=False, betas=(None, 0.999))",
            why="relative steps and a momentum by default",
        ),
        Peer(
            "timm.optim.Adafactor(params, lr=lr)",
            why="with a rate given, the scaling by rms(w) is off, whatever the argument says",
        ),
        Peer(
            "optax.adafactor(lr)",
            "optax.adafactor(lr, min_dim_size_to_factor=2)",
            why="it factors dimensions of 128 or more; its decay is a float32",
        ),
        on=MATRICES,
    ),
)

ELEMENTWISE = (
    rule(
        "adabelief",
        "gch.rules.adabelief(lr)",
        Peer("optax.adabelief(lr)"),
        Peer("pytorch_optimizer.AdaBelief(params, lr=lr)"),
        Peer(
            "timm.optim.AdaBelief(params, lr=lr)",
            "timm.optim.AdaBelief(params, lr=lr, rectify=False)",
            why="rectified by default",
        ),
        Peer(
            "torch_optimizer.AdaBelief(params, lr=lr)",
            "torch_optimizer.AdaBelief(params, lr=lr, eps=1e-16)",
            why="eps 1e-8 by default",
        ),
    ),
    rule(
        "yogi",
        "gch.rules.yogi(lr)",
        Peer("optax.yogi(lr)"),
        Peer("torch_optimizer.Yogi(params, lr=lr)"),
        Peer("pytorch_optimizer.Yogi(params, lr=lr)"),
    ),
    rule(
        "adan",
        "gch.rules.adan(lr)",
        Peer("pytorch_optimizer.Adan(params, lr=lr)"),
        Peer("timm.optim.Adan(params, lr=lr)"),
        Peer(
            "optax.adan(lr)",
            ours="gch.rules.adan(lr, eps_root=1e-8)",
            why="it looks ahead by 1 - b2 of the difference where the paper has b2: optax PR 1715",
        ),
    ),
    rule(
        "adopt",
        "gch.rules.adopt(lr)",
        Peer("optax.contrib.adopt(lr)"),
        Peer(
            "timm.optim.Adopt(params, lr=lr)",
            "timm.optim.Adopt(params, lr=lr, clip_exp=0.25)",
            why="the bound grows by the exponent 0.333 by default, 0.25 in the paper",
        ),
        Peer(
            "pytorch_optimizer.ADOPT(params, lr=lr)",
            "pytorch_optimizer.ADOPT(params, lr=lr, clip_lambda=lambda step: (step - 1) ** 0.25)",
            why="its bound counts one update late",
        ),
    ),
    rule(
        "ademamix",
        "gch.rules.ademamix(lr)",
        Peer("optax.contrib.ademamix(lr)"),
        Peer("pytorch_optimizer.AdEMAMix(params, lr=lr)"),
    ),
    rule(
        "simplified_ademamix",
        "gch.rules.simplified_ademamix(lr)",
        Peer("optax.contrib.simplified_ademamix(lr)"),
        Peer(
            "pytorch_optimizer.SimplifiedAdEMAMix(params, lr=lr)",
            why="an average where the paper sums, divided by the root of the correction",
        ),
    ),
    rule(
        "laprop",
        "gch.rules.laprop(lr)",
        Peer("pytorch_optimizer.LaProp(params, lr=lr)", why="adds its eps, 1e-15, to the mean square"),
        Peer("timm.optim.LaProp(params, lr=lr)", why="its corrections are float32"),
    ),
    rule("acprop", "gch.rules.acprop(lr)", Peer("optax.contrib.acprop(lr)")),
    rule("cocob", "gch.rules.cocob(lr)", Peer("optax.contrib.cocob(lr)")),
    rule(
        "madgrad",
        "gch.rules.madgrad(lr)",
        Peer("optax.contrib.madgrad(lr)", why="the root of its counter is taken in float32"),
        Peer("torch_optimizer.MADGRAD(params, lr=lr)"),
        Peer("pytorch_optimizer.MADGRAD(params, lr=lr)"),
        Peer("timm.optim.MADGRAD(params, lr=lr)"),
    ),
    rule("sign_sgd", "gch.rules.sign_sgd(lr)", Peer("optax.sign_sgd(lr)")),
    rule("signum", "gch.rules.signum(lr)", Peer("optax.signum(lr)"), Peer("pytorch_optimizer.SignSGD(params, lr=lr)")),
    rule("tiger", "gch.rules.tiger(lr)", Peer("pytorch_optimizer.Tiger(params, lr=lr)")),
    rule(
        "optimistic_gradient_descent",
        "gch.rules.optimistic_gradient_descent(lr)",
        Peer("optax.optimistic_gradient_descent(lr)"),
    ),
    rule("optimistic_adam", "gch.rules.optimistic_adam(lr)", Peer("optax.optimistic_adam_v2(lr)")),
    rule(
        "schedule_free_sgd",
        "gch.rules.schedule_free_sgd(lr)",
        Peer("schedulefree.SGDScheduleFree(params, lr=lr)"),
        Peer("optax.contrib.schedule_free_sgd(lr)"),
        Peer("pytorch_optimizer.ScheduleFreeSGD(params, lr=lr)"),
        Peer(
            "schedulefree.SGDScheduleFree(params, lr=lr, warmup_steps=7)",
            ours="gch.rules.schedule_free_sgd(lr, warmup_steps=7)",
            why="here with a warm-up",
        ),
        Peer(
            "optax.contrib.schedule_free_sgd(lr, warmup_steps=7)",
            ours="gch.rules.schedule_free_sgd(lr, warmup_steps=7)",
            why="its warm-up begins with a rate of 0, one update late",
        ),
    ),
    rule(
        "schedule_free_adamw",
        "gch.rules.schedule_free_adamw(lr)",
        Peer("schedulefree.AdamWScheduleFree(params, lr=lr)"),
        Peer("optax.contrib.schedule_free_adamw(lr)"),
        Peer("pytorch_optimizer.ScheduleFreeAdamW(params, lr=lr)"),
    ),
    rule(
        "schedule_free_radam",
        "gch.rules.schedule_free_radam(lr)",
        Peer("schedulefree.RAdamScheduleFree(params, lr=lr)"),
        Peer("pytorch_optimizer.ScheduleFreeRAdam(params, lr=lr)"),
    ),
)

BY_TENSOR = (
    rule(
        "lamb",
        "gch.rules.lamb(lr)",
        Peer("optax.lamb(lr)"),
        Peer(
            "timm.optim.Lamb(params, lr=lr)",
            "timm.optim.Lamb(params, lr=lr, max_grad_norm=None, always_adapt=True, weight_decay=0.0)",
            why="clips the norm of all gradients to 1 and has a decay of 0.01 by default",
        ),
        Peer(
            "torch_optimizer.Lamb(params, lr=lr)",
            "torch_optimizer.Lamb(params, lr=lr, clamp_value=1e9, debias=True)",
            why="no correction by default, which the ratio takes out but for eps; with debias it is outside the ratio",
        ),
        Peer(
            "pytorch_optimizer.Lamb(params, lr=lr)",
            "pytorch_optimizer.Lamb(params, lr=lr, adam_debias=True)",
            why="a correction outside the ratio by default; with adam_debias none at all, which is seen in eps",
        ),
    ),
    rule(
        "lars",
        "gch.rules.lars(lr)",
        Peer("optax.lars(lr)"),
        Peer(
            "pytorch_optimizer.LARS(params, lr=lr, weight_decay=0.1)",
            ours=("gch.rules.lars(lr, 0.1, None, 1e-3, 0.0, gch.min_ndim(2), norms_apart=True, rate_last=True)"),
            why="norms of gradient and weights apart, the rate behind the momentum; its vectors have no ratio",
        ),
        Peer(
            "timm.optim.Lars(params, lr=lr)",
            "timm.optim.Lars(params, lr=lr, momentum=0.9, always_adapt=True)",
            "gch.rules.lars(lr, eps=1e-8, norms_apart=True, rate_last=True)",
            why="no momentum by default, a ratio only where there is a decay; the rate is behind the momentum",
        ),
    ),
    rule(
        "fromage", "gch.rules.fromage(lr)", Peer("optax.fromage(lr)"), Peer("pytorch_optimizer.Fromage(params, lr=lr)")
    ),
    rule(
        "novograd",
        "gch.rules.novograd(lr)",
        Peer("optax.novograd(lr)"),
        Peer(
            "pytorch_optimizer.NovoGrad(params, lr=lr)",
            ours="gch.rules.novograd(lr, 0.95, 0.98, 1e-8)",
            why="b1 0.95, b2 0.98, eps 1e-8",
        ),
        Peer(
            "timm.optim.NvNovoGrad(params, lr=lr)",
            ours="gch.rules.novograd(lr, 0.95, 0.98, 1e-8)",
            why="b1 0.95, b2 0.98, eps 1e-8; its norms are kept in float32",
        ),
        Peer(
            "torch_optimizer.NovoGrad(params, lr=lr)",
            ours="gch.rules.novograd(lr, 0.95, 0.0, 1e-8)",
            why="b1 0.95, b2 0, eps 1e-8; its norms are kept in float32",
        ),
    ),
    rule(
        "sm3",
        "gch.rules.sm3(lr)",
        Peer("optax.sm3(lr)"),
        Peer(
            "pytorch_optimizer.SM3(params, lr=lr)",
            "pytorch_optimizer.SM3(params, lr=lr, momentum=0.9, eps=1e-8)",
            why="no momentum and eps 1e-30 by default",
        ),
    ),
    rule(
        "adamp",
        "gch.rules.adamp(lr)",
        Peer("torch_optimizer.AdamP(params, lr=lr)"),
        Peer("timm.optim.AdamP(params, lr=lr)"),
        Peer("pytorch_optimizer.AdamP(params, lr=lr)", why=CORRECTED_EPS),
    ),
    rule(
        "sgdp",
        "gch.rules.sgdp(lr)",
        Peer("torch_optimizer.SGDP(params, lr=lr)"),
        Peer("timm.optim.SGDP(params, lr=lr)"),
        Peer("pytorch_optimizer.SGDP(params, lr=lr)"),
        Peer(
            "torch_optimizer.SGDP(params, lr=lr, momentum=0.9, nesterov=True)",
            ours="gch.rules.sgdp(lr, 0.9, nesterov=True)",
            why="here with momentum",
        ),
        Peer(
            "torch_optimizer.SGDP(params, lr=lr, momentum=0.9, delta=0.6)",
            ours="gch.rules.sgdp(lr, 0.9, delta=0.6)",
            why="without nesterov it writes the projected step over the momentum",
        ),
    ),
    rule(
        "stable_adamw",
        "gch.rules.stable_adamw(lr)",
        Peer(
            "pytorch_optimizer.StableAdamW(params, lr=lr)",
            ours="gch.rules.stable_adamw(lr, eps=1e-8)",
            why="eps 1e-8; a compensated sum of its own",
        ),
    ),
)

OF_MOMENTA = (
    rule(
        "aggmo",
        "gch.rules.aggmo(lr)",
        Peer("pytorch_optimizer.AggMo(params, lr=lr)"),
        Peer("torch_optimizer.AggMo(params, lr=lr)"),
    ),
)

OF_MATRICES = (
    rule(
        "muon",
        "gch.rules.muon(lr, matrices=gch.min_ndim(2))",
        Peer("torch.optim.Muon(params, lr=lr)", why=BFLOAT16),
        Peer(
            'pytorch_optimizer.Muon([{"params": params, "use_muon": True}], lr=lr)',
            ours="gch.rules.muon(lr, matrices=gch.min_ndim(2), weight_decay=0.0)",
            why=BFLOAT16,
        ),
        Peer(
            "optax.contrib.muon(lr)",
            ours="gch.rules.muon(lr, matrices=gch.min_ndim(2), weight_decay=0.0, dtype=None)",
            why="its factor is of the other orientation, and its momentum is corrected",
        ),
        Peer(
            "optax.contrib.muon(lr, nesterov=False)",
            "optax.contrib.muon(lr, nesterov=False, muon_weight_dimension_numbers=lambda params: "
            "{name: optax.contrib.MuonDimensionNumbers(1, 0) for name in params})",
            "gch.rules.muon(lr, matrices=gch.min_ndim(2), weight_decay=0.0, dtype=None, nesterov=False)",
            why="its factor is of the other orientation by default; whence the last 1e-8 are was not looked for",
        ),
        Peer(
            "timm.optim.Muon(params, lr=lr)",
            'timm.optim.Muon(params, lr=lr, nesterov=True, adjust_lr_fn="original", ns_coefficients="original")',
            "gch.rules.muon(lr, matrices=gch.min_ndim(2), weight_decay=0.0)",
            why="no nesterov, Moonlight's factor and other coefficients by default; " + BFLOAT16,
        ),
        on=MATRICES,
    ),
    rule(
        "normuon",
        "gch.rules.normuon(lr, matrices=gch.min_ndim(2))",
        Peer('pytorch_optimizer.NorMuon([{"params": params, "use_muon": True}], lr=lr)', why=BFLOAT16),
        on=MATRICES,
    ),
    rule(
        "adamuon",
        "gch.rules.adamuon(lr, matrices=gch.min_ndim(2))",
        Peer(
            'pytorch_optimizer.AdaMuon([{"params": params, "use_muon": True}], lr=lr)',
            why="of the mean gradient, not of its sign; no nesterov, no decay, another factor",
        ),
        on=MATRICES,
    ),
    rule("came", "gch.rules.came(lr)", Peer("pytorch_optimizer.CAME(params, lr=lr)"), on=(*MATRICES, "bias")),
    rule("soap", "gch.rules.soap(lr)", Peer("pytorch_optimizer.SOAP(params, lr=lr)", why=FLOAT32_BASES)),
)

RULES = (*OF_TORCH, *ELEMENTWISE, *BY_TENSOR, *OF_MOMENTA, *OF_MATRICES)
