"""The Triton executor: a printed program run over a table of addresses on one device.

Not the default anywhere. It is tested through Triton's interpreter, which runs the very text on the CPU; on CUDA,
foreach stays the path until this is measured to win.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import linecache
import os
import re
import struct
import weakref
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradchain.core.operations import OPERATIONS
from gradchain.engine.commit import Commit
from gradchain.engine.executors.base import NoKernel
from gradchain.engine.executors.print_triton import fold, source
from gradchain.engine.executors.print_triton_grid import LANES, grid_source
from gradchain.engine.operations import TYPES
from gradchain.engine.planning.lower import Program
from gradchain.engine.planning.rows import Column, Rows

BLOCK = 1024  # elements to an item
OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}  # every operation rounds, as in the reference
if torch.version.hip is None:
    OPTIONS["enable_reflect_ftz"] = False  # the library's functions keep what is denormal
OLDEST = (3, 6)  # that divides and takes roots without flushing denormals to zero


def interpreting() -> bool:
    """Whether kernels run through Triton's interpreter. The variable must be set before Triton is first imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


class Items:
    """The rows of a class cut into items on a device, once per plan.

    Attributes:
        count: how many items.
        rows: how many rows.
        table: row, begin and end of each item.
        first: for each row its first item, and at the end the number of items.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device, rows: int | None = None, block: int = BLOCK) -> None:
        size = torch.tensor(sizes, dtype=torch.int64, device="cpu")
        counts = (size + block - 1) // block
        first = torch.cat([torch.zeros(1, dtype=torch.int64, device="cpu"), counts.cumsum(0)])
        row = torch.repeat_interleave(torch.arange(len(sizes), device="cpu"), counts)
        begin = (torch.arange(len(row), device="cpu") - first[row]) * block
        end = torch.minimum(begin + block, size[row])
        self.count = len(row)
        self.rows = len(sizes) if rows is None else rows
        self.table = torch.stack([row, begin, end], dim=1).contiguous().to(device)
        self.first = first.to(device)


class Triton:
    """Programs printed as Triton, on one device."""

    name = "triton"
    grids = True

    def __init__(self, device: torch.device | str) -> None:
        self.device = self.numbers_on = torch.device(device)
        self._kept: weakref.WeakValueDictionary[tuple[int, ...], Items] = weakref.WeakValueDictionary()

    def legal(self, program: Program, dtypes: Sequence[torch.dtype]) -> str | None:
        """Why this program cannot run as a Triton kernel on this device, or None."""
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        if self.device.type != "cuda" and not (self.device.type == "cpu" and interpreting()):
            return f"no Triton kernels on {self.device.type}"
        if _version()[:2] < OLDEST:
            return f"Triton {'.'.join(map(str, _version()))} flushes denormals to zero, 3.6 and newer do not"
        unknown = [d for d in dtypes if d not in TYPES]
        if unknown:
            return f"no Triton kernels for {unknown[0]}"
        strange = [op for op, _ in (*program.instructions, *program.numbers) if op not in OPERATIONS]
        return f"no Triton for the operation {strange[0]!r}" if strange else None

    def ready(self, program: Program, dtypes: Sequence[torch.dtype], sizes: Sequence[int]) -> TritonRunner:
        """The program made ready for rows of these sizes."""
        refused = self.legal(program, dtypes)
        if refused is not None:
            raise NoKernel(refused)
        runner = TritonRunner(program, dtypes, self._items(program, sizes), self.device)
        _compile(runner.source, "run", self.device)
        if program.reduce:
            _compile(fold(program.reduce[0]), "fold", self.device)
        return runner

    def _items(self, program: Program, sizes: Sequence[int]) -> Items:
        """The rows, or the results along axes, cut into items: the same for all programs of a plan."""
        rows, block = len(sizes), BLOCK
        if program.grid is not None and program.along:
            sizes = [size for *_, column in program.along for size in program.grid.sizes(column)]
            block = BLOCK // LANES
        key = (rows, block, *sizes)
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = Items(sizes, self.device, rows, block)
        return found


class TritonRunner:
    """One program over rows of fixed sizes. Nothing that may fail is left to its launch."""

    scratch = None

    def __init__(self, program: Program, dtypes: Sequence[torch.dtype], items: Items, device: torch.device) -> None:
        self.source = _printed(program, dtypes)
        self._program, self._dtypes = program, tuple(dtypes)
        self._items, self._device = items, device
        self.device = device
        axes = [] if program.grid is None else list(zip(*program.grid.extents, strict=True))
        self._axes = b"".join(struct.pack(f"={len(lengths)}q", *lengths) for lengths in axes)
        self._texts: dict[frozenset[tuple[str, int]], str] = {frozenset(): self.source}

    def run(
        self, columns: Sequence[Column], scalars: Sequence[float | Tensor], entries: Sequence[float | Tensor]
    ) -> list[float] | None:
        """Run over all rows; see Runner. Only a program that reduces waits for the device."""
        out = self.launch(columns, scalars, entries)
        return None if out is None else out.tolist()

    def launch(
        self, columns: Sequence[Column], scalars: Sequence[float | Tensor], entries: Sequence[float | Tensor]
    ) -> Tensor | None:
        """Run over all rows without waiting. Returns one float64 per row of a program that reduces, on the device.

        Args:
            columns: the tensors, in the order of the program.
            scalars: the numbers, in the order of the program; a 0-d tensor of this device is read by the kernel.
            entries: the numbers per row, row by row; likewise.
        """
        launch = self.prepared(columns, scalars, entries)
        launch.send()
        launch()
        return launch.sums

    def write(
        self,
        commit: Commit,
        columns: Sequence[Column],
        scalars: Sequence[float | Tensor],
        entries: Sequence[float | Tensor],
    ) -> None:
        """Have a commit launch the kernel, without waiting; see Runner."""
        commit.add(_Launched(self.prepared(columns, scalars, entries), columns))

    def prepared(
        self, columns: Sequence[Column], scalars: Sequence[float | Tensor], entries: Sequence[float | Tensor]
    ) -> Launch:
        """A run over all rows, ready to be sent and launched. Its arguments are those of `launch`."""
        addresses = [column.addresses for column in columns]
        on_device, numbers, held = _numbers(scalars, entries, len(self._program.entries), self._device)
        if on_device not in self._texts:
            text = _printed(self._program, self._dtypes, on_device)
            _compile(text, "run", self._device)  # before anything of the step is written
            self._texts[on_device] = text
        cells = b"".join(map(bytes, addresses)) + self._axes + numbers + bytes(0 if self._program.reduce else 8)
        reduces = self._program.reduce[0] if self._program.reduce else ""
        return Launch(self._texts[on_device], self._items, reduces, self._device, cells, held)


class Launch:
    """One run of a kernel over its items.

    Attributes:
        cells: what the kernel is given beside the items; and a zero, which a kernel that stores makes a one.
        held: tensors that must live until the kernel ran.
        table: the cells on the device, once they were sent.
        sums: one float64 per row, for a program that reduces, once it was launched.
    """

    def __init__(
        self,
        text: str,
        items: Items,
        reduces: str,
        device: torch.device,
        cells: bytes,
        held: list[Tensor],
    ) -> None:
        self.text, self.cells, self.held = text, cells, held
        self._items, self._reduces, self._device = items, reduces, device
        self.table: Tensor | None = None
        self.sums: Tensor | None
        made = [torch.empty(n, dtype=torch.float64, device=device) for n in (items.count, items.rows) if reduces]
        self._partial, self.sums = made if reduces else (torch.empty(0, dtype=torch.float64, device=device), None)

    def send(self) -> None:
        """Take the cells to the device, without waiting for it: into the same table, from the second time on."""
        cells = torch.frombuffer(bytearray(self.cells or bytes(8)), dtype=torch.int64)
        cells = cells.pin_memory() if self._device.type == "cuda" else cells
        if self.table is None:
            self.table = cells.to(self._device, non_blocking=True)
        else:
            self.table.copy_(cells, non_blocking=True)

    def reserve(self) -> None:
        """Make the table, to be filled later. It is not cleared: a graph would clear it at every replay.

        Under deterministic algorithms torch.empty is: so it is made of bare memory.
        """
        cells = max(1, len(self.cells) // 8)
        memory = torch.UntypedStorage(8 * cells, device=self._device)  # type: ignore[no-untyped-call]
        self.table = torch.empty(0, dtype=torch.int64, device=self._device).set_(memory, 0, (cells,), (1,))

    def ran(self) -> bool:
        """Whether the kernel was queued, of a program that stores. Waits for the device."""
        return self.table is not None and bool(self.table[-1].item())

    def __call__(self) -> None:
        """Queue the kernel, which reads the table as it is when it runs."""
        items = self._items
        with _on(self._device):
            if items.count:
                hints = not interpreting()  # which takes none
                compiled(self.text, "run")[(items.count,)](
                    self.table, items.table, items.rows, self._partial, BLOCK=BLOCK, ALIGNED=hints, **OPTIONS
                )
            if self.sums is not None and items.rows:
                compiled(fold(self._reduces), "fold")[(items.rows,)](
                    self._partial, items.first, self.sums, BLOCK=BLOCK, **OPTIONS
                )


class _Launched:
    """A launch that is not made twice. The device is asked only where one was tried before."""

    def __init__(self, launch: Launch, columns: Sequence[Column]) -> None:
        self._launch = launch
        self._columns = columns  # the launch has their addresses only: a gradient laid out anew is nobody else's
        self._tried = False

    @property
    def begun(self) -> bool:
        """Whether the kernel was queued."""
        return self._tried and self._launch.ran()

    def __call__(self) -> None:
        if not self.begun:
            self._launch.send()
            self._tried = True
            self._launch()


def _printed(program: Program, dtypes: Sequence[torch.dtype], on_device: Collection[tuple[str, int]] = ()) -> str:
    return (source if program.grid is None else grid_source)(program, dtypes, on_device)


def _numbers(
    scalars: Sequence[float | Tensor], entries: Sequence[float | Tensor], width: int, device: torch.device
) -> tuple[frozenset[tuple[str, int]], bytes, list[Tensor]]:
    """Which numbers are on the device, the cells of all, and the tensors that some of them lie in."""
    column = b""
    if isinstance(entries, Rows):  # the cells as they lie in the host's memory
        column, entries = ctypes.string_at(entries.column.data_ptr(), 8 * len(entries)), ()
    on_device = {("scalar", i) for i, value in enumerate(scalars) if isinstance(value, Tensor)}
    on_device |= {("entry", i % width) for i, value in enumerate(entries) if isinstance(value, Tensor)}
    keys = [("scalar", i) for i in range(len(scalars))] + [("entry", i % width) for i in range(len(entries))]
    held: list[Tensor] = []
    packed = []
    for key, value in zip(keys, (*scalars, *entries), strict=True):
        if key in on_device:
            if isinstance(value, Tensor):
                cell = value.detach()
                if cell.dtype is not torch.float64 or cell.device != device:
                    cell = cell.to(device, torch.float64, non_blocking=True)
            else:  # a host number in a column of device numbers
                cell = torch.full((), value, dtype=torch.float64, device=device)
            held.append(cell)
            packed.append(struct.pack("=q", cell.data_ptr()))
        else:
            packed.append(struct.pack("=d", value))
    return frozenset(on_device), b"".join([*packed, column]), held


def _on(device: torch.device) -> Any:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@functools.cache
def _version() -> tuple[int, ...]:
    """Triton's, as numbers."""
    import triton

    return tuple(int(part) for part in re.findall(r"\d+", str(triton.__version__))[:3])


def _compile(text: str, name: str, device: torch.device) -> None:
    """Compile a kernel without launching it. NoKernel where that fails."""
    try:
        kernel = compiled(text, name)
        if device.type != "cuda" or interpreting():
            return
        with _on(device):
            if name == "fold":
                kernel.warmup(torch.float64, torch.int64, torch.float64, BLOCK=BLOCK, grid=(1,), **OPTIONS)
                return
            kernel.warmup(torch.int64, torch.int64, 1, torch.float64, BLOCK=BLOCK, ALIGNED=True, grid=(1,), **OPTIONS)
    except Exception as error:
        raise NoKernel(f"Triton cannot compile it: {type(error).__name__}: {error}".splitlines()[0]) from error


@functools.lru_cache(maxsize=512)
def compiled(text: str, name: str) -> Any:
    """The function of this text as a Triton kernel. Triton compiles it at its first launch, and keeps that on disk."""
    import triton
    import triton.language as tl

    # Triton reads a kernel's source where tracebacks do; it needs no file
    path = f"<gradchain triton {hashlib.sha256(text.encode()).hexdigest()[:16]}>"
    linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
    space: dict[str, Any] = {"__name__": "gradchain_triton", "tl": tl, "libdevice": _libdevice()}
    exec(compile(text, path, "exec"), space)
    return triton.jit(space[name], do_not_specialize=["rows"] if name == "run" else None)


def _libdevice() -> Any:
    """The device's library of functions; in the interpreter, which has none, torch's."""
    if not interpreting():
        from triton.language.extra import libdevice

        return libdevice
    return _Interpreted()


class _Interpreted:
    """The functions of libdevice in the interpreter: torch's of the same name, or of its own."""

    _NAMES: ClassVar[dict[str, str]] = {"rint": "round"}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        import triton.language as tl
        from triton.runtime.interpreter import TensorHandle

        def called(*given: Any) -> Any:
            widest = max(given, key=lambda a: len(a.shape))
            value = getattr(torch, self._NAMES.get(name, name))(*(torch.tensor(a.handle.data) for a in given)).numpy()
            return tl.core.tensor(TensorHandle(value, widest.dtype), widest.type)

        return called
