"""What populations send, in the three units that hardware is charged in."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Traffic(NamedTuple):
    r"""Counts of one population or pool, each of the same shape.

    A spike of this library is a whole number `n`, of either sign. What it costs depends
    on what carries it:

    .. math::
        \mathrm{quanta} = \sum |n|, \qquad
        \mathrm{events} = \sum [n \ne 0], \qquad
        \mathrm{digits} = \sum d(n)

    with `d` the number of digits of the non-adjacent form, the shortest sum of signed
    powers of two: 7 = 8 - 1 has two.

    Attributes:
      quanta: unary spikes, one accumulate and one access to memory each: what the paper
        counts.
      events: graded events. Each carries its number; memory is accessed once for each.
      digits: signed binary digits of the numbers carried: what a datapath that shifts
        and adds spends.

    Example:
      >>> count(jnp.array([7.0, 0.0, -2.0])).events.item()
      2
    """

    quanta: Any
    events: Any
    digits: Any

    def paid(self, unit: str) -> tuple[Any, Any]:
        """How often memory is accessed, and how many operations a synapse makes.

        Example:
          >>> Traffic(quanta=9, events=2, digits=3).paid("digits")
          (2, 3)
        """
        sent = self.quanta if unit == "quanta" else self.events
        return sent, self.digits if unit == "digits" else sent


def count(spikes: jax.Array, whole: bool = True) -> Traffic:
    """Counts along the last axis, in one pass.

    Args:
      spikes: whole numbers `[..., N]`, of either sign.
      whole: False for charges, which pools pass on that pool currents: each that is not
        zero counts as one, in every unit.

    Returns:
      The `Traffic`, `[...]` each.

    Example:
      >>> count(jnp.array([7.0, 0.0, -2.0]))
      Traffic(quanta=Array(9, dtype=int32), events=Array(2, dtype=int32), \
digits=Array(3, dtype=int32))
    """
    # Pools of codes whose quanta are no multiples of each other pass on parts of one; a
    # thousandth is rounding.
    n = jnp.ceil(jnp.abs(spikes) - 0.001) if whole else spikes != 0
    n = n.astype(jnp.int32)
    # n and 3 n differ in a bit for each digit that is not zero.
    digits = lax.population_count(n ^ (3 * n))
    zero = jnp.zeros((), jnp.int32)
    return Traffic(
        *lax.reduce(
            (n, (n != 0).astype(jnp.int32), digits),
            (zero, zero, zero),
            lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)),
            (n.ndim - 1,),
        )
    )
