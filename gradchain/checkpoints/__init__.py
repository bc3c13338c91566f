"""Checkpoints that look after themselves: when to save, which files stay, and how a run goes on that was killed."""

from gradchain.checkpoints.checkpointer import Checkpointer

__all__ = ["Checkpointer"]
