"""The links that transform updates, one idea per file."""

from gradchain.transforms.adadelta import scale_by_adadelta
from gradchain.transforms.adam import scale_by_adam
from gradchain.transforms.adamax import scale_by_adamax
from gradchain.transforms.amsgrad import scale_by_amsgrad
from gradchain.transforms.ascent import maximize
from gradchain.transforms.asgd import average_each, scale_by_asgd
from gradchain.transforms.average import average_params
from gradchain.transforms.clip import clip_by_norm, clip_by_value
from gradchain.transforms.decay import add_decayed_weights
from gradchain.transforms.factored import cap_learning_rate, scale_by_factored_rms
from gradchain.transforms.lion import scale_by_lion
from gradchain.transforms.nadam import scale_by_nadam
from gradchain.transforms.noise import add_noise
from gradchain.transforms.nonfinite import nan_to_num
from gradchain.transforms.plateau import reduce_on_plateau, tick_on_plateau
from gradchain.transforms.project import project
from gradchain.transforms.radam import scale_by_radam
from gradchain.transforms.rms import scale_by_rms, scale_by_stddev
from gradchain.transforms.rprop import scale_by_rprop
from gradchain.transforms.rss import scale_by_rss
from gradchain.transforms.sam import sam
from gradchain.transforms.scale import scale, scale_by_learning_rate, scale_by_schedule
from gradchain.transforms.sign import scale_by_sign
from gradchain.transforms.stateless import stateless
from gradchain.transforms.trace import trace

__all__ = [
    "add_decayed_weights",
    "add_noise",
    "average_each",
    "average_params",
    "cap_learning_rate",
    "clip_by_norm",
    "clip_by_value",
    "maximize",
    "nan_to_num",
    "project",
    "reduce_on_plateau",
    "sam",
    "scale",
    "scale_by_adadelta",
    "scale_by_adam",
    "scale_by_adamax",
    "scale_by_amsgrad",
    "scale_by_asgd",
    "scale_by_factored_rms",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_nadam",
    "scale_by_radam",
    "scale_by_rms",
    "scale_by_rprop",
    "scale_by_rss",
    "scale_by_schedule",
    "scale_by_sign",
    "scale_by_stddev",
    "stateless",
    "tick_on_plateau",
    "trace",
]
