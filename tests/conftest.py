"""What every test shares: one thread, a fixed seed, one hypothesis profile."""

import contextlib
import gc
import importlib.util
import logging
import os
import sys

import pytest
import torch
from hypothesis import HealthCheck, settings

import gradchain

pytest_plugins = ["rows"]

torch.set_num_threads(1)

# Tests go over all links that there are, and evaluate what was printed. So all names are loaded here; what loads when
# is tested in processes of their own, by test_front_door.py.
for _door in gradchain._lazy.DOORS:
    for _name in importlib.import_module(_door).__all__ if importlib.util.find_spec(_door) else ():
        with contextlib.suppress(ModuleNotFoundError):  # a copy without the rooms above the law has all the others
            getattr(sys.modules[_door], _name)

settings.register_profile(
    "gradchain",
    deadline=None,
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("gradchain")


def pytest_sessionstart(session):
    """Collecting makes very many objects, none of them garbage yet, among which a search for it takes seconds."""
    gc.disable()


def pytest_collection_finish(session):
    """What was collected stays to the end, and is looked at no more."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _heard():
    """Loggers work at the start of each test, whatever the one before has silenced, or a peer as it was imported."""
    logging.disable(logging.NOTSET)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
