"""Runs a program as Python does, and ends at once: gloo's threads may abort a process that ends by itself."""

import runpy
import sys

from benchmarks.pinning import leave

if __name__ == "__main__":
    runpy.run_path(sys.argv[1], run_name="__main__")
    leave()
