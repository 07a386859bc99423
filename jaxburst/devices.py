"""Several devices share a batch: each gets a part of the images and all the weights.

    shard, replicate = share(len(images))
    run = jax.jit(data_parallel(function, len(images)))
    found = run(replicate(weights), shard(images))

The cores of a CPU are one device unless JAX is told otherwise before it starts:

    jax.config.update("jax_num_cpu_devices", 2)

One for each core is faster where there are images for all of them: of one device's
work XLA leaves much to a single core, as most products of a Winograd convolution.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_IMAGES, _WHOLE = PartitionSpec("images"), PartitionSpec()


def share(images: int) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """How to share a batch evenly, by as many of the local devices as divide it.

    Args:
      images: number of images in the batch.

    Returns:
      `(shard, replicate)`. `shard` puts arrays `[images, ...]` on the devices in
      parts, `replicate` a whole pytree on each of them. With one device there is
      nothing to do, and neither does anything.
    """
    mesh = _mesh(images)
    if mesh is None:
        return _same, _same

    def put(spec: PartitionSpec) -> Callable[[Any], Any]:
        return lambda tree: jax.device_put(tree, NamedSharding(mesh, spec))

    return put(_IMAGES), put(_WHOLE)


def data_parallel(function: Callable[[Any, Any], Any], images: int) -> Callable:
    """A function of weights and images that every device applies to its own part.

    What follows shared data by itself may be gathered on the way: a reshape that puts
    time steps before images does so, and every device would simulate all of them.

    Args:
      function: of `(weights, images)`, pytrees both, of which the second and all that
        is returned have the images in front.
      images: number of images in the batch, as for `share`.

    Returns:
      The same function for what `replicate` and `shard` return, for `jax.jit`. With
      one device it is the function itself.
    """
    mesh = _mesh(images)
    if mesh is None:
        return function
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(_WHOLE, _IMAGES),
        out_specs=_IMAGES,
        check_vma=False,  # the loop over time begins with zeros, the same everywhere
    )


def mean_over(x: jax.Array, images: int) -> jax.Array:
    """Inside a `data_parallel` function: the mean of what all devices have."""
    return jax.lax.pmean(x, "images") if _sharing(images) > 1 else x


def per_device(images: int) -> int:
    """How many images each of the devices gets that share so many."""
    return images // _sharing(images)


def evenly(images: int) -> int:
    """The next number of images that all local devices share evenly."""
    return images + -images % jax.local_device_count()


def one_core_each() -> bool:
    """Whether every core of a CPU is a device of its own."""
    return jax.default_backend() == "cpu" and jax.local_device_count() >= cores()


def optimised(level: int | None = None) -> dict[str, Any]:
    """Compiler options for what simulates: barriers hold; LLVM may do less.

    None where JAX is told to optimise still less (`jax_disable_most_optimizations`).
    """
    less = jax.config.read("jax_disable_most_optimizations")
    if less or jax.default_backend() != "cpu":
        return {}
    lower = {} if level is None else {"xla_backend_optimization_level": level}
    return _barriers() | lower


@cache
def _barriers() -> dict[str, Any]:
    """Options with which XLA for CPUs keeps each `optimization_barrier`.

    It forgets them before it decides what to compute again for every reader; where it
    keeps them, spikes are computed once. The second pass would put small loops where
    a barrier cannot be compiled. None for a version that cannot compile one in a loop.
    """
    passes = "cse_barrier_expander,small-while-loop-hoisting"
    options: dict[str, Any] = {"xla_disable_hlo_passes": passes}

    def step(_, x):
        return jax.lax.optimization_barrier(x + 1)

    loop = jax.jit(lambda x: jax.lax.fori_loop(0, 2, step, x))
    try:
        loop.lower(1.0).compile(compiler_options=options)
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def cores() -> int:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _sharing(images: int) -> int:
    return math.gcd(images, jax.local_device_count())


def _mesh(images: int) -> Mesh | None:
    devices = jax.local_devices()[: _sharing(images)]
    return Mesh(np.array(devices), ("images",)) if len(devices) > 1 else None


def _same(tree: Any) -> Any:
    return tree
