"""Kernels of C behind one call of C: it starts threads of its own, joins them, and leaves a mark as its last act.

Python can break off its own code anywhere, but not a call of C. Were the threads Python's, an exception would leave
them at work on memory that is somebody else's by then. These are started and joined inside the call, with signals
blocked, so that a handler never runs in them. A thread that cannot be started is done without: whoever is there takes
the next stretch, and the caller is always there.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

from gradchain.engine.executors import build

JOB = """\
typedef void kernel(int64_t items, const int64_t* row, const int64_t* begin, const int64_t* end,
                    const int64_t* const* columns, const double* scalars, const double* entries, double* out);
typedef struct {
  kernel* run;
  int64_t items;
  const int64_t *row, *begin, *end;
  int64_t stretches;
  const int64_t* borders;
  const int64_t* const* columns;
  const double *scalars, *entries;
  double* out;
} job;
"""
"""C of what a kernel is, and of a job: a kernel over its items."""

# `run` is what the check in a child calls, as it calls a kernel: the driver with a second thread, over a kernel that
# does nothing. Faults of a thread's own are left unblocked, for they cannot wait.
SOURCE = (
    f"""\
#include <stdint.h>
#include <signal.h>
#include <pthread.h>
{JOB}"""
    """\
typedef struct { const job* const* jobs; int64_t count; int64_t next; } work;
enum { MOST = 255 };

static void* worker(void* given) {
  work* w = given;
  for (;;) {
    int64_t k = __atomic_fetch_add(&w->next, 1, __ATOMIC_RELAXED), j = 0;
    while (j < w->count && k >= w->jobs[j]->stretches) k -= w->jobs[j++]->stretches;
    if (j == w->count) return 0;
    const job* one = w->jobs[j];
    const int64_t first = one->borders[k], last = one->borders[k + 1];
    one->run(last - first, one->row + first, one->begin + first, one->end + first, one->columns, one->scalars,
             one->entries, one->out ? one->out + first : 0);
  }
}

void drive(const job* const* jobs, int64_t count, int64_t threads, int64_t* done) {
  work w = {jobs, count, 0};
  pthread_t made[MOST];
  int64_t n = 0;
  if (threads > 1) {
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all, SIGSEGV); sigdelset(&all, SIGBUS); sigdelset(&all, SIGFPE); sigdelset(&all, SIGILL);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (n < threads - 1 && n < MOST && pthread_create(&made[n], 0, worker, &w) == 0) ++n;
    pthread_sigmask(SIG_SETMASK, &before, 0);
  }
  worker(&w);
  while (n > 0) pthread_join(made[--n], 0);
  *done = 1;
}

static void nothing(int64_t items, const int64_t* row, const int64_t* begin, const int64_t* end,
                    const int64_t* const* columns, const double* scalars, const double* entries, double* out) {}

void run(int64_t items, const int64_t* row, const int64_t* begin, const int64_t* end,
         const int64_t* const* columns, const double* scalars, const double* entries, double* out) {
  const int64_t borders[] = {0, items};
  const job one = {nothing, items, row, begin, end, 1, borders, columns, scalars, entries, out};
  const job* const jobs[] = {&one};
  int64_t done = 0;
  drive(jobs, 1, 2, &done);
}
"""
)
ENTRIES = 9  # which of a job's cells has the numbers per row


@functools.lru_cache(maxsize=1)
def driver() -> Callable[[int, int, int, int], None]:
    """`drive(jobs, count, threads, done)`, of addresses. NoKernel where it cannot be compiled."""
    drive: Any = build.load(SOURCE).drive
    drive.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    drive.restype = None
    return drive  # type: ignore[no-any-return]
