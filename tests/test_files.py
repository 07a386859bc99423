"""Files are old or new, whole; whatever interrupts a writer or stands in its way."""

import errno
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jaxburst.io import files
from jaxburst.io.files import folder, locked, write
from jaxburst.io.sealed import seal, unseal

FORM = "jaxburst test 1"


def test_text_and_bytes(tmp_path):
    assert write(tmp_path / "new/a", "θ").read_bytes() == "θ".encode()
    assert write(str(tmp_path / "b"), b"\0").read_bytes() == b"\0"
    with pytest.raises(TypeError, match="content: expected text or bytes, found None"):
        write(tmp_path / "c", None)
    for path in (None, 3, b""):
        with pytest.raises((TypeError, ValueError), match="path: expected a path"):
            write(path, "")
    assert sorted(os.listdir(tmp_path)) == ["b", "new"]


def test_what_killed_writers_left_is_removed(tmp_path):
    write(tmp_path / "net", "old")
    host = socket.gethostname()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = f".net.{host}-{dead.pid}.0123.part"
    others = [
        f".net.{host}-{os.getpid()}.0123.part",  # being written
        f".net.elsewhere-{dead.pid}.0123.part",  # on a machine that may live
        f".network.{host}-{dead.pid}.0123.part",  # of another file
    ]
    for name in (left, *others):
        (tmp_path / name).write_text("half")
    write(tmp_path / "net", "new")
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "net"])


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_an_interrupted_writer_leaves_the_old_version(
    tmp_path, monkeypatch, step, error
):
    path = write(tmp_path / "net", "old")

    def interrupted(*_):
        raise error

    monkeypatch.setattr(files.os, step, interrupted)
    with pytest.raises(type(error)) as caught:
        write(path, "new")
    if isinstance(error, OSError):
        assert re.match(f"{path}: cannot be written .full.; choose", str(caught.value))
        assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == ["net"] and path.read_text() == "old"


def test_what_stands_in_the_way_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    (tmp_path / "circle").symlink_to("circle")
    for name in ("folder", "file/below", "circle"):
        with pytest.raises(OSError, match=f"{tmp_path / name}: cannot be written"):
            write(tmp_path / name, "new")
    for name in ("file", "file/below"):
        with pytest.raises(OSError, match=f"{tmp_path / name}: cannot be written"):
            folder(tmp_path / name)
    assert (tmp_path / "file").read_text() == "old"
    # A link stays, and what it leads to is replaced.
    (tmp_path / "link").symlink_to("file")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["circle", "file", "folder", "link"]


def test_a_full_disk(tmp_path):
    with pytest.raises(OSError, match="full: cannot be written .No space left"):
        os.symlink("/dev/full", tmp_path / "full")
        with files.named(tmp_path / "full"), open(tmp_path / "full", "w") as file:
            file.write("x")
            file.flush()
            file.close()


WRITER = """
import sys, numpy as np
from jaxburst.io.files import write
from jaxburst.io.sealed import seal
for i in range(10**6):
    content = seal("jaxburst test 1", {"i": i}, {"x": np.full(300_000, i, np.int32)})
    write(sys.argv[1], content)
    print(i, flush=True)
"""


@pytest.mark.slow
def test_killed_at_random_a_writer_leaves_a_whole_version(tmp_path):
    path, rng, before = tmp_path / "net", np.random.default_rng(0), -1
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE
        )
        assert process.stdout.readline() == b"0\n"
        time.sleep(rng.uniform(0, 0.1))
        # Meanwhile a reader always finds one version.
        for _ in range(20):
            description, arrays = unseal(path, FORM)
            assert (arrays["x"] == description["i"]).all()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        description, arrays = unseal(path, FORM)
        assert (arrays["x"] == description["i"]).all() and description["i"] > before
        write(path, seal(FORM, {"i": 0}, {"x": np.zeros(1, np.int32)}))
        assert os.listdir(tmp_path) == ["net"]


def test_two_writers_at_once_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "net"

    def many(letter):
        for _ in range(50):
            write(path, letter * 1000)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(many, "abcd"))
    assert len(set(path.read_text())) == 1 and os.listdir(tmp_path) == ["net"]


def test_a_lock_says_who_has_it_and_dies_with_its_owner(tmp_path):
    with locked(tmp_path):
        who = f"process {os.getpid()} on {socket.gethostname()} writes to it"
        with pytest.raises(BlockingIOError, match=f"{tmp_path}: {who}"):
            with locked(tmp_path):
                pass
    assert not os.listdir(tmp_path)
    code = (
        "import sys, os, pathlib; from jaxburst.io.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert os.listdir(tmp_path) == [files.LOCK]
    with locked(tmp_path):
        pass
    assert not os.listdir(tmp_path)


def test_an_archive_must_be_as_large_as_it_says(tmp_path):
    path = tmp_path / "archive.npz"
    np.savez(path, a=np.arange(5), b=np.str_("text"))
    with files.archive(path) as file:
        assert file["a"].sum() == 10 and str(file["b"]) == "text"
    np.savez_compressed(path, a=np.zeros(5_000_000, np.int64))  # 40 MB in 39 kB
    with pytest.raises(ValueError, match="a.npy unpacks to much more"):
        with files.archive(path):
            pass
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
    )
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.npy", header.getvalue() + bytes(80))
    with pytest.raises(ValueError, match="a.npy is not as large as its header says"):
        with files.archive(path):
            pass
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.npy", b"\x80\x04no array")
    with pytest.raises(ValueError, match="magic"):
        with files.archive(path):
            pass
