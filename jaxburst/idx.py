"""Files in the idx format of MNIST: one array of bytes, gzipped or not."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np

_BYTES = 8  # the format's code for unsigned bytes


def read(path: str | Path) -> np.ndarray:
    """Reads an idx file of unsigned bytes.

    Two bytes of zeros, the code of the type, the number of axes `n`; `n` big-endian
    32-bit sizes; then the numbers, the last axis fastest.

    Args:
      path: of the file; decompressed if it ends in `.gz`.

    Returns:
      uint8, `[N, ...]`.

    Raises:
      ValueError: for a file that is not one of this format, or not whole.

    Example:
      >>> import pathlib, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "labels")
      ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
      ...     read(path)
      array([7, 8, 9], dtype=uint8)

    References:
      LeCun, Cortes and Burges, "The MNIST database of handwritten digits".
    """
    path = Path(path)
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError) as error:
            raise ValueError(f"{path}: it is no whole gzip file ({error})") from error
    if len(content) < 4 or content[:3] != bytes([0, 0, _BYTES]):
        raise ValueError(
            f"{path}: expected an idx file of unsigned bytes, which begins with 0 0 "
            f"{_BYTES}, found {list(content[:3])}"
        )
    start = 4 + 4 * content[3]
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist())
    if len(shape) != content[3] or len(content) - start != math.prod(shape):
        raise ValueError(
            f"{path}: expected {math.prod(shape):,} bytes behind the header, for an "
            f"array of the shape {shape}, found {max(len(content) - start, 0):,}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
