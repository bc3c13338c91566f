"""What every test shares: one thread, a fixed seed, one hypothesis profile."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

import gradchain.rules

torch.set_num_threads(1)

# Tests go over all links that there are, and evaluate what was printed. So all names are loaded here; what loads when
# is tested in processes of their own, by test_front_door.py.
for _door in (gradchain, gradchain.rules):
    for _name in _door.__all__:
        getattr(_door, _name)

settings.register_profile(
    "gradchain",
    deadline=None,
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("gradchain")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
