"""The version, written once: pyproject.toml reads it here, and tests hold CHANGELOG.md and CITATION.cff to it."""

__version__ = "0.1.0"
