"""gradchain: the optimization part of a PyTorch training loop as one chain of gradient transforms.

Import it as `import gradchain as gch`. Users meet two things: links, which are chained, and the Updater that
`chain(…).bind(model)` gives. Schedules other than the ones here are in `gch.schedules`.
"""

from typing import TYPE_CHECKING

from gradchain._lazy import on_first_use
from gradchain._version import __version__ as __version__

if TYPE_CHECKING:
    from gradchain import rules as rules
    from gradchain import schedules as schedules
    from gradchain import see as see
    from gradchain import selectors as selectors
    from gradchain.adapters import from_torch as from_torch
    from gradchain.adapters import register as register
    from gradchain.adapters.adopting import adopt as adopt
    from gradchain.adapters.taking.of_mmengine import load_mmengine as load_mmengine
    from gradchain.adapters.taking.of_optax import load_optax as load_optax
    from gradchain.adapters.taking.of_torch import load_torch as load_torch
    from gradchain.checkpoints import Checkpointer as Checkpointer
    from gradchain.combinators.accumulate import accumulate as accumulate
    from gradchain.combinators.amp_scale import amp_scale as amp_scale
    from gradchain.combinators.freeze import freeze as freeze
    from gradchain.combinators.guard import guard as guard
    from gradchain.combinators.masked import masked as masked
    from gradchain.combinators.partition import partition as partition
    from gradchain.combinators.partition import rest as rest
    from gradchain.combinators.skip_nonfinite import skip_nonfinite as skip_nonfinite
    from gradchain.combinators.switch import switch as switch
    from gradchain.combinators.when import when as when
    from gradchain.core.chain import chain as chain
    from gradchain.core.config import from_config as from_config
    from gradchain.core.config import to_config as to_config
    from gradchain.core.context import Context as Context
    from gradchain.core.hyper import Hyper as Hyper
    from gradchain.core.refusal import Diverged as Diverged
    from gradchain.core.roles import AtTicks as AtTicks
    from gradchain.core.roles import AverageState as AverageState
    from gradchain.core.roles import Freezes as Freezes
    from gradchain.core.roles import Gate as Gate
    from gradchain.core.roles import KeepsWindow as KeepsWindow
    from gradchain.core.roles import TakesTurns as TakesTurns
    from gradchain.core.roles import WindowState as WindowState
    from gradchain.core.roles import Wraps as Wraps
    from gradchain.core.roles import WritesBuffers as WritesBuffers
    from gradchain.core.says import Says as Says
    from gradchain.core.scalars import Count as Count
    from gradchain.core.scalars import Scalars as Scalars
    from gradchain.core.scalars import atan2 as atan2
    from gradchain.core.scalars import erf as erf
    from gradchain.core.scalars import exp as exp
    from gradchain.core.scalars import expm1 as expm1
    from gradchain.core.scalars import floor as floor
    from gradchain.core.scalars import log as log
    from gradchain.core.scalars import log1p as log1p
    from gradchain.core.scalars import maximum as maximum
    from gradchain.core.scalars import minimum as minimum
    from gradchain.core.scalars import remainder as remainder
    from gradchain.core.scalars import round as round
    from gradchain.core.scalars import sqrt as sqrt
    from gradchain.core.scalars import tanh as tanh
    from gradchain.core.scalars import where as where
    from gradchain.core.state import State as State
    from gradchain.core.tensors import Tensors as Tensors
    from gradchain.core.transform import Transform as Transform
    from gradchain.core.weights import Weights as Weights
    from gradchain.core.weights import apply_updates as apply_updates
    from gradchain.loop import loop as loop
    from gradchain.optimizers.descent import asgd as asgd
    from gradchain.optimizers.descent import lion as lion
    from gradchain.optimizers.descent import rprop as rprop
    from gradchain.optimizers.descent import sgd as sgd
    from gradchain.optimizers.moments import adam as adam
    from gradchain.optimizers.moments import adamax as adamax
    from gradchain.optimizers.moments import adamw as adamw
    from gradchain.optimizers.moments import nadam as nadam
    from gradchain.optimizers.moments import nadamw as nadamw
    from gradchain.optimizers.moments import radam as radam
    from gradchain.optimizers.moments import sparse_adam as sparse_adam
    from gradchain.optimizers.squares import adadelta as adadelta
    from gradchain.optimizers.squares import adagrad as adagrad
    from gradchain.optimizers.squares import rmsprop as rmsprop
    from gradchain.rules.adafactors import adafactor as adafactor
    from gradchain.schedules import by as by
    from gradchain.schedules import constant as constant
    from gradchain.schedules import cosine as cosine
    from gradchain.schedules import join as join
    from gradchain.schedules import linear as linear
    from gradchain.selectors import PerParameter as PerParameter
    from gradchain.selectors import Selector as Selector
    from gradchain.selectors import bias as bias
    from gradchain.selectors import choose as choose
    from gradchain.selectors import depthwise as depthwise
    from gradchain.selectors import embedding as embedding
    from gradchain.selectors import everything as everything
    from gradchain.selectors import first as first
    from gradchain.selectors import layer_decay as layer_decay
    from gradchain.selectors import min_ndim as min_ndim
    from gradchain.selectors import multiply as multiply
    from gradchain.selectors import named as named
    from gradchain.selectors import ndim as ndim
    from gradchain.selectors import norm as norm
    from gradchain.selectors import owner as owner
    from gradchain.selectors import owner_named as owner_named
    from gradchain.transforms.adam import scale_by_adam as scale_by_adam
    from gradchain.transforms.average import average_params as average_params
    from gradchain.transforms.clip import clip_by_norm as clip_by_norm
    from gradchain.transforms.clip import clip_by_value as clip_by_value
    from gradchain.transforms.decay import add_decayed_weights as add_decayed_weights
    from gradchain.transforms.lion import scale_by_lion as scale_by_lion
    from gradchain.transforms.noise import add_noise as add_noise
    from gradchain.transforms.nonfinite import nan_to_num as nan_to_num
    from gradchain.transforms.plateau import reduce_on_plateau as reduce_on_plateau
    from gradchain.transforms.project import project as project
    from gradchain.transforms.rms import scale_by_rms as scale_by_rms
    from gradchain.transforms.sam import sam as sam
    from gradchain.transforms.scale import scale as scale
    from gradchain.transforms.scale import scale_by_learning_rate as scale_by_learning_rate
    from gradchain.transforms.scale import scale_by_schedule as scale_by_schedule
    from gradchain.transforms.sign import scale_by_sign as scale_by_sign
    from gradchain.transforms.stateless import stateless as stateless
    from gradchain.transforms.trace import trace as trace
    from gradchain.updater.deployed import read_weights as read_weights
    from gradchain.updater.group import Group as Group
    from gradchain.updater.group import group as group
    from gradchain.updater.info import UpdateInfo as UpdateInfo
    from gradchain.updater.state_dict import LoadReport as LoadReport
    from gradchain.updater.updater import Updater as Updater

# Where each name lives. Its module is loaded when the name is asked for first; to a checker all are imported above.
_HOMES = {
    "AtTicks": "core.roles",
    "AverageState": "core.roles",
    "Checkpointer": "checkpoints",
    "Context": "core.context",
    "Count": "core.scalars",
    "Diverged": "core.refusal",
    "Freezes": "core.roles",
    "Gate": "core.roles",
    "Group": "updater.group",
    "Hyper": "core.hyper",
    "KeepsWindow": "core.roles",
    "LoadReport": "updater.state_dict",
    "PerParameter": "selectors",
    "Says": "core.says",
    "Scalars": "core.scalars",
    "Selector": "selectors",
    "State": "core.state",
    "TakesTurns": "core.roles",
    "Tensors": "core.tensors",
    "Transform": "core.transform",
    "UpdateInfo": "updater.info",
    "Updater": "updater.updater",
    "Weights": "core.weights",
    "WindowState": "core.roles",
    "Wraps": "core.roles",
    "WritesBuffers": "core.roles",
    "accumulate": "combinators.accumulate",
    "adadelta": "optimizers.squares",
    "adafactor": "rules.adafactors",
    "adagrad": "optimizers.squares",
    "adam": "optimizers.moments",
    "adamax": "optimizers.moments",
    "adamw": "optimizers.moments",
    "add_decayed_weights": "transforms.decay",
    "add_noise": "transforms.noise",
    "adopt": "adapters.adopting",
    "amp_scale": "combinators.amp_scale",
    "apply_updates": "core.weights",
    "asgd": "optimizers.descent",
    "atan2": "core.scalars",
    "average_params": "transforms.average",
    "bias": "selectors",
    "by": "schedules",
    "chain": "core.chain",
    "choose": "selectors",
    "clip_by_norm": "transforms.clip",
    "clip_by_value": "transforms.clip",
    "constant": "schedules",
    "cosine": "schedules",
    "depthwise": "selectors",
    "embedding": "selectors",
    "erf": "core.scalars",
    "everything": "selectors",
    "exp": "core.scalars",
    "expm1": "core.scalars",
    "first": "selectors",
    "floor": "core.scalars",
    "freeze": "combinators.freeze",
    "from_config": "core.config",
    "from_torch": "adapters",
    "group": "updater.group",
    "guard": "combinators.guard",
    "join": "schedules",
    "layer_decay": "selectors",
    "linear": "schedules",
    "lion": "optimizers.descent",
    "load_mmengine": "adapters.taking.of_mmengine",
    "load_optax": "adapters.taking.of_optax",
    "load_torch": "adapters.taking.of_torch",
    "log": "core.scalars",
    "log1p": "core.scalars",
    "loop": "loop",
    "masked": "combinators.masked",
    "maximum": "core.scalars",
    "min_ndim": "selectors",
    "minimum": "core.scalars",
    "multiply": "selectors",
    "nadam": "optimizers.moments",
    "nadamw": "optimizers.moments",
    "named": "selectors",
    "nan_to_num": "transforms.nonfinite",
    "ndim": "selectors",
    "norm": "selectors",
    "owner": "selectors",
    "owner_named": "selectors",
    "partition": "combinators.partition",
    "project": "transforms.project",
    "radam": "optimizers.moments",
    "read_weights": "updater.deployed",
    "reduce_on_plateau": "transforms.plateau",
    "register": "adapters",
    "remainder": "core.scalars",
    "rest": "combinators.partition",
    "rmsprop": "optimizers.squares",
    "round": "core.scalars",
    "rprop": "optimizers.descent",
    "sam": "transforms.sam",
    "scale": "transforms.scale",
    "scale_by_adam": "transforms.adam",
    "scale_by_learning_rate": "transforms.scale",
    "scale_by_lion": "transforms.lion",
    "scale_by_rms": "transforms.rms",
    "scale_by_schedule": "transforms.scale",
    "scale_by_sign": "transforms.sign",
    "sgd": "optimizers.descent",
    "skip_nonfinite": "combinators.skip_nonfinite",
    "sparse_adam": "optimizers.moments",
    "sqrt": "core.scalars",
    "stateless": "transforms.stateless",
    "switch": "combinators.switch",
    "tanh": "core.scalars",
    "to_config": "core.config",
    "trace": "transforms.trace",
    "when": "combinators.when",
    "where": "core.scalars",
}
_SHOWN = ("rules", "schedules", "see", "selectors")
_ROOMS = (*_SHOWN, "adapters", "checkpoints", "combinators", "core", "engine", "optimizers", "transforms", "updater")

if not TYPE_CHECKING:  # a checker has the imports: any other name is a mistake to it
    __all__ = sorted(["__version__", *_HOMES, *_SHOWN])
    __getattr__, __dir__ = on_first_use(__name__, _HOMES, _ROOMS)
