"""Several devices share a batch: each gets a part of the images and all the weights.

cut, copy = share(len(images))
logits = infer(model, copy(spiking), cut(images), steps)    # jit follows the data
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def share(images: int) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """How to share a batch evenly, by as many of the local devices as divide it.

    Args:
      images: number of images in the batch.

    Returns:
      `(cut, copy)`. `cut` puts arrays `[images, ...]` on the devices in parts, `copy`
      a whole pytree on each of them. With one device there is nothing to do, and
      neither does anything.
    """
    devices = jax.local_devices()[: math.gcd(images, jax.local_device_count())]
    if len(devices) == 1:
        return _same, _same
    mesh = Mesh(np.array(devices), ("data",))

    def put(spec: PartitionSpec) -> Callable[[Any], Any]:
        return lambda tree: jax.device_put(tree, NamedSharding(mesh, spec))

    return put(PartitionSpec("data")), put(PartitionSpec())


def evenly(images: int) -> int:
    """The next number of images that all local devices share evenly."""
    return images + -images % jax.local_device_count()


def _same(tree: Any) -> Any:
    return tree
