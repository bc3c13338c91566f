"""MMEngine's recipes, read without MMEngine.

`from_config` reads a whole recipe, number for number, for its model, `unbound` one without; `read_config` a config
file, and what that becomes is printed by `python -m gradchain convert`. `schedules` reads parameter schedulers, and the
`lr_config` and `momentum_config` of mmcv 1.x; `param_settings` parameter groups. What differs of these two, on purpose:

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
act, or whose values go on behind the run's
end, epochs in a loop of iterations: silent
warm-ups of mmcv in fractions fail             a ramp of that length
an absolute eta_min is the floor of every      the same: `f(base)` has the group's own base; `eta_min_ratio` follows it
group, whatever its lr_mult
keys of paramwise_cfg that nobody reads, and   one error that names them all; with strict=False a warning each
custom_keys that take no parameter: silent
trained parameters that a constructor leaves   the same
out, or has twice in one group: silent
a layer decay whose model has no layers by     an error; with strict=False a warning
those names, or more than are said: silent
MMPretrain's layer decay needs a model with    so here, but for blocks by timm's names (`blocks.0`): they are read as
get_layer_depth                                those of MMPretrain's VisionTransformer
a custom key without decay_mult puts off the   the same, and a warning; so has a learning rate of 0 that a schedule
rules of decay by kind: silent                 with an absolute value moves
a ConstantLR with a factor above 1 is refused  an error too, except for MMPose's; with strict=False a warning
ReduceOnPlateau's last_step is taken           an error, as by_epoch=False is in both
a constructor of another project is looked     an error: `register_constructor` makes it known, and nobody's is read as
for in its registry                            another for its name
MMDetection's layer-wise constructor takes     BEiT and MAE too, as MMSegmentation's of the same name
ConvNeXt only
=============================================  =======================================================================

Schedulers that read a metric (ReduceOnPlateau) are refused here: they are no function of the step. `from_config` makes
them links.

`from_config` trains as MMEngine's Runner, weight by weight. What differs, on purpose:

=============================================  =======================================================================
MMEngine                                       here
=============================================  =======================================================================
the gradients and the count of an open window  are in the checkpoint
are lost when a run is resumed
several optimizers: the part-filled last       stays open: `updater.flush()` applies it
window is lost
several optimizers: schedulers move with the   each reads the micro-batches of its own updater
Runner's iterations, whichever steps
a loss leaves gradients in the parameters of   an update uses the gradients of its own loss and window only
another optimizer, which it then uses
EMAHook averages at each iteration, in a       once per applied update, with the decay of as many iterations
window and after a skipped update too
averaged buffers: counters are those of the    of the last averaging; a tied weight once
first copy; a tied weight is averaged twice
a tied weight under rules is an error without  the same; the chain of `unbound` takes it once, where it comes first
bypass_duplicate
AmpOptimWrapper scales the loss of bfloat16    only that of float16
AmpOptimWrapper needs an accelerator           runs anywhere
loss_scale=512, an int: TypeError              read as a float, with a warning
a loss that is not finite makes NaN of the     on the CPU an error, and the weights stay
weights, where a norm is clipped
a parameter that is frozen when the optimizer  is trained from its first gradient on
is built is never in it (with paramwise_cfg)
auto_scale_lr takes the batch size from the    takes it as `batch_size`, over all ranks
dataloader
LARS and Lamb, OpenMMLab's own classes         links of the same formulas; not Lamb's trust_clip, bias_correction=False
                                               and grad_averaging=False
mmcv 1.x: averages of buffers begin at the     at those after the first averaging
first weights' (MMDetection's hooks)
MMYOLO's hooks count the groups, whoever made  the third group is the biases of YOLOv5's constructor, or an error;
them                                           without a model what is neither weight nor bias is trained
a plateau's min_value and eps bound the rate   the same; the usual eps of 1e-8 bounds it before other schedulers
in force
a plateau's min_value and eps bound numbers    an error, but for rates of our own links; alone they do:
that other schedulers move too                 `tick_on_plateau` counts the reductions, for a schedule of that clock
a momentum of 1 or more, or a rate below 0,    an error when the recipe is read
that schedulers come to is used
default_hooks without a ParamSchedulerHook:    an error; with strict=False they move
schedulers never move
dcn_offset_lr_mult and biases look whether     with a model so here; without one each Conv2d called conv_offset is an
mmcv's deformable convolution is above         offset where dcn_offset_lr_mult is set, else a convolution like others
Sophia, D-Adaptation, 8-bit optimizers         their classes, where installed, through `from_torch`; else an error that
                                               says why there is no link, and what is nearest
frozen_layers_cfg of MMSelfSup's hook          an error
apex: opt_level O1 patches functions           autocast and `amp_scale`; O2 and O3 are refused: they cast the model
=============================================  =======================================================================
"""

from gradchain.adapters.mmengine.curves.schedules import schedules
from gradchain.adapters.mmengine.groups.params import param_settings, register_constructor
from gradchain.adapters.mmengine.reading.files import read_config
from gradchain.adapters.mmengine.recipe.whole import from_config, unbound

__all__ = ["from_config", "param_settings", "read_config", "register_constructor", "schedules", "unbound"]
