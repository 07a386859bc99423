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
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from jaxburst.devices import data_parallel, evenly, optimised, share
from jaxburst.progress import track


def length(inputs) -> int:
    """The number of images of inputs `[N, ...]`, a pytree of arrays."""
    count = len(jax.tree.leaves(inputs)[0])
    if not count:
        raise ValueError("inputs: expected at least one image, found none")
    return count


def first(inputs: Any, count: int = 1) -> Any:
    """The first so many images of inputs `[N, ...]`, as NumPy arrays."""
    return jax.tree.map(lambda x: np.asarray(x[:count]), inputs)


def own_rows(count: int) -> np.ndarray:
    """Which of so many images this process reads."""
    return np.array_split(np.arange(count), jax.process_count())[jax.process_index()]


def even_size(count: int, batch_size: int) -> int:
    """Images in a batch of this process, rounded up to what its devices share evenly,
    of so many images in all."""
    return evenly(max(1, min(batch_size, len(own_rows(count)))))


def batches(
    data: Any, batch_size: int, description: str = ""
) -> Iterator[tuple[int, Any]]:
    """All batches of this process, `(count, batch)`, of which the first `count` rows
    count. All have `even_size` rows: the last begins again from the front."""
    count = length(data)
    rows, size = own_rows(count), even_size(count, batch_size)
    starts: Any = range(0, len(rows), size)
    if description:
        starts = track(starts, description, len(starts))
    for start in starts:
        chosen = rows[np.arange(start, start + size) % len(rows)]
        batch = jax.tree.map(lambda x, at=chosen: np.asarray(x[at]), data)
        yield min(size, len(rows) - start), batch


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
        in front. All local devices share every batch. It is compiled once, also for
        later sweeps with the same function.
      weights: given whole to every device.
      data: a pytree of arrays `[N, ...]`, or of what gives arrays when it is indexed.
      batch_size: images at a time, see `even_size`.
      description: what is being done, for a progress bar; none if empty.
      options: compiler options; None for those of what runs a few times.

    Yields:
      `(count, found)`: what the function returned, as NumPy arrays, of which the first
      `count` rows count.
    """
    size = even_size(length(data), batch_size)
    run = _program(function, weights, size, options)
    for count, batch in batches(data, batch_size, description):
        yield count, run(batch)


def gather(
    function: Callable[[Any, Any], Any], weights: Any, data: Any, batch_size: int, **how
) -> Any:
    """What a function gives for all images of all processes, in order, `[N, ...]`.

    Args: as for `sweep`.
    """
    count = length(data)
    parts = [
        jax.tree.map(lambda x, rows=rows: x[:rows], found)
        for rows, found in sweep(function, weights, data, batch_size, **how)
    ]
    if not parts:  # a process without images of its own
        shapes = jax.eval_shape(function, weights, first(data))
        parts = [jax.tree.map(lambda x: np.zeros((0, *x.shape[1:]), x.dtype), shapes)]
    return jax.tree.map(lambda *x: _in_order(np.concatenate(x), count), *parts)


def add_up(
    function: Callable[[Any, Any, Any], Any],
    weights: Any,
    data: Any,
    batch_size: int,
    *,
    description: str = "",
) -> Any:
    """Sums over the images of all processes, taken on the devices.

    For what is large for every image, as a histogram of activations.

    Args:
      function: of `(weights, batch, counts)`; returns sums over the images of a batch,
        in which an image counts as often as `counts`, `[B]`, says: 1, or 0 where it is
        there only to fill the batch.
      weights, data, batch_size, description: as for `sweep`.

    Returns:
      What the function returns, added up: in float64, or whole numbers in int64.
    """
    shapes = jax.eval_shape(function, weights, first(data), np.ones(1, np.int32))
    total = jax.tree.map(
        lambda x: np.zeros(x.shape, np.float64 if x.dtype.kind == "f" else np.int64),
        shapes,
    )
    size = even_size(length(data), batch_size)
    run = _program(_rows(function), weights, size)
    for count, batch in batches(data, batch_size, description):
        found = run((batch, (np.arange(size) < count).astype(np.int32)))
        total = jax.tree.map(lambda a, b: a + b.sum(0, dtype=a.dtype), total, found)
    return together(total)


def at_once(function: Callable[[Any, Any], Any], weights: Any, inputs: Any) -> Any:
    """Applies a function to all inputs as one batch, which the local devices share.

    Args:
      function: as for `sweep`; means over the batch it takes with `devices.mean_over`.
      weights: given whole to every device.
      inputs: `[N, ...]`, not many.

    Returns:
      What the function returned, as NumPy arrays.
    """
    there = jax.tree.map(
        lambda x: x if isinstance(x, jax.Array) else np.asarray(x), inputs
    )
    return _program(function, weights, length(inputs))(there)


def _program(function, weights, size: int, options: dict | None = None) -> Callable:
    """A function of batches of one size, which the devices share."""
    # Compiling is most of what runs a few times; a lower level takes less of it.
    options = optimised(1) if options is None else options
    run = _compiled(function, size, tuple(options.items()))
    shard, replicate = share(size)
    weights = replicate(weights)
    return lambda batch: jax.device_get(run(weights, shard(batch)))


@lru_cache(maxsize=64)
def _compiled(function, size: int, options: tuple) -> Callable:
    """One program for all sweeps with a function."""
    return jax.jit(data_parallel(function, size), compiler_options=dict(options))


@lru_cache(maxsize=64)
def _rows(function: Callable) -> Callable:
    """Sums of one device's images as one row of what the devices return."""
    return lambda weights, batch: jax.tree.map(
        lambda x: x[None], function(weights, *batch)
    )


def each(tree: Any) -> Any:
    """What every process has, arrays of one shape, in the order of the processes."""
    if jax.process_count() == 1:
        return jax.tree.map(lambda x: np.asarray(x)[None], tree)
    from jax.experimental.multihost_utils import process_allgather

    # In single precision JAX would cut whole numbers and float64 short.
    with jax.enable_x64(True):
        return jax.tree.map(lambda x: np.asarray(process_allgather(x)), tree)


def together(tree: Any) -> Any:
    """Adds up what each process has, arrays of one shape; alone, it is returned."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda x: x.sum(0), each(tree))


def _in_order(array: np.ndarray, count: int) -> np.ndarray:
    """The rows of all processes `[N, ...]`, of which each gives its own."""
    if jax.process_count() == 1:
        return array
    whole = np.zeros((count, *array.shape[1:]), array.dtype)
    whole[own_rows(count)] = array
    return together(whole)
