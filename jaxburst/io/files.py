"""Writing files: whoever looks finds the old version or the new one, whole.

write("runs/record.json", text)     # text or bytes
with locked("runs/vgg16"):          # by one process at a time
    ...
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

LOCK = ".lock"


def write(path: str | os.PathLike, content: bytes | str) -> Path:
    """Writes a file, all or nothing, as `replacing` does.

    Args:
      path: the file.
      content: text (UTF-8) or bytes.

    Returns:
      The path.

    Raises:
      OSError: it cannot be written. The old version is intact.
      TypeError: for no path, or no content.

    Example:
      >>> import tempfile
      >>> folder = tempfile.mkdtemp()
      >>> write(f"{folder}/new/note.txt", "spikes").read_text()
      'spikes'
    """
    if not isinstance(content, bytes | str):
        raise TypeError(f"content: expected text or bytes, found {content!r:.80}")
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return as_path(path)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a file that takes the place of another one when all of it is written.

    It has another name in the same folder, and is on the disk before it gets this one:
    whatever interrupts that, and whoever reads meanwhile, finds the old version or the
    new one. What a killed writer left is removed. Missing folders are made; a symbolic
    link stays, and what it leads to is replaced.

    Raises:
      OSError: it cannot be written: a folder is there, or a file where a folder should
        be, it is read-only, the disk is full. The old version is intact.
      TypeError: for no path.
    """
    path = as_path(path)
    target = Path(os.path.realpath(path))
    start, end = f".{target.name}.", ".part"
    # The name says who writes, so that others know whether it is left over.
    made = target.with_name(f"{start}{_me()}.{secrets.token_hex(4)}{end}")
    with named(path):
        if target.is_dir():
            raise IsADirectoryError(None, "a folder is there")
        if target.is_symlink():
            raise OSError(None, "a symbolic link that leads back to itself")
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(None, "it is read-only")
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f"{_literal(start)}*{end}"):
            if _is_left_over(left.name[len(start) :]):
                left.unlink(missing_ok=True)
        try:
            with open(made, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(made, target)
        except BaseException:
            made.unlink(missing_ok=True)
            raise
        _sync(target.parent)


def as_path(path: str | os.PathLike, name: str = "path") -> Path:
    """A path that was given by a caller.

    Raises:
      TypeError, ValueError: it is no path, or empty; naming the argument.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{name}: expected a path, found {path!r:.80}")
    text = os.fspath(path)
    if not text or "\0" in os.fsdecode(text):
        raise ValueError(f"{name}: expected a path, found {text!r}")
    return Path(os.fsdecode(text))


def folder(path: str | os.PathLike, name: str = "path") -> Path:
    """Makes a folder, and sees now, not after hours, that files can be written to it.

    Raises:
      OSError: they cannot; naming the folder.
    """
    path = as_path(path, name).expanduser()
    with named(path):
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{_me()}"
        try:
            probe.write_bytes(b"-")
        finally:
            probe.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def archive(path: str | os.PathLike) -> Iterator[Any]:
    """Opens an archive of NumPy's whose arrays are as large as it says.

    An array takes as much memory as its own header says, and a short file can unpack to
    a very long one. So both are compared with the archive first.

    Raises:
      ValueError: an array is not as large as the archive has it, or unpacks to more
        than a hundred times its size; `np.load`'s errors for what is no archive.
    """
    with open(path, "rb") as stream:
        with zipfile.ZipFile(stream) as members:
            for member in members.infolist():
                if member.file_size > 2**20 + 100 * member.compress_size:
                    raise ValueError(f"{member.filename} unpacks to much more")
                with members.open(member) as file:
                    _check_size(file, member)
        stream.seek(0)
        with np.load(stream, allow_pickle=False) as file:
            yield file


def _check_size(file, member: zipfile.ZipInfo) -> None:
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in read:
        raise ValueError(f"{member.filename} is of an unknown version {version}")
    shape, _, kind = read[version](file)
    if file.tell() + math.prod(shape) * kind.itemsize != member.file_size:
        raise ValueError(f"{member.filename} is not as large as its header says")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps a folder to this process; the lock of one that was killed is void.

    Raises:
      BlockingIOError: another one has it; says which, on which machine.
    """
    if fcntl is None:
        yield
        return
    place = path / LOCK
    while True:
        with named(path):
            file = open(place, "a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read(200).decode(errors="replace") or "another process"
            file.close()
            raise BlockingIOError(
                f"{path}: {owner} writes to it; wait for that, stop it, or choose "
                "another directory"
            ) from None
        # Between opening and locking, its owner may have removed it.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(place), os.fstat(file.fileno())):
                break
        file.close()
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        file.flush()
        yield
    finally:
        place.unlink(missing_ok=True)
        file.close()


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """What the system refuses, as one sentence that begins with the path."""
    try:
        yield
    except OSError as error:
        if error.strerror is None:  # no refusal of the system's, or a sentence already
            raise
        found = type(error)(
            f"{path}: cannot be written ({error.strerror}); choose another place, or "
            "make room"
        )
        found.errno = error.errno
        raise found from error


def _me() -> str:
    return f"{socket.gethostname()}-{os.getpid()}".replace(os.sep, "_")


def _is_left_over(name: str) -> bool:
    """Whether a writer `HOST-PID.RANDOM.part` on this machine is no more."""
    host, _, pid = name.rsplit(".", 2)[0].rpartition("-")
    if host != _me().rpartition("-")[0] or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _literal(text: str) -> str:
    """For `glob`, in which `[` and `*` mean something."""
    return "".join(f"[{c}]" if c in "[*?" else c for c in text)


def _sync(path: Path) -> None:
    """Brings names to the disk, where a system can."""
    with contextlib.suppress(OSError, AttributeError):
        opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
