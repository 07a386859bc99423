"""One loop over batches: every device takes part, and every process reads its share.

    for count, found in sweep(function, weights, inputs, 100):
        total = total + found["error"][:count].sum()
    total = together(total)

Calibration, evaluation and everything else that goes through data goes through here.
Among several processes (`jax.distributed.initialize`) each is given the whole data set,
reads its own share, and `together` adds up what the shares gave.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from jaxburst.devices import data_parallel, evenly, share
from jaxburst.progress import track


def length(inputs) -> int:
    """The number of images of inputs `[N, ...]`, a pytree of arrays.

    Raises:
      ValueError: if there are none, or not the same number in each.
    """
    counts = {len(leaf) for leaf in jax.tree.leaves(inputs)}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(
            "inputs: expected the same number of images in each, at least one, found "
            f"{sorted(counts) or 'none'}"
        )
    return counts.pop()


def first(inputs: Any, count: int = 1) -> Any:
    """The first so many images of inputs `[N, ...]`, as NumPy arrays."""
    return jax.tree.map(lambda x: np.asarray(x[:count]), inputs)


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
        in front. All local devices share every batch. It is compiled once, also for
        later sweeps with the same function.
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
    run, copied = None, None
    for count, size, batch in batches(data, batch_size, description):
        shard, replicate = share(size)
        if run is None:
            run, copied = (
                _compiled(function, size, _frozen(options)),
                replicate(weights),
            )
        yield count, jax.device_get(run(copied, shard(batch)))


def add_up(
    function: Callable[[Any, Any, Any], Any],
    weights: Any,
    data: Any,
    batch_size: int,
    *,
    description: str = "",
    options: dict | None = None,
) -> Any:
    """Sums over the images of all processes, taken on the devices.

    For what is large for every image, as a histogram of activations.

    Args:
      function: of `(weights, batch, counts)`; returns sums over the images of a batch,
        in which an image counts as often as `counts`, `[B]`, says: 1, or 0 where it is
        there only to fill the batch.
      weights, data, batch_size, description, options: as for `sweep`.

    Returns:
      What the function returns, added up: in float64, or whole numbers in int64.
    """
    length(data)
    example = jax.tree.map(lambda x: _read(x, np.zeros(1, int)), data)
    shapes = jax.eval_shape(function, weights, example, np.ones(1, np.int32))
    total = jax.tree.map(
        lambda x: np.zeros(x.shape, np.float64 if x.dtype.kind == "f" else np.int64),
        shapes,
    )
    run, copied = None, None
    for count, size, batch in batches(data, batch_size, description):
        shard, replicate = share(size)
        if run is None:
            run = _compiled(_Rows(function), size, _frozen(options))
            copied = replicate(weights)
        counts = (np.arange(size) < count).astype(np.int32)
        found = jax.device_get(run(copied, shard((batch, counts))))
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
    size = length(inputs)
    shard, replicate = share(size)
    there = jax.tree.map(
        lambda x: x if isinstance(x, jax.Array) else np.asarray(x), inputs
    )
    run = _compiled(function, size, ())
    return jax.device_get(run(replicate(weights), shard(there)))


def batches(
    data: Any, batch_size: int, description: str = ""
) -> Iterator[tuple[int, int, Any]]:
    """All batches of this process, for what `sweep` cannot do in one program.

    Args: as for `sweep`.

    Yields:
      `(count, size, batch)`: of the `size` rows of the batch the first `count` count.
    """
    check_batch_size(batch_size)
    rows = own_rows(length(data))
    if not len(rows):
        return
    size = evenly(min(batch_size, len(rows)))
    starts: Any = range(0, len(rows), size)
    if description:
        starts = track(starts, description, len(starts))
    for start in starts:
        chosen = rows[np.arange(start, start + size) % len(rows)]
        batch = jax.tree.map(lambda x, at=chosen: _read(x, at), data)
        yield min(size, len(rows) - start), size, batch


@lru_cache(maxsize=64)
def _compiled(function, size: int, options: tuple) -> Callable:
    """One program for all sweeps with a function."""
    return jax.jit(data_parallel(function, size), compiler_options=dict(options))


def _frozen(options: dict | None) -> tuple:
    return tuple(sorted((options or {}).items()))


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Sums of one device's images as one row of what the devices return."""

    function: Callable

    def __call__(self, weights, batch):
        return jax.tree.map(lambda x: x[None], self.function(weights, *batch))


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


def _read(x, rows: np.ndarray) -> np.ndarray:
    return np.asarray(x[rows])
