"""Recording: the unchanged code of links leaves a tape of operations, and a program of numbers."""
