"""Run a test in a process of its own, where no other test has started threads."""

import functools
import os
import subprocess
import sys

_INSIDE = "GRADCHAIN_TEST_ALONE"


def in_a_process_of_its_own(test):
    """A fork beside threads of jax or a pool may deadlock: a pytest that runs nothing else runs the same test."""

    @functools.wraps(test)
    def alone(*args, **kwargs):
        if os.environ.get(_INSIDE):
            return test(*args, **kwargs)
        name = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", name]
        inside = {**os.environ, _INSIDE: "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=inside, timeout=120, check=False)
        assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout[-3000:] + done.stderr[-1000:]
        return None

    return alone
