"""A whole recipe as a chain: wrapper, optimizer, hooks, and the groups and curves put together."""
