"""Executors: ways to run a program over rows of tensors, one file each."""
