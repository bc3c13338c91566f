"""MMEngine's recipes, read without MMEngine.

`from_config` reads a whole recipe for a model, `unbound` one without, `read_config` a config file; what a config file
becomes is printed by `python -m gradchain convert`. `param_settings` has the numbers of each parameter.

`schedules` reads its parameter schedulers, and the `lr_config` and `momentum_config` of mmcv 1.x, number for number.
What differs, on purpose:

=============================================  =======================================================================
MMEngine, mmcv                                 here
=============================================  =======================================================================
a resumed run keeps the schedulers that were   a schedule is a function of the step: the config of the day counts, and
saved; a changed config is silently ignored    nothing is saved
a start_factor or factor of 0 divides by zero  an error that says so; with strict=False the ramp from 0 that is meant
in the run
schedulers move with each step() that is       the value of any step, in any order; after the run the last value stays
called, from wherever the group stands
one cycle longer than its total_steps, and     an error when the config is read
restarts that end before the run (mmcv), fail
in mid-run
restart periods and step sizes that are not    an error
whole iterations give what rounding gives
begin or end between two epochs: rounded up,   an error that says so; with strict=False the same where there is a
and the curve by the unrounded length          meaning
milestones out of reach, windows that never    the same numbers, and a warning that names the scheduler
act or outlast the run, epochs in a loop of
iterations: silent
an absolute eta_min is the floor of every      the same: `f(base)` has the group's own base; `eta_min_ratio` follows it
group, whatever its lr_mult
=============================================  =======================================================================

Schedulers that read a metric (ReduceOnPlateau) are refused here: they are no function of the step.
"""

from gradchain.adapters.mmengine.files import read_config
from gradchain.adapters.mmengine.params import param_settings
from gradchain.adapters.mmengine.recipe import from_config, unbound
from gradchain.adapters.mmengine.schedules import schedules

__all__ = ["from_config", "param_settings", "read_config", "schedules", "unbound"]
