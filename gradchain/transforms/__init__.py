"""The links that transform updates, one idea per file."""

from gradchain.transforms.adam import scale_by_adam
from gradchain.transforms.average import average_params
from gradchain.transforms.clip import clip_by_norm, clip_by_value
from gradchain.transforms.decay import add_decayed_weights
from gradchain.transforms.factored import cap_learning_rate, scale_by_factored_rms
from gradchain.transforms.lion import scale_by_lion
from gradchain.transforms.noise import add_noise
from gradchain.transforms.nonfinite import nan_to_num
from gradchain.transforms.plateau import reduce_on_plateau
from gradchain.transforms.project import project
from gradchain.transforms.sam import sam
from gradchain.transforms.scale import scale, scale_by_learning_rate, scale_by_schedule
from gradchain.transforms.sign import scale_by_sign
from gradchain.transforms.stateless import stateless
from gradchain.transforms.trace import trace

__all__ = [
    "add_decayed_weights",
    "add_noise",
    "average_params",
    "cap_learning_rate",
    "clip_by_norm",
    "clip_by_value",
    "nan_to_num",
    "project",
    "reduce_on_plateau",
    "sam",
    "scale",
    "scale_by_adam",
    "scale_by_factored_rms",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_schedule",
    "scale_by_sign",
    "stateless",
    "trace",
]
