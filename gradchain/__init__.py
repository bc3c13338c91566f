"""gradchain: the optimization part of a PyTorch training loop as one chain of gradient transforms.

Import it as `import gradchain as gch`. Users meet two things: links, which are chained, and the Updater that
`chain(…).bind(model)` gives. Schedules other than the ones here are in `gch.schedules`.
"""

import typing as _typing

from gradchain import schedules as schedules
from gradchain import selectors as selectors
from gradchain._version import __version__ as __version__
from gradchain.adapters import from_torch as from_torch
from gradchain.adapters import register as register
from gradchain.combinators import accumulate as accumulate
from gradchain.combinators import amp_scale as amp_scale
from gradchain.combinators import freeze as freeze
from gradchain.combinators import masked as masked
from gradchain.combinators import partition as partition
from gradchain.combinators import rest as rest
from gradchain.combinators import skip_nonfinite as skip_nonfinite
from gradchain.core.chain import chain as chain
from gradchain.core.config import from_config as from_config
from gradchain.core.config import to_config as to_config
from gradchain.core.context import Context as Context
from gradchain.core.hyper import Hyper as Hyper
from gradchain.core.roles import AverageState as AverageState
from gradchain.core.roles import Freezes as Freezes
from gradchain.core.roles import Gate as Gate
from gradchain.core.roles import KeepsWindow as KeepsWindow
from gradchain.core.roles import WindowState as WindowState
from gradchain.core.says import Says as Says
from gradchain.core.scalars import Count as Count
from gradchain.core.scalars import Scalars as Scalars
from gradchain.core.scalars import maximum as maximum
from gradchain.core.scalars import minimum as minimum
from gradchain.core.scalars import sqrt as sqrt
from gradchain.core.scalars import where as where
from gradchain.core.state import State as State
from gradchain.core.tensors import Tensors as Tensors
from gradchain.core.transform import Transform as Transform
from gradchain.core.weights import Weights as Weights
from gradchain.core.weights import apply_updates as apply_updates
from gradchain.optimizers import adam as adam
from gradchain.optimizers import adamw as adamw
from gradchain.optimizers import lion as lion
from gradchain.optimizers import nadamw as nadamw
from gradchain.optimizers import sgd as sgd
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
from gradchain.transforms import add_decayed_weights as add_decayed_weights
from gradchain.transforms import average_params as average_params
from gradchain.transforms import clip_by_norm as clip_by_norm
from gradchain.transforms import clip_by_value as clip_by_value
from gradchain.transforms import nan_to_num as nan_to_num
from gradchain.transforms import project as project
from gradchain.transforms import reduce_on_plateau as reduce_on_plateau
from gradchain.transforms import sam as sam
from gradchain.transforms import scale as scale
from gradchain.transforms import scale_by_adam as scale_by_adam
from gradchain.transforms import scale_by_learning_rate as scale_by_learning_rate
from gradchain.transforms import scale_by_lion as scale_by_lion
from gradchain.transforms import scale_by_schedule as scale_by_schedule
from gradchain.transforms import scale_by_sign as scale_by_sign
from gradchain.transforms import stateless as stateless
from gradchain.transforms import trace as trace
from gradchain.updater import Group as Group
from gradchain.updater import LoadReport as LoadReport
from gradchain.updater import UpdateInfo as UpdateInfo
from gradchain.updater import Updater as Updater
from gradchain.updater import group as group
from gradchain.words.names import answers as _answers

__all__ = [
    "AverageState",
    "Context",
    "Count",
    "Freezes",
    "Gate",
    "Group",
    "Hyper",
    "KeepsWindow",
    "LoadReport",
    "PerParameter",
    "Says",
    "Scalars",
    "Selector",
    "State",
    "Tensors",
    "Transform",
    "UpdateInfo",
    "Updater",
    "Weights",
    "WindowState",
    "__version__",
    "accumulate",
    "adam",
    "adamw",
    "add_decayed_weights",
    "amp_scale",
    "apply_updates",
    "average_params",
    "bias",
    "by",
    "chain",
    "choose",
    "clip_by_norm",
    "clip_by_value",
    "constant",
    "cosine",
    "depthwise",
    "embedding",
    "everything",
    "first",
    "freeze",
    "from_config",
    "from_torch",
    "group",
    "join",
    "layer_decay",
    "linear",
    "lion",
    "masked",
    "maximum",
    "min_ndim",
    "minimum",
    "multiply",
    "nadamw",
    "named",
    "nan_to_num",
    "ndim",
    "norm",
    "owner",
    "owner_named",
    "partition",
    "project",
    "reduce_on_plateau",
    "register",
    "rest",
    "sam",
    "scale",
    "scale_by_adam",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_schedule",
    "scale_by_sign",
    "schedules",
    "selectors",
    "sgd",
    "skip_nonfinite",
    "sqrt",
    "stateless",
    "to_config",
    "trace",
    "where",
]

if not _typing.TYPE_CHECKING:  # to a checker a name that is not here is a mistake
    __getattr__ = _answers(__name__)
