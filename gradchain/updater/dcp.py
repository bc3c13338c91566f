"""What torch.distributed.checkpoint does for a checkpoint in parts: it plans, writes and reads. It is slow to import.

Its own table of what lies where is a pickle, which runs code where it is read. So it is kept as plain data, in a file
that has a seal, and the pickle is there for others only.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, BinaryIO, NamedTuple, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_saver import save

from gradchain.updater import sealed
from gradchain.updater.sealed import Sealing


class Chunk(NamedTuple):
    """A box of a tensor, and where its bytes lie.

    Attributes:
        offsets: where in the tensor it begins.
        sizes: how large it is.
        file: which file.
        begin: at which byte of it.
        length: how many bytes.
    """

    offsets: list[int]
    sizes: list[int]
    file: str
    begin: int
    length: int


class Row(NamedTuple):
    """A tensor in the table.

    Attributes:
        path: the keys that lead to it.
        dtype: its dtype.
        shape: its shape.
        chunks: what it is made of.
    """

    path: list[str]
    dtype: torch.dtype
    shape: list[int]
    chunks: list[Any]


# writing


class _Stream(io.RawIOBase):
    """A file that is written, and summed up meanwhile."""

    def __init__(self, file: Any) -> None:
        self._file, self.sealing = file, Sealing(file)

    def write(self, data: Any) -> int:
        return self.sealing.write(data)

    def tell(self) -> int:
        return int(self._file.tell())

    def fileno(self) -> int:
        return int(self._file.fileno())

    def flush(self) -> None:
        self._file.flush()


class _Files(FileSystem):
    """Files of one rank.

    Attributes:
        seals: size and checksum of each that was written, by name.
    """

    def __init__(self) -> None:
        self.seals: dict[str, tuple[int, str]] = {}

    @contextlib.contextmanager
    def create_stream(self, path: str | PathLike[str], mode: str) -> Iterator[io.IOBase]:
        with super().create_stream(path, mode) as file:
            if "w" not in mode:
                yield file
                return
            stream = _Stream(file)
            yield stream
            self.seals[Path(path).name] = (stream.tell(), stream.sealing.checksum())


class _Writer(FileSystemWriter):
    """Writes one rank's part, and keeps the table that the first one makes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.fs: _Files = _Files()
        self.table: list[Row] = []

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        super().finish(metadata, results)
        places: dict[str, dict[tuple[int, ...], Any]] = {}
        for written in (one for of_rank in results for one in of_rank):
            places.setdefault(written.index.fqn, {})[tuple(written.index.offset)] = written.storage_data
        for name, found in metadata.state_dict_metadata.items():
            tensor, chunks = cast("TensorStorageMetadata", found), []
            for chunk in tensor.chunks:
                info = places[name][tuple(chunk.offsets)]
                chunks.append(Chunk([*chunk.offsets], [*chunk.sizes], info.relative_path, info.offset, info.length))
            path = [str(key) for key in metadata.planner_data[name]]
            self.table.append(Row(path, tensor.properties.dtype, [*tensor.size], chunks))


class FailedError(Exception):
    """Some rank could not write.

    Attributes:
        rank: the first that could not.
        errors: rank → what it met.
    """

    def __init__(self, errors: Mapping[int, BaseException]) -> None:
        super().__init__("a rank could not write its part")
        self.rank, self.errors = min(errors), errors


def write(tree: dict[str, Any], folder: Path, group: Any) -> tuple[list[Row], dict[str, tuple[int, str]]]:
    """Write tensors into a new folder, each rank what it has of them. All ranks call it.

    Returns:
        The table, on the first rank; and size and checksum of the files of this one.

    Raises:
        FailedError: on all ranks, where one cannot write.
    """
    writer = _Writer(folder)
    try:
        save(tree, storage_writer=writer, process_group=group)
    except CheckpointException as failed:
        raise FailedError({rank: error for rank, (error, _) in failed.failures.items()}) from None
    return writer.table, writer.fs.seals


# reading


class DamagedError(Exception):
    """A file of a part is not what the index says."""


class _Seen(FileSystem):
    """Files that are read from only as long as they are what an index says, whoever looked at them before."""

    def __init__(self, seals: Mapping[str, Sequence[Any]], owner: str) -> None:
        self._seals, self._owner = seals, owner

    @contextlib.contextmanager
    def create_stream(self, path: str | PathLike[str], mode: str) -> Iterator[io.IOBase]:
        where = Path(path)
        with sealed.opened(where, self._owner) as file:
            before = os.fstat(file.fileno())
            right = partial(sealed.has_checksum, file, *self._seals[where.name])
            if not right():
                raise DamagedError(f"the checksum of {where.name!r} is not that of its contents")
            yield cast("io.IOBase", file)
            if sealed.has_changed(file, before) or (before.st_size <= sealed.SMALL and not right()):
                raise DamagedError(f"{where.name!r} was changed while it was read")


class _Slice(io.RawIOBase):
    """Some bytes of an open file, as a file. That of torch's cannot be sought in from its end."""

    def __init__(self, file: Any, begin: int, length: int) -> None:
        self._file, self._begin, self._length, self._at = file, begin, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = max(0, offset + (0, self._at, self._length)[whence])
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer)[: max(0, self._length - self._at)]
        self._file.seek(self._begin + self._at)
        many = int(self._file.readinto(view))
        self._at += many
        return many


class _Reader(FileSystemReader):
    """Reads by our table, and no file that is another than it says."""

    def __init__(self, folder: Path, seals: Mapping[str, Sequence[Any]], owner: str) -> None:
        super().__init__(folder)
        self.fs = _Seen(seals, owner)

    def _slice_file(self, file: Any, sinfo: Any) -> IO[bytes]:
        found = cast("IO[bytes]", _Slice(file, sinfo.offset, sinfo.length))
        if problem := sealed.zip_problem(cast("BinaryIO", found), sinfo.length):
            raise DamagedError(problem)
        return found

    def table(self, table: Mapping[str, Row]) -> Metadata:
        """The same, as torch has it."""
        storage = {}
        for name, row in table.items():
            for chunk in map(Chunk._make, row.chunks):
                storage[MetadataIndex(name, torch.Size(chunk.offsets))] = SimpleNamespace(
                    relative_path=chunk.file, offset=chunk.begin, length=chunk.length, transform_descriptors=None
                )
        tensors = {name: _told(row) for name, row in table.items()}
        return Metadata(state_dict_metadata=dict(tensors), planner_data=None, storage_data=storage)


def _told(row: Row) -> TensorStorageMetadata:
    chunks = [
        ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes))
        for chunk in map(Chunk._make, row.chunks)
    ]
    return TensorStorageMetadata(TensorProperties(dtype=row.dtype), torch.Size(row.shape), chunks)


def fill(
    tensors: dict[str, Tensor], folder: Path, table: Mapping[str, Row], seals: Mapping[str, Sequence[Any]], owner: str
) -> None:
    """Read into these tensors, by name, what this rank needs of what lies in a folder. No rank talks to another.

    What goes wrong is a DamagedError, an OSError, or whatever torch says of bytes that are no tensor of its.
    """
    reader = _Reader(folder, seals, owner)
    metadata = reader.table({name: table[name] for name in tensors})
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(dict(tensors), metadata, True)
    reader.set_up_storage_reader(metadata, True)
    plan = reader.prepare_local_plan(planner.create_local_plan())
    (plan,) = reader.prepare_global_plan(planner.create_global_plan([plan]))
    reader.read_data(planner.finish_plan(plan), planner).wait()
