"""Run tests of kernels under the address and undefined-behaviour sanitizers: `python tests/engine/sanitized.py`.

The C that gradchain prints is compiled by gcc with both, by a wrapper that is first on the path, and kernels run in two
threads. A read or write out of bounds, of freed memory, a shift or a conversion that C does not define ends the
process. Arguments are pytest's; without any it is the suite that holds native kernels to the reference.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUITE = ["tests/engine/test_equal.py", "-k", "native"]
# float-divide-by-zero is defined for IEEE numbers, and links divide by zero on purpose
FLAGS = (
    "-g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize=float-divide-by-zero "
    "-fno-sanitize-recover=all"
)


def libraries() -> list[str]:
    """The two libraries, which a process has to have from its beginning; none where gcc has not both."""
    if shutil.which("gcc") is None or sys.platform != "linux":
        return []
    names = [
        subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return names if all(os.path.isabs(name) for name in names) else []


def environment(folder: Path) -> dict[str, str]:
    """That of a process whose kernels are compiled so, with wrapper and cache in this folder."""
    real = shutil.which("gcc")
    for name in ("cc", "gcc", "clang"):
        wrapper = folder / name
        wrapper.write_text(f'#!/bin/sh\nunset LD_PRELOAD\nexec {real} "$@" {FLAGS}\n')
        wrapper.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "LD_PRELOAD": ":".join(libraries()),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:handle_segv=1:verify_asan_link_order=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:abort_on_error=1",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "2",
        "GRADCHAIN_NATIVE": "1",
    }


def run(command: list[str], timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program of Python's under the sanitizers."""
    with tempfile.TemporaryDirectory(prefix="gradchain-sanitized-") as folder:
        return subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment(Path(folder)), text=True, timeout=timeout,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip


if __name__ == "__main__":
    if not libraries():
        sys.exit("sanitized: gcc must be there with libasan and libubsan, and is not.")
    done = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", *(sys.argv[1:] or SUITE)])
    print(done.stdout[-20_000:])
    sys.exit(done.returncode)
