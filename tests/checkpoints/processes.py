"""A process of its own for code that ends one: forked, so that nothing is imported anew."""

from __future__ import annotations

import os
import sys
import traceback
import warnings


def forked(code: str, **given: object) -> tuple[int, str]:
    """Run code in a forked child with these names: how it ended, negative for a signal, and what it printed."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of JAX, where another test has imported it
        child = os.fork()
    if not child:
        ended = 1
        try:
            sys.stdout = sys.stderr = os.fdopen(writing, "w")
            exec(code, dict(given))
            ended = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(ended)
    os.close(writing)
    with os.fdopen(reading) as said:
        printed = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), printed.strip()
