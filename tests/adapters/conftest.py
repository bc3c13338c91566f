"""Fixtures of the adapters' tests."""

from __future__ import annotations

import pytest

from gradchain.adapters import registry, torch_names
from gradchain.core import config


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "registered", dict(config.registered))
    monkeypatch.setattr(config, "registered", registry.registered)
    monkeypatch.setattr(registry, "classes", dict(torch_names.registered))
    monkeypatch.setattr(torch_names, "registered", registry.classes)
