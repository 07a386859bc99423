"""One loop over batches: every device takes part, and every process reads its share.

    for count, found in sweep(function, weights, inputs, 100):
        total = total + found["error"][:count].sum()
    total = together(total)

Calibration, evaluation and everything else that goes through data goes through here.
Among several processes (`jax.distributed.initialize`) each is given the whole data set,
reads its own share, and `together` adds up what the shares gave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxburst.devices import divided, evenly, share
from jaxburst.progress import track


def length(inputs) -> int:
    """The number of images of inputs `[N, ...]`, a pytree of arrays or a `Split`.

    Raises:
      ValueError: if there are none, or not the same number in each.
    """
    counts = {len(leaf) for leaf in jax.tree.leaves(_arrays(inputs))}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(
            "inputs: expected the same number of images in each, at least one, found "
            f"{sorted(counts) or 'none'}"
        )
    return counts.pop()


def own_rows(count: int) -> np.ndarray:
    """Which of so many images this process reads."""
    return np.array_split(np.arange(count), jax.process_count())[jax.process_index()]


def sweep(
    function: Callable[[Any, Any], Any],
    weights: Any,
    data: Any,
    batch_size: int,
    *,
    description: str = "",
    options: dict | None = None,
) -> Iterator[tuple[int, Any]]:
    """Applies a function to all batches of this process; one compilation serves all.

    Args:
      function: of `(weights, batch)`, pytrees both; all that it returns has the images
        in front. All local devices share every batch.
      weights: given whole to every device.
      data: a pytree of arrays `[N, ...]`, or of what gives arrays when it is indexed.
      batch_size: images at a time, rounded up to what the devices share evenly; a last
        partial batch begins again from the front.
      description: what is being done, for a progress bar; none if empty.
      options: compiler options.

    Yields:
      `(count, found)`: what the function returned, as NumPy arrays, of which the first
      `count` rows count.
    """
    check_batch_size(batch_size)
    rows = own_rows(length(data))
    if not len(rows):
        return
    size = evenly(min(batch_size, len(rows)))
    cut, copy = share(size)
    run = jax.jit(divided(function, size), compiler_options=options)
    weights = copy(weights)
    starts: Any = range(0, len(rows), size)
    if description:
        starts = track(starts, description, len(starts))
    for start in starts:
        chosen = rows[np.arange(start, start + size) % len(rows)]
        batch = jax.tree.map(lambda x, at=chosen: _read(x, at), _arrays(data))
        yield min(size, len(rows) - start), jax.device_get(run(weights, cut(batch)))


def together(tree: Any) -> Any:
    """Adds up what each process has, arrays of one shape; alone, it is returned."""
    if jax.process_count() == 1:
        return tree
    from jax.experimental.multihost_utils import process_allgather

    # In single precision JAX would cut whole numbers and float64 short.
    with jax.enable_x64(True):
        return jax.tree.map(lambda x: np.asarray(process_allgather(x)).sum(0), tree)


def in_order(array: np.ndarray, count: int) -> np.ndarray:
    """The rows of all processes `[N, ...]`, of which each gives its own."""
    if jax.process_count() == 1:
        return array
    whole = np.zeros((count, *array.shape[1:]), array.dtype)
    whole[own_rows(count)] = array
    return together(whole)


def check_batch_size(batch_size: int) -> None:
    """Refuses what is no number of images.

    Raises:
      ValueError: saying what was found.
    """
    whole = isinstance(batch_size, int) and not isinstance(batch_size, bool)
    if not whole or batch_size < 1:
        raise ValueError(
            f"batch_size must be a whole number of at least 1, found {batch_size!r}"
        )


def _arrays(data):
    """The arrays of a `Split`, or the data itself."""
    return data.arrays if hasattr(data, "arrays") else data


def _read(x, rows: np.ndarray) -> np.ndarray:
    return np.asarray(x[rows])
