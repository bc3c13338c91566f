"""Files: what is damaged, or no file, is refused before any of it is used; saving leaves the old file or the new."""

import copy
import hashlib
import io
import os
import random
import resource
import socket
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from damage import DAMAGES, flip, rewritten
from little import data, loss_of, net, same, untouched
from torch import nn

import gradchain as gch
from gradchain.updater import sealed

SEAL = 48
ERRORS = (ValueError, FileNotFoundError)


def trained(seed=0):
    model = net(seed)
    updater = gch.chain(gch.accumulate(2), gch.adam(0.1)).bind(model)
    for rows in data(3, seed):
        updater.update(loss_of(model, rows))
    return model, updater


def saved(path):
    """A file, and the same as it was written before files had seals."""
    _, updater = trained(7)
    updater.save(path, epoch=3)
    whole = path.read_bytes()
    contents = torch.load(path, weights_only=True)
    out = io.BytesIO()
    torch.save({**contents, "format": 1}, out)
    return whole, out.getvalue()


def resealed(zipped):
    """The bytes of a zip with a seal that is right: what somebody made, not what broke."""
    return zipped + sealed._MARK + hashlib.blake2b(zipped + b"", digest_size=32).digest()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.pt"


# damage


def test_a_file_loads_as_it_was_saved_and_torch_reads_it_too(path):
    """With a seal, and without as earlier versions wrote it; into a fresh run, bit for bit."""
    for whole in saved(path):
        path.write_bytes(whole)
        model, updater = trained(1)
        assert updater.load(path) == {"epoch": 3}
        theirs, other = trained(7)
        assert same(updater.state_dict(), other.state_dict())
        assert same(dict(model.state_dict()), dict(theirs.state_dict()))
    updater.save(path)
    by_hand = torch.load(path, weights_only=True)["parts"]["updater"]["weights"]
    assert same(by_hand, {n: p.detach() for n, p in model.named_parameters()})
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def check_refused(updater, path, contents):
    """A file of these bytes is refused in one sentence."""
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=r"^load: '.*run.pt' cannot be read: it is .*\.$"):
        updater.load(path)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_files_are_refused(damage, path):
    """Whatever became other bytes is refused in one sentence of ours, and all stays as it was."""
    whole = saved(path)[0]
    model, updater = trained()
    rng = random.Random(damage.__name__)
    with untouched(model, updater):
        for _ in range(60):
            bytes_ = damage(whole, rng)
            assert bytes_ != whole
            check_refused(updater, path, bytes_)


def test_every_bit_of_the_seal_and_every_cut_near_it(path):
    """A seal that is damaged or gone is seen: the file says of itself that it has one."""
    whole = saved(path)[0]
    model, updater = trained()
    ends = [whole[:-k] for k in range(1, SEAL + 30)]
    for at in range(len(whole) - SEAL, len(whole)):
        ends += [whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :] for bit in range(8)]
    with untouched(model, updater):
        for end in ends:
            check_refused(updater, path, end)


def test_older_files_load_what_was_saved_or_nothing(path):
    """Without a seal the zip's checksums are read: a flip that hits no content may pass, and then nothing is other."""
    old = saved(path)[1]
    _, updater = trained()
    _, right = trained(7)
    refused, rng = 0, random.Random(0)
    for k in range(300):
        path.write_bytes(flip(old, rng) if k < 200 else DAMAGES[k % len(DAMAGES)](old, rng))
        before = copy.deepcopy(updater.contents())
        try:
            assert updater.load(path) == {"epoch": 3}
        except ValueError as error:
            refused += 1
            assert str(error).startswith("load: ")
            assert same(updater.contents(), before)
        else:
            assert same(updater.contents(), right.contents())
            _, updater = trained()
    assert refused > 200


def test_older_files_without_any_checksums_are_loaded_with_a_warning(path):
    """torch can be told to write none; then damage cannot be seen, and that is said."""
    contents = torch.load(io.BytesIO(saved(path)[0]), weights_only=True)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({**contents, "format": 1}, path)
        _, updater = trained()
        with pytest.warns(UserWarning, match=r"load: '.*run.pt' has no checksums, .*Save it anew with updater.save"):
            updater.load(path)
        updater.save(path)
        updater.load(path)
    finally:
        torch.serialization.set_crc32_options(True)


def bomb(old):
    return rewritten(old, lambda name, data: data + bytes(1 << 24), zipfile.ZIP_DEFLATED)


def doubled(old):
    """Every entry of the directory many times, all of the same bytes."""
    with zipfile.ZipFile(io.BytesIO(old)) as archive:
        start, count = archive.start_dir, len(archive.namelist())
    end = old.rindex(b"PK\x05\x06")
    directory = old[start:end] * 200
    tail = b"PK\x05\x06" + bytes(4) + 2 * (200 * count).to_bytes(2, "little")
    return old[:start] + directory + tail + len(directory).to_bytes(4, "little") + start.to_bytes(4, "little") + b"\0\0"


def claiming(old):
    """A tensor that says it has 2^28 elements, over a part with a few."""

    def edit(name, data):
        return data.replace(b"K\x08t", b"J\0\0\0\x10t").replace(b"K\x04K\x02", b"J\0\0\0\x08K\x02")

    return rewritten(old, lambda name, data: edit(name, data) if name.endswith("data.pkl") else data)


def shortened(old):
    """Parts with fewer bytes than their tensors say."""
    return rewritten(old, lambda name, data: data[: len(data) // 2] if "/data/" in name else data)


def folders(old):
    """Parts that a reader takes for folders: it would leave their memory as it finds it."""
    out, at = bytearray(old), 0
    while (at := old.find(b"PK\x01\x02", at + 1)) >= 0:
        out[at + 38] |= 0x10
    return bytes(out)


@pytest.mark.parametrize("seal", [False, True], ids=["unsealed", "sealed"])
@pytest.mark.parametrize("made", [bomb, doubled, claiming, shortened, folders])
def test_what_claims_more_than_the_file_has_is_refused_in_little_memory(made, seal, path):
    """Files that somebody made, with checksums that are right."""
    old = saved(path)[1]
    whole = made(old)
    assert whole != old
    path.write_bytes(resealed(whole) if seal else whole)
    model, updater = trained()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with untouched(model, updater), pytest.raises(ValueError, match=r"^load: '.*run.pt' cannot be read: "):
        updater.load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_a_file_made_by_hand_may_raise_what_it_likes_inside(path):
    """Damage under a right seal comes out as ValueError too, and changes nothing."""
    old = saved(path)[1]
    model, updater = trained()
    rng = random.Random(5)
    with untouched(model, updater):
        for k in range(300):

            def edit(name, data, k=k):
                return DAMAGES[k % len(DAMAGES)](data, rng) if name.endswith("data.pkl") else data

            path.write_bytes(resealed(rewritten(old, edit)))
            with pytest.raises(ValueError, match=r"^load"):
                updater.load(path)


# what is no file


def fifo(path):
    os.mkfifo(path)


def listening(path):
    listener = socket.socket(socket.AF_UNIX)
    os.chdir(path.parent)  # a socket's path is short
    listener.bind(path.name)
    return listener


KINDS = {
    "folder": (os.mkdir, "a folder"),
    "FIFO": (fifo, "a FIFO"),
    "socket": (listening, "a socket"),
    "link to a FIFO": (lambda p: (os.mkfifo(f"{p}.fifo"), p.symlink_to(f"{p}.fifo")), "a FIFO"),
    "device": (lambda p: p.symlink_to("/dev/null"), "a device"),
    "endless device": (lambda p: p.symlink_to("/dev/zero"), "a device"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_refused_and_stays(kind, path, monkeypatch):
    """By load without waiting, and by save without replacing it."""
    monkeypatch.chdir(path.parent)
    make, word = KINDS[kind]
    kept = make(path)
    model, updater = trained()
    before = os.lstat(path)
    with untouched(model, updater):
        for owner, act in (("load", updater.load), ("save", updater.save)):
            with pytest.raises(ValueError, match=f"^{owner}: '.*run.pt' must be a regular file, got {word}.$"):
                act(path)
    assert os.lstat(path)[:3] == before[:3]
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    if kind == "socket":
        kept.close()


def test_a_fifo_with_somebody_at_its_other_end(path):
    """It is not read either."""
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: os.close(os.open(path, os.O_WRONLY)), daemon=True)
    writer.start()
    with pytest.raises(ValueError, match="must be a regular file, got a FIFO"):
        trained()[1].load(path)
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    writer.join(10)


@pytest.mark.parametrize("owner", ["save", "load"])
def test_what_is_no_path_is_refused(owner):
    """A buffer, a number, None; and names that no file can have."""
    model, updater = trained()
    with untouched(model, updater):
        for path in (io.BytesIO(), 3, None, b"run.pt", ["run.pt"], torch.ones(1)):
            with pytest.raises(TypeError, match=f"^{owner}: path must be a str or an os.PathLike of one, got "):
                getattr(updater, owner)(path)
        for path in ("", "a\0b"):
            with pytest.raises(ValueError, match=f"^{owner}: path must be the name of a file, got "):
                getattr(updater, owner)(path)


def test_a_link_to_itself_and_a_name_too_long(path):
    """What the system says of a path is said with the path, in its class."""
    _, updater = trained()
    path.symlink_to(path)
    with pytest.raises(OSError, match=r"^load: '.*run.pt' cannot be read: .*\.$"):
        updater.load(path)
    with pytest.raises((OSError, ValueError), match=r"^save: '.*run.pt' "):
        updater.save(path)
    long = path.with_name("n" * 300)
    for owner in ("load", "save"):
        with pytest.raises(OSError, match=f"^{owner}: '.*nnn' cannot be (read|written): File name too long.$") as found:
            getattr(updater, owner)(long)
        assert found.value.errno is not None
    longest = path.with_name("ü" * 127)
    updater.save(longest)
    updater.load(longest)
    with pytest.raises(NotADirectoryError, match=r"^load: '.*' cannot be read: Not a directory"):
        updater.load(longest / "run.pt")


# saving


def test_a_link_stays_and_what_it_leads_to_is_replaced(path):
    """Relative, over several links, and to a file that is not there yet."""
    _, updater = trained()
    there = path.parent / "disk"
    there.mkdir()
    path.symlink_to("latest")
    (path.parent / "latest").symlink_to(os.path.join("disk", "run-1.pt"))
    for _ in range(2):
        updater.save(path)
        assert path.is_symlink() and os.readlink(path) == "latest"
        assert os.listdir(there) == ["run-1.pt"] and not (there / "run-1.pt").is_symlink()
        assert sorted(os.listdir(path.parent)) == ["disk", "latest", "run.pt"]
        updater.load(path)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002, 0o000])
def test_a_new_file_has_the_mode_that_the_umask_leaves(mask, path):
    """One that replaces another has that one's."""
    _, updater = trained()
    before = os.umask(mask)
    try:
        updater.save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
        for mode in (0o640, 0o604, 0o400, 0o755):
            path.chmod(mode)
            updater.save(path)
            assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        os.umask(before)


FULL = """
import resource, signal, sys, torch, gradchain as gch
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
updater = gch.adam(0.1).bind(torch.nn.Linear(300, 300))
for room in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        updater.save(sys.argv[1])
    except OSError as error:
        print(type(error).__name__, error.errno, error)
"""


def test_where_there_is_no_room_the_old_file_stays(path):
    """The system refuses to write on after so many bytes, as it does on a disk that is full."""
    _, updater = trained()
    updater.save(path)
    before, rooms = path.read_bytes(), ["0", "100", "30000", "365000", str(1 << 20), "1080000"]
    command = [sys.executable, "-c", FULL, str(path), *rooms]
    out = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(gch.__file__).parents[1])
    lines = out.stdout.splitlines()
    assert set(lines) == {f"OSError 27 save: {str(path)!r} cannot be written: File too large."}, out.stderr
    assert len(lines) == len(rooms)
    assert path.read_bytes() == before and os.listdir(path.parent) == ["run.pt"]


@pytest.mark.parametrize("call", ["open", "fsync", "replace", "chmod", "lstat", "torch.save"])
def test_any_error_of_the_system_is_said_with_the_path(call, path, monkeypatch):
    """In its class and with its number; the old file stays, and nothing beside it."""
    _, updater = trained()
    updater.save(path)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    module, name = (torch, "save") if call == "torch.save" else (os, call)
    if call == "open":
        module, name = sealed, "open"
    monkeypatch.setattr(module, name, fail, raising=call != "open")
    with pytest.raises(OSError, match=r"^save: '.*run.pt' cannot be written: No space left on device.$") as found:
        updater.save(path)
    monkeypatch.undo()
    assert found.value.errno == 28 and path.read_bytes() == before and os.listdir(path.parent) == ["run.pt"]


def test_a_folder_that_cannot_be_synced_is_no_error(path, monkeypatch):
    """The new file is there by then: an error says that the old one is."""
    _, updater = trained()
    real, calls = os.fsync, []

    def second_fails(handle):
        calls.append(handle)
        if len(calls) > 1:
            raise OSError(22, "Invalid argument")
        real(handle)

    monkeypatch.setattr(os, "fsync", second_fails)
    updater.save(path)
    monkeypatch.undo()
    assert len(calls) == 2
    trained(1)[1].load(path)


def circular():
    out = []
    out.append(out)
    return out


def nested(depth):
    out = []
    for _ in range(depth):
        out = [out]
    return out


def tagged(value):
    made = torch.ones(2)
    made.tag = value
    return made


class Own(torch.Tensor):
    pass


EXTRA = {
    "circular": circular(), "deep": nested(100_000), "function on a tensor": tagged(print),
    "function on a parameter": nn.Parameter(tagged(print)), "object on a tensor": tagged({"a": [object()]}),
    "subclass": torch.ones(2).as_subclass(Own),
}  # fmt: skip
EXTRA["function on a parameter"].tag = print


@pytest.mark.parametrize("kind", EXTRA)
def test_what_would_not_load_is_not_saved(kind, path):
    """The old file stays, and the error is one of those that save names."""
    _, updater = trained()
    updater.save(path)
    before = path.read_bytes()
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"^save: "):
        updater.save(path, mine=EXTRA[kind])
    assert path.read_bytes() == before and os.listdir(path.parent) == ["run.pt"]


LOADS = {
    "tag": tagged([1, "a", None, 2.5]), "nested": nested(200), "repeats": torch.ones(1).expand(5),
    "sparse": torch.eye(3).to_sparse(), "meta": torch.ones(3, device="meta"), "conj": torch.tensor([1 + 2j]).conj(),
    "float8": torch.ones(2).to(torch.float8_e4m3fn), "huge": 10**300, "surrogate": "\ud800",
    "keys": {(1, None): 2.5, "a": {3: 4}}, "graph": torch.ones(2, requires_grad=True) * 2, "empty": torch.ones(0, 3),
    "slice": torch.arange(10)[2:7:2],
}  # fmt: skip


@pytest.mark.parametrize("kind", LOADS)
def test_what_is_saved_loads(kind, path):
    """Everything that save accepts."""
    _, updater = trained()
    updater.save(path, mine=LOADS[kind])
    found = updater.load(path)["mine"]
    assert type(found) is type(LOADS[kind])
    if isinstance(found, torch.Tensor):
        assert found.shape == LOADS[kind].shape and found.dtype == LOADS[kind].dtype
        assert vars(found) == vars(LOADS[kind])
    if kind not in ("sparse", "meta", "float8", "conj"):
        assert same(found, LOADS[kind].detach() if isinstance(found, torch.Tensor) else LOADS[kind])
