"""The one table of links. A new link is one more row: here, or of a family in a `cases_….py` of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cases_compose
import cases_elem
import cases_matrix
import cases_owning
import cases_pertensor
import cases_torch
import rules
import torch
from case import Case, Clip
from harness import overflowing, spiky, with_nans, with_nonfinite
from peers import Peer, joint_twin, of_optax, of_torch, sgd, twin
from rules import falling, noisy, rising
from torch import Tensor, nn

import gradchain as gch

INF = math.inf
DATA_DEPENDENT = "it reads from the device whether to hold the chain"


def _torch_clip(p: float) -> Peer:
    def clip(params: list[nn.Parameter], t: int) -> None:
        params = [q for q in params if q.numel()]  # torch has no max norm of nothing
        if params:
            nn.utils.clip_grad_norm_(params, 2.0, norm_type=p)

    return of_torch(f"torch.nn.utils.clip_grad_norm_({p})", sgd, before=clip)


def _norm(p: float) -> Callable[[dict[str, Tensor]], float]:
    return lambda g: torch.linalg.vector_norm(torch.cat([t.flatten() for t in g.values()]), p).item()


def _adam(**given: Any) -> Callable[..., Any]:
    return lambda weights, lr: torch.optim.Adam(weights.values(), lr=lr, **given)


def _of_sgd(**given: Any) -> Callable[..., Any]:
    return lambda weights, lr: torch.optim.SGD(weights.values(), lr=lr, **given)


def _split(weights: dict[str, nn.Parameter], lr: float) -> list[dict[str, Any]]:
    """Two parameter groups: the body, and the rest."""
    body = [w for n, w in weights.items() if n.startswith("body.")]
    rest = [w for n, w in weights.items() if not n.startswith("body.")]
    return [{"params": body, "body": True}, {"params": rest, "body": False}]


def _decayed_body(weights: dict[str, nn.Parameter], lr: float) -> Any:
    groups = _split(weights, lr)
    groups[0]["weight_decay"] = 0.1
    return torch.optim.SGD(groups, lr=lr)


def _two_optimizers(weights: dict[str, nn.Parameter], lr: float) -> Any:
    body, rest = _split(weights, lr)
    return torch.optim.Adam(body["params"], lr=lr), torch.optim.SGD(rest["params"], lr=lr, momentum=0.9)


def _body(tree: dict[str, Any]) -> dict[str, bool]:
    return {n: n.startswith("body.") for n in tree}


def _labels(tree: dict[str, Any]) -> dict[str, str]:
    return {n: "body" if n.startswith("body.") else "rest" for n in tree}


def _group(**values: Any) -> Callable[[dict[str, Any], int], None]:
    """Writes scheduled hyperparameters into a group."""
    return lambda group, t: group.update({k: v(t) for k, v in values.items()})


CASES: tuple[Case, ...] = (
    # multiplications
    Case(
        "scale",
        gch.scale(0.3),
        (
            of_torch(
                "torch.optim.SGD", lambda w, lr: torch.optim.SGD([{"params": w.values(), "multiplier": 0.3}], lr=lr)
            ),
            of_optax("optax.scale", lambda ox, lr: ox.chain(ox.scale(0.3), ox.scale_by_learning_rate(lr))),
        ),
        lr=falling,
        degree=1,
    ),
    Case(
        "scale_by_schedule",
        gch.scale_by_schedule(rising),
        (
            twin(lambda w, g, m, lr, t: w - lr * rising(t) * g),
            of_optax("optax.scale_by_schedule", lambda ox, lr: ox.chain(ox.scale_by_schedule(rising), ox.scale(-lr))),
        ),
        degree=1,
        uses_step=True,
    ),
    Case(
        "scale_by_learning_rate",
        gch.scale_by_learning_rate(0.5),
        (
            of_torch("torch.optim.SGD", sgd),
            of_optax("optax.scale_by_learning_rate", lambda ox, lr: ox.scale_by_learning_rate(0.5)),
        ),
        lr=None,
        degree=1,
    ),
    Case(
        "scale_by_learning_rate-up",
        gch.chain(gch.scale_by_learning_rate(gch.linear(1.0, 0.25, 10), flip_sign=False)),
        (
            twin(lambda w, g, m, lr, t: w + (1 - 0.075 * min(t, 10)) * g),
            of_optax(
                "optax.scale_by_learning_rate",
                lambda ox, lr: ox.scale_by_learning_rate(ox.linear_schedule(1.0, 0.25, 10), flip_sign=False),
                rtol=1e-6,
                why="its linear_schedule divides an int32 counter, which jax does in float32",
            ),
        ),
        covers="scale_by_learning_rate",
        lr=None,
        degree=1,
        uses_step=True,
    ),
    # directions
    Case(
        "scale_by_adam",
        gch.scale_by_adam(),
        (
            of_torch("torch.optim.Adam", _adam()),
            of_optax("optax.scale_by_adam", lambda ox, lr: ox.chain(ox.scale_by_adam(), ox.scale_by_learning_rate(lr))),
        ),
        lr=falling,
    ),
    Case(
        "scale_by_adam-eps",
        gch.scale_by_adam(0.8, 0.95, 0.3, eps_root=0.0),
        (
            of_torch("torch.optim.Adam(eps=0.3)", _adam(betas=(0.8, 0.95), eps=0.3)),
            of_optax("optax.scale_by_adam", lambda ox, lr: ox.chain(ox.scale_by_adam(0.8, 0.95, 0.3), ox.scale(-lr))),
        ),
    ),
    Case(
        "scale_by_adam-eps_root",
        gch.scale_by_adam(eps_root=0.1),
        (
            of_optax("optax.scale_by_adam", lambda ox, lr: ox.chain(ox.scale_by_adam(eps_root=0.1), ox.scale(-lr))),
            twin(rules.adam(eps_root=0.1)),
        ),
    ),
    Case(
        "scale_by_adam-no-eps",
        gch.scale_by_adam(eps=0),
        (of_torch("torch.optim.Adam(eps=0)", _adam(eps=0.0)), twin(rules.adam(eps=0.0))),
        degree=0,
        zero=False,
        low="the square of bfloat16's smallest number is zero in float32, and there is no eps",
    ),
    Case(
        "scale_by_adam-nesterov",
        gch.scale_by_adam(nesterov=True),
        (
            of_optax(
                "optax.scale_by_adam(nesterov=True)",
                lambda ox, lr: ox.chain(ox.scale_by_adam(nesterov=True), ox.scale(-lr)),
            ),
            twin(rules.adam(nesterov=True)),
        ),
    ),
    Case(
        "scale_by_adam-scheduled",
        gch.scale_by_adam(b1=rules.b1, b2=rules.b2),
        (of_torch("torch.optim.Adam", _adam(), group=_group(betas=lambda t: (rules.b1(t), rules.b2(t)))),),
        uses_step=True,
    ),
    Case(
        "scale_by_adam-mu_dtype",
        gch.scale_by_adam(mu_dtype=torch.float32),
        (twin(rules.adam(mu_dtype=torch.float32), name="a twin that rounds mu when it stores it"),),
    ),
    Case(
        "scale_by_adam-nu_dtype",
        gch.scale_by_adam(nu_dtype=torch.float32),
        (twin(rules.adam(nu_dtype=torch.float32), name="a twin that rounds nu when it stores it"),),
    ),
    Case(
        "scale_by_lion",
        gch.scale_by_lion(),
        (
            of_optax("optax.scale_by_lion", lambda ox, lr: ox.chain(ox.scale_by_lion(), ox.scale(-lr))),
            twin(rules.lion(0.9, 0.99)),
        ),
        degree=0,
    ),
    Case(
        "scale_by_sign",
        gch.scale_by_sign(),
        (
            twin(lambda w, g, m, lr, t: w - lr * g.sign(), name="torch.sign"),
            of_optax("optax.scale_by_sign", lambda ox, lr: ox.chain(ox.scale_by_sign(), ox.scale_by_learning_rate(lr))),
        ),
        lr=falling,
        degree=0,
    ),
    Case(
        "trace",
        gch.trace(0.9),
        (
            of_torch("torch.optim.SGD(momentum=0.9)", _of_sgd(momentum=0.9)),
            of_optax("optax.trace", lambda ox, lr: ox.chain(ox.trace(0.9), ox.scale_by_learning_rate(lr))),
        ),
        lr=falling,
        degree=1,
    ),
    Case(
        "trace-nesterov",
        gch.trace(0.8, nesterov=True),
        (
            of_torch("torch.optim.SGD(nesterov=True)", _of_sgd(momentum=0.8, nesterov=True)),
            of_optax(
                "optax.trace(nesterov=True)", lambda ox, lr: ox.chain(ox.trace(0.8, nesterov=True), ox.scale(-lr))
            ),
        ),
        degree=1,
    ),
    Case(
        "trace-scheduled",
        gch.trace(gch.linear(0.5, 0.95, 15)),
        (of_torch("torch.optim.SGD", _of_sgd(momentum=0.5), group=_group(momentum=gch.linear(0.5, 0.95, 15))),),
        degree=1,
        uses_step=True,
    ),
    # decay
    Case(
        "add_decayed_weights",
        gch.add_decayed_weights(0.1),
        (
            of_torch("torch.optim.SGD(weight_decay=0.1)", _of_sgd(weight_decay=0.1)),
            of_optax("optax.add_decayed_weights", lambda ox, lr: ox.chain(ox.add_decayed_weights(0.1), ox.scale(-lr))),
        ),
        uses_params=True,
    ),
    Case(
        "add_decayed_weights-scheduled",
        gch.add_decayed_weights(rising),
        (
            of_torch("torch.optim.SGD", _of_sgd(weight_decay=0.1), group=_group(weight_decay=rising)),
            of_optax(
                "optax.add_decayed_weights",
                lambda ox, lr: ox.chain(ox.add_decayed_weights(rising), ox.scale_by_learning_rate(lr)),
            ),
        ),
        lr=falling,
        uses_step=True,
        uses_params=True,
    ),
    # noise
    Case(
        "add_noise",
        gch.add_noise(0.3, 0.55, seed=5),
        (joint_twin(noisy),),
        lr=falling,
        scope="tensor",
        uses_step=True,
        own_time=False,
    ),
    # bounds
    Case(
        "clip_by_norm",
        gch.clip_by_norm(2.0),
        (_torch_clip(2.0),),
        draw=spiky,
        scope="joint",
        clip=Clip(_norm(2.0), 2.0),
    ),
    Case(
        "clip_by_norm-no-eps",
        gch.clip_by_norm(2.0, eps=0),
        (
            of_optax(
                "optax.clip_by_global_norm",
                lambda ox, lr: ox.chain(ox.clip_by_global_norm(2.0), ox.scale_by_learning_rate(lr)),
            ),
            joint_twin(rules.clipped(2.0)),
        ),
        lr=falling,
        draw=spiky,
        scope="joint",
        clip=Clip(_norm(2.0), 2.0),
    ),
    Case(
        "clip_by_norm-max",
        gch.clip_by_norm(2.0, p=INF),
        (_torch_clip(INF),),
        draw=spiky,
        scope="joint",
        clip=Clip(_norm(INF), 2.0),
    ),
    Case(
        "clip_by_norm-tensor",
        gch.clip_by_norm(2.0, per="tensor"),
        (
            of_torch(
                "torch.nn.utils.clip_grad_norm_ of each",
                sgd,
                before=lambda params, t: [nn.utils.clip_grad_norm_([p], 2.0) for p in params],
            ),
        ),
        draw=spiky,
        scope="tensor",
        clip=Clip(lambda g: max(_norm(2.0)({n: t}) for n, t in g.items()), 2.0, keeps_direction=False),
    ),
    Case(
        "clip_by_norm-groups",
        gch.clip_by_norm(gch.linear(1.0, 3.0, 10), per=[gch.named("body.*"), ~gch.named("body.*")]),
        (of_torch("torch.nn.utils.clip_grad_norm_ of each group", sgd, before=rules.clip_in_groups),),
        draw=spiky,
        scope="joint",
        uses_step=True,
        uses_params=True,
        alone=False,
    ),
    Case(
        "clip_by_value",
        gch.clip_by_value(0.8),
        (
            of_torch(
                "torch.nn.utils.clip_grad_value_",
                sgd,
                complex=False,
                before=lambda params, t: nn.utils.clip_grad_value_(params, 0.8),
            ),
            of_optax("optax.clip", lambda ox, lr: ox.chain(ox.clip(0.8), ox.scale(-lr))),
        ),
        draw=spiky,
        clip=Clip(_norm(INF), 0.8, keeps_direction=False),
    ),
    Case(
        "nan_to_num",
        gch.nan_to_num(nan=0.5, posinf=3.0, neginf=-2.0),
        (twin(lambda w, g, m, lr, t: w - lr * torch.nan_to_num(g, 0.5, 3.0, -2.0), name="torch.nan_to_num"),),
        draw=with_nonfinite,
    ),
    Case(
        "nan_to_num-nans",
        gch.nan_to_num(),
        (of_optax("optax.zero_nans", lambda ox, lr: ox.chain(ox.zero_nans(), ox.scale(-lr))),),
        draw=with_nans,
        degree=1,
    ),
    # functions of the user's
    Case(
        "stateless",
        gch.stateless(rules.with_weights),
        (
            of_optax(
                "optax.stateless",
                lambda ox, lr: ox.chain(ox.stateless(lambda g, w: {n: g[n] + 0.1 * w[n] for n in g}), ox.scale(-lr)),
            ),
            twin(lambda w, g, m, lr, t: w - lr * (g + 0.1 * w)),
        ),
        uses_params=True,
    ),
    Case(
        "stateless-map",
        gch.stateless(rules.centred),
        (
            of_optax(
                "optax.stateless_with_tree_map",
                lambda ox, lr: ox.chain(
                    ox.stateless_with_tree_map(lambda g, w: g - g.mean() if g.size else g), ox.scale(-lr)
                ),
            ),
            twin(lambda w, g, m, lr, t: w - lr * rules.centre(g)),
        ),
        scope="tensor",
        degree=1,
        uses_params=True,
    ),
    # links that own or average the weights
    Case(
        "project",
        gch.project(rules.at_least_zero),
        (
            of_torch("a clamp after torch.optim.SGD", sgd, complex=False, after=rules.clamp_after),
            of_optax(
                "optax.keep_params_nonnegative", lambda ox, lr: ox.chain(ox.scale(-lr), ox.keep_params_nonnegative())
            ),
        ),
        uses_params=True,
    ),
    Case(
        "project-selected",
        gch.project(rules.halfway, gch.named("body.*")),
        (Peer("a float64 twin", rules.halfway_run, complex=True),),
        uses_params=True,
        alone=False,
    ),
    Case(
        "average_params",
        gch.average_params(0.9, start=1),
        (of_torch("torch.optim.swa_utils.AveragedModel(0.9)", sgd, watch=rules.averaged_model(0.9)),),
        watch=rules.average,
        uses_step=True,
        uses_params=True,
        own_time=False,
    ),
    Case(
        "average_params-mean",
        gch.average_params("mean", start=2, every=3),
        (of_torch("torch.optim.swa_utils.AveragedModel", sgd, watch=rules.averaged_model(None, 2, 3)),),
        watch=rules.average,
        uses_step=True,
        uses_params=True,
        own_time=False,
    ),
    # gates and windows
    Case(
        "accumulate",
        gch.accumulate(3),
        (
            joint_twin(rules.windows(3)),
            of_optax(
                "optax.MultiSteps",
                lambda ox, lr: ox.MultiSteps(ox.sgd(lr), 3, use_grad_mean=True),
                rtol=1e-6,
                why="it accumulates in float32 and casts, whatever the gradients are",
            ),
        ),
        scaled=True,
        degree=1,
        may_hold=True,
        own_time=False,
    ),
    Case(
        "accumulate-sum",
        gch.accumulate(2, reduce="sum", dtype=torch.float64),
        (joint_twin(rules.windows(2, mean=False)),),
        degree=1,
        may_hold=True,
        own_time=False,
    ),
    Case(
        "amp_scale",
        # powers of two, since GradScaler keeps its scale and its inverse in float32; the scale itself is watched
        gch.amp_scale(init_scale=4.0, growth_interval=3, always=True),
        (Peer("torch.amp.GradScaler", rules.grad_scaler),),
        draw=overflowing,
        scaled=True,
        watch=lambda state: {"loss scale": state.links["amp_scale"].scale},
        scope="joint",
        degree=1,
        uses_params=False,
        may_hold=True,
        gate=DATA_DEPENDENT,
        own_time=False,
    ),
    Case(
        "skip_nonfinite",
        gch.skip_nonfinite(),
        (
            of_optax("optax.apply_if_finite", lambda ox, lr: ox.apply_if_finite(ox.sgd(lr), 5)),
            joint_twin(rules.skipped),
        ),
        draw=overflowing,
        scope="joint",
        degree=1,
        may_hold=True,
        gate=DATA_DEPENDENT,
        own_time=False,
    ),
    Case(
        "freeze",
        gch.freeze(gch.named("body.*"), until=7),
        (of_torch("torch.optim.SGD with .grad None", sgd, before=rules.forget_body),),
        degree=1,
        uses_step=True,
        uses_params=True,
        alone=False,
    ),
    # links that hold links
    Case(
        "masked",
        gch.masked(gch.add_decayed_weights(0.1), gch.named("body.*")),
        (
            of_torch("torch.optim.SGD with two groups", _decayed_body),
            of_optax(
                "optax.masked", lambda ox, lr: ox.chain(ox.masked(ox.add_decayed_weights(0.1), _body), ox.scale(-lr))
            ),
        ),
        uses_params=True,
        alone=False,
    ),
    Case(
        "partition",
        gch.partition(
            ("body", gch.named("body.*"), gch.scale_by_adam()),
            (gch.rest, gch.chain(gch.trace(0.9), gch.scale(1.0))),
        ),
        (
            of_torch("torch.optim.Adam and torch.optim.SGD", _two_optimizers),
            of_optax(
                "optax.partition",
                lambda ox, lr: ox.chain(
                    ox.partition({"body": ox.scale_by_adam(), "rest": ox.trace(0.9)}, _labels), ox.scale(-lr)
                ),
            ),
        ),
        uses_params=True,
        alone=False,
    ),
    Case(
        "chain",
        gch.chain(
            ("front", gch.clip_by_norm(2.0, eps=0)),
            gch.scale_by_adam(b2=0.99),
            gch.add_decayed_weights(0.1),
            gch.scale_by_learning_rate(0.5),
        ),
        (
            of_torch(
                "torch.optim.AdamW behind clip_grad_norm_",
                lambda w, lr: torch.optim.AdamW(w.values(), lr=lr, betas=(0.9, 0.99), weight_decay=0.1),
                before=rules.clip_exactly,
            ),
            of_optax(
                "optax.named_chain",
                lambda ox, lr: ox.named_chain(
                    ("front", ox.clip_by_global_norm(2.0)), ("adamw", ox.adamw(lr, b2=0.99, weight_decay=0.1))
                ),
            ),
        ),
        lr=None,
        draw=spiky,
        scope="joint",
        uses_params=True,
    ),
    Case(
        "sam",
        gch.sam(0.5),
        (
            joint_twin(rules.sharpness_aware(0.5), name="a float64 twin of davda54/sam"),
            Peer("optax.contrib.sam", rules.optax_sam, absent=False),
        ),
        bend=1.0,
        scope="joint",
        needs_closure=True,
        uses_params=True,
        low="the gradient of its problem depends on the weights, and is taken in their precision",
    ),
    # what is observed
    Case(
        "reduce_on_plateau",
        gch.reduce_on_plateau("val_loss", factor=0.5, patience=2, cooldown=1, min_value=0.2, eps=0.0),
        (
            of_torch(
                "torch.optim.lr_scheduler.ReduceLROnPlateau",
                sgd,
                group=rules.plateaus(factor=0.5, patience=2, cooldown=1, min_lr=0.2 * 0.7, eps=0.0),
            ),
            Peer(
                "optax.contrib.reduce_on_plateau",
                rules.optax_plateau,
                rtol=1e-6,
                why="its scale is a float32 number",
                absent=False,
            ),
        ),
        own_time=False,
    ),
    Case(
        "tick_on_plateau",
        gch.rules.tick_on_plateau("val_loss", "plateau", patience=1),
        (twin(lambda w, g, m, lr, t: w - lr * g, name="nothing"),),
        lr=falling,
        degree=1,
        own_time=False,
    ),
    # rules from elsewhere
    Case(
        "from_torch",
        gch.from_torch("AdamW", lr=0.5, weight_decay=0.1),
        (
            of_torch(
                "torch.optim.AdamW", lambda w, lr: torch.optim.AdamW(w.values(), lr=lr, weight_decay=0.1), rtol=0.0
            ),
            of_optax("optax.adamw", lambda ox, lr: ox.adamw(lr, weight_decay=0.1)),
        ),
        lr=None,
        uses_params=True,
        low="as in torch, it computes in the dtype of the weights",
        in_place="it runs code of torch's",
    ),
    # aliases
    Case(
        "sgd",
        gch.sgd(0.5, momentum=0.9, nesterov=True, weight_decay=0.1),
        (
            of_torch("torch.optim.SGD", _of_sgd(momentum=0.9, nesterov=True, weight_decay=0.1)),
            of_optax(
                "optax.sgd",
                lambda ox, lr: ox.chain(ox.add_decayed_weights(0.1), ox.sgd(lr, momentum=0.9, nesterov=True)),
            ),
        ),
        covers="sgd",
        lr=None,
        uses_params=True,
    ),
    Case(
        "adam",
        gch.adam(0.5, b1=0.8),
        (
            of_torch("torch.optim.Adam", _adam(betas=(0.8, 0.999))),
            of_optax("optax.adam", lambda ox, lr: ox.adam(lr, b1=0.8)),
        ),
        covers="adam",
        lr=None,
    ),
    Case(
        "adamw",
        gch.adamw(0.5),
        (
            of_torch("torch.optim.AdamW", lambda w, lr: torch.optim.AdamW(w.values(), lr=lr)),
            of_optax("optax.adamw", lambda ox, lr: ox.adamw(lr, weight_decay=0.01)),
        ),
        covers="adamw",
        lr=None,
        uses_params=True,
    ),
    Case(
        "nadamw",
        gch.nadamw(0.5, weight_decay=0.1),
        (
            of_optax("optax.nadamw", lambda ox, lr: ox.nadamw(lr, weight_decay=0.1)),
            of_torch(
                "torch.optim.NAdam(momentum_decay=1e4)",
                lambda w, lr: torch.optim.NAdam(
                    w.values(), lr=lr, weight_decay=0.1, decoupled_weight_decay=True, momentum_decay=1e4
                ),
                rtol=1e-6,
                why="its product of momenta is a float32 tensor",
            ),
        ),
        covers="nadamw",
        lr=None,
        uses_params=True,
    ),
    Case(
        "lion",
        gch.lion(0.5, weight_decay=0.1),
        (
            of_optax("optax.lion", lambda ox, lr: ox.lion(lr, weight_decay=0.1)),
            twin(rules.lion(0.9, 0.99, decay=0.1)),
        ),
        covers="lion",
        lr=None,
        uses_params=True,
    ),
    *cases_elem.ROWS,
    *cases_compose.ROWS,
    *cases_owning.ROWS,
    *cases_torch.ROWS,
    *cases_matrix.ROWS,
    *cases_pertensor.ROWS,
)
