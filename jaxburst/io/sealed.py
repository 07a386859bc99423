"""Arrays and plain data in one safetensors file, with the SHA-256 of every byte.

    write(path, seal("jaxburst 1", {"notes": "..."}, {"kernel": kernel}))
    description, arrays = unseal(path, "jaxburst 1", notes=str)

Nothing in a file is executed, no other file is opened for it, and no memory is taken
that is larger than the file.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as to_bytes

from jaxburst.io.files import as_path

_ABOUT = "jaxburst"  # the entry of the header that says what a file is
_UNKNOWN = "0" * 64  # in the place of the SHA-256 while it is computed
_LARGEST = 100_000_000  # bytes of a header
_KINDS = {"BF": "bfloat", "F": "float", "I": "int", "U": "uint"}
WRONG = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


def seal(form: str, description: dict[str, Any], arrays: dict[str, Any]) -> bytes:
    """The content of a file.

    Args:
      form: what kind of file it is, with the number of its version.
      description: what JSON can hold.
      arrays: by their names.

    Raises:
      TypeError, ValueError: if JSON cannot hold the description.
    """
    about = {"format": form, "sha256": _UNKNOWN, "description": description}
    # On the host and in C order, which is how safetensors takes what it is given.
    plain = {name: np.array(value, order="C") for name, value in arrays.items()}
    # Of several entries safetensors would mix the order.
    content = to_bytes(plain, {_ABOUT: json.dumps(about, allow_nan=False)})
    return content.replace(_UNKNOWN.encode(), _digest(content).encode(), 1)


def unseal(
    path: str | os.PathLike,
    form: str,
    what: str = "a file of jaxburst's save",
    **fields: type,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Description and arrays of a file; every byte of it is verified.

    Args:
      path: the file.
      form: the kind of file that it should be.
      what: that in words.
      fields: what the description must hold, and of which type.

    Raises:
      FileNotFoundError: it is not there.
      ValueError: it is damaged, or of another kind.
    """
    if not as_path(path).is_file():
        raise FileNotFoundError(f"{path}: not found; expected {what}")
    try:
        with open(path, "rb") as file:
            about = _about(file)
            if about["format"] != form:
                raise ValueError(
                    f"it is of the format {about['format']!r}, expected {form!r}"
                )
            file.seek(0)
            content = file.read()
        expected = about["sha256"]
        found = _digest(content.replace(expected.encode(), _UNKNOWN.encode(), 1))
        if found != expected:
            raise ValueError(f"its SHA-256 is {found[:12]}…, expected {expected[:12]}…")
        arrays = {name: _array(row) for name, row in deserialize(content)}
        description = about["description"]
        for name, kind in fields.items():
            if not isinstance(description[name], kind):
                raise TypeError(f"its {name}: expected a {kind.__name__}")
        return description, arrays
    except (*WRONG, SafetensorError) as error:
        raise ValueError(
            f"{path}: damaged, or not {what} ({error}); copy or save it again"
        ) from error


def is_sealed(path: Path, form: str) -> bool:
    """Whether a file is of a kind; only its header is read."""
    try:
        with open(path, "rb") as file:
            found = _about(file)["format"]
        return found.rpartition(" ")[0] == form.rpartition(" ")[0]
    except (OSError, *WRONG):
        return False


def _digest(content: bytes) -> str:
    """Of a file in which the place of the SHA-256 holds zeros."""
    return hashlib.sha256(content).hexdigest()


def _about(file) -> dict[str, Any]:
    """What an open file says of itself; its size fits its header."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _LARGEST):
        raise ValueError(
            f"it has {size} bytes, too few for its header; it is cut short, or no "
            "safetensors file"
        )
    found = json.loads(file.read(length))
    ends = [
        row["data_offsets"][1] for name, row in found.items() if name != "__metadata__"
    ]
    expected = 8 + length + max(ends, default=0)
    if expected != size:
        raise ValueError(f"it has {size} bytes, by its header it should be {expected}")
    if _ABOUT not in found.get("__metadata__", {}):
        raise ValueError("it is a safetensors file of another program")
    return json.loads(found["__metadata__"][_ABOUT])


def _array(row: dict[str, Any]) -> np.ndarray:
    """One tensor; safetensors' own reader for NumPy lacks bfloat16."""
    kind = row["dtype"].rstrip("0123456789")
    name = "bool" if kind == "BOOL" else _KINDS[kind] + row["dtype"][len(kind) :]
    return np.frombuffer(row["data"], jnp.dtype(name)).reshape(row["shape"])
