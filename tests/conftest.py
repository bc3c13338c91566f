"""What every test shares: one thread, a fixed seed, one hypothesis profile."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

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
