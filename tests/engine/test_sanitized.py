"""Kernels under the sanitizers: `python tests/engine/sanitized.py` runs the suite, GRADCHAIN_LONG=1 a few chains here.

CI sees that what is wrong is found: to import torch under the sanitizers takes ten seconds, and to compile, minutes.
"""

from __future__ import annotations

import os

import pytest
import sanitized

pytestmark = pytest.mark.skipif(not sanitized.libraries(), reason="gcc with libasan and libubsan is needed")
STEPS = """
import torch, gradchain as gch
torch.set_num_threads(2)
for tx in (
    gch.chain(gch.skip_nonfinite(of="all"), gch.clip_by_norm(1.0), gch.adamw(1e-2)),
    gch.chain(gch.skip_nonfinite(), gch.rules.adafactor(0.1)),
):
    model = torch.nn.Sequential(torch.nn.Linear(301, 77), torch.nn.Linear(77, 3))
    updater = tx.bind(model)
    for scale in (1.0, 1e20, 1e-30, 0.0, 1.0):
        updater.update(scale * model(torch.randn(2, 301)).square().mean())
    assert "native" in str(updater.explain()), str(updater.explain())
assert "libasan" in open("/proc/self/maps").read()
print("all well")
"""
BROKEN = """
import ctypes, os, pathlib, subprocess
folder = pathlib.Path(os.environ["XDG_CACHE_HOME"]); folder.mkdir()
(folder / "k.c").write_text("void run(float *p, long n) {{ {body} }}")
subprocess.run(["gcc", "-O3", "-shared", "-fPIC", "-o", str(folder / "k.so"), str(folder / "k.c")], check=True)
data = (ctypes.c_float * 8)()
libc = ctypes.CDLL(None); libc.malloc.restype = ctypes.c_void_p
ctypes.CDLL(str(folder / "k.so")).run(ctypes.c_void_p(libc.malloc(32)), ctypes.c_long({n}))
print("nobody saw it")
"""


@pytest.mark.skipif(not os.environ.get("GRADCHAIN_LONG"), reason="GRADCHAIN_LONG=1 runs it: a minute")
def test_kernels_keep_to_their_memory():
    done = sanitized.run(["-c", STEPS], timeout=120)
    assert done.returncode == 0 and done.stdout.rstrip().endswith("all well"), done.stdout[-3000:]


@pytest.mark.parametrize(
    ("body", "n", "says"),
    [
        ("for (long i = 0; i <= n; i++) p[i] = 1.0f;", 8, "heap-buffer-overflow"),
        ("p[0] = (float)(1 << n);", 40, "shift exponent 40 is too large"),
    ],
    ids=["out of bounds", "undefined"],
)
def test_a_kernel_that_does_not_is_seen(body, n, says):
    done = sanitized.run(["-c", BROKEN.format(body=body, n=n)], timeout=60)
    assert done.returncode != 0 and says in done.stdout, done.stdout[-2000:]
