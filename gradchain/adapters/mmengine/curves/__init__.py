"""How numbers move over a run: schedulers, policies of mmcv 1.x and hooks as schedules."""
