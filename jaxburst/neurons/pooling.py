"""Max pooling over time: by lateral inhibition, or by gating, the baseline."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxburst.graph import Node, at_batch, execute


class Pooled(NamedTuple):
    """What a pool carries from step to step: whole numbers, or charges.

    Attributes:
      total: running sum `S` of its input.
      sent: `max S`, what has been passed on so far.

    Example:
      >>> Pooled(jnp.ones((1, 4)), jnp.ones((1, 1))).total.shape
      (1, 4)
    """

    total: jax.Array
    sent: jax.Array


def lateral(node: Node, state: Pooled, x: jax.Array, batch: int):
    r"""Max pooling by lateral inhibition, one time step.

    .. math::
        S_t = S_{t-1} + n_t, \qquad \mathrm{out}_t = \max S_t - \max S_{t-1}

    with the maximum over each window. Whoever leads inhibits the others by what has
    been passed on, so the outputs up to `t` add up to the pool of the summed inputs,
    for any window, stride and padding.

    Args: the pool, its state after the previous step, what arrives, and how many images
    there are. Returns: the state after this step, and what is passed on.

    References:
      Li and Zeng, IJCAI 2022, "lateral inhibition pooling".

    Example:
      >>> best = jb.trace(lambda _, x: jax.nn.relu(x).max(1), (), inputs)
      >>> pool, passed = best.graph[best.pools[0]], []
      >>> state = Pooled(jnp.zeros((1, 2)), jnp.zeros(1))
      >>> for spikes in [3, 0], [0, 2], [0, 2]:  # the second overtakes the first
      ...     state, out = lateral(pool, state, jnp.array([spikes]), batch=1)
      ...     passed.append(out.item())
      >>> passed
      [3.0, 0.0, 1.0]
    """
    total = state.total + x
    best = execute(node, total, batch=batch)
    return Pooled(total, best), best - state.sent


def gated(node: Node, state: Pooled, x: jax.Array, batch: int):
    """Max pooling by gating, one time step: the baseline of earlier work.

    Among the inputs of a window whose count up to now is the largest, the largest
    current output passes. The winner changes over time, so more can pass than any one
    input sent: the pooling error that `lateral` removes.

    Args and Returns: as `lateral`.

    References:
      Rueckauer et al., Frontiers in Neuroscience 2017, section 2.2.6.

    Example:
      >>> best = jb.trace(lambda _, x: jax.nn.relu(x).max(1), (), inputs)
      >>> pool, passed = best.graph[best.pools[0]], []
      >>> state = Pooled(jnp.zeros((1, 2)), jnp.zeros(1))
      >>> for spikes in [3, 0], [0, 2], [0, 2]:  # no neuron has sent more than 4
      ...     state, out = gated(pool, state, jnp.array([spikes]), batch=1)
      ...     passed.append(out.item())
      >>> passed
      [3, 0, 2]
    """
    total = state.total + x
    totals, current = (_members(node, value, batch) for value in (total, x))
    leads = totals == totals.max(0, keepdims=True)
    out = jnp.where(leads, current, jnp.full_like(current, -np.inf)).max(0)
    return Pooled(total, state.sent + out), out


POOLS = {"lateral": lateral, "gated": gated}


def _members(node: Node, x: jax.Array, batch: int) -> jax.Array:
    """The members of each window, in front of what the pool gives."""
    params = at_batch(node.role.params, batch)
    if "axes" in params:
        axes = params["axes"]
        kept = [i for i in range(x.ndim) if i not in axes]
        return x.transpose(*axes, *kept).reshape(-1, *[x.shape[i] for i in kept])
    window, strides = params["window_dimensions"], params["window_strides"]
    apart = params["window_dilation"]
    edges = [(low, high, inner - 1) for (low, high), inner in zip(
        params["padding"], params["base_dilation"], strict=True)]  # fmt: skip
    padded = lax.pad(x, np.array(-np.inf, x.dtype), edges)
    reach = [(n - 1) * d + 1 for n, d in zip(window, apart, strict=True)]
    counts = [
        (size - far) // step + 1
        for size, far, step in zip(padded.shape, reach, strides, strict=True)
    ]
    found = []
    for place in np.ndindex(*window):
        start = [i * d for i, d in zip(place, apart, strict=True)]
        stop = [
            a + (n - 1) * s + 1 for a, n, s in zip(start, counts, strides, strict=True)
        ]
        found.append(lax.slice(padded, start, stop, strides))
    return jnp.stack(found)
