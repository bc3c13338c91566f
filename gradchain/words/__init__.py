"""The words of torch and Optax, answered with ours: only where something was asked for that is not there.

The tables are read when a name or an argument was not found, and cost nothing before. This room imports nothing.
"""
