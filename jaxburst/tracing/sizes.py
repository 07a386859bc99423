"""A jaxpr for any number of images, from the jaxprs for two numbers.

Where Python insists on a number (`len(x)`, `np.zeros(x.shape)`) a function cannot be
traced with a symbol for its batch. It is traced twice then, and whatever differs
between the two is linear in the number of images, or the function depends on it.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

SIZES = (61, 67)
"""Two numbers of images."""


class Differs(ValueError):
    """The program is another one for another number of images."""


def unified(one: ClosedJaxpr, two: ClosedJaxpr, symbol) -> ClosedJaxpr:
    """The jaxpr with a symbol where the two have different sizes.

    Args:
      one: for `SIZES[0]` images.
      two: for `SIZES[1]`.
      symbol: the symbolic number of images.

    Raises:
      Differs: if they differ by more than sizes.
    """
    return _Unifier(symbol).closed(one, two)


class _Unifier:
    def __init__(self, symbol):
        self.symbol = symbol
        self.vars: dict[Any, Any] = {}

    def closed(self, one: ClosedJaxpr, two: ClosedJaxpr) -> ClosedJaxpr:
        self.equal(len(one.consts), len(two.consts))
        consts = [self.const(a, b) for a, b in zip(one.consts, two.consts, strict=True)]
        return ClosedJaxpr(self.jaxpr(one.jaxpr, two.jaxpr), consts)

    def jaxpr(self, one: Jaxpr, two: Jaxpr) -> Jaxpr:
        self.equal(len(one.eqns), len(two.eqns))
        constvars = self.variables(one.constvars, two.constvars)
        invars = self.variables(one.invars, two.invars)
        eqns = []
        for a, b in zip(one.eqns, two.eqns, strict=True):
            if a.primitive is not b.primitive:
                raise Differs
            eqns.append(
                a.replace(
                    invars=self.variables(a.invars, b.invars),
                    outvars=self.variables(a.outvars, b.outvars),
                    params=self.value(a.params, b.params),
                )
            )
        outvars = self.variables(one.outvars, two.outvars)
        return one.replace(
            constvars=constvars, invars=invars, outvars=outvars, eqns=eqns
        )

    def variables(self, one, two) -> list:
        self.equal(len(one), len(two))
        return [self.variable(a, b) for a, b in zip(one, two, strict=True)]

    def variable(self, one, two):
        if isinstance(one, Literal):
            if not isinstance(two, Literal) or not np.array_equal(one.val, two.val):
                raise Differs
            return one
        if one not in self.vars:
            shape = self.value(tuple(one.aval.shape), tuple(two.aval.shape))
            dtype = self.equal(one.aval.dtype, two.aval.dtype)
            self.vars[one] = type(one)(ShapedArray(shape, dtype))
        return self.vars[one]

    def value(self, one, two) -> Any:
        """Parameters of equations."""
        match one:
            case ClosedJaxpr():
                return self.closed(one, two)
            case Jaxpr():
                return self.jaxpr(one, two)
            case bool() | None:
                return self.equal(one, two)
            case int() | np.integer():
                # An enumeration is a whole number, too, and stays one.
                return one if one == two else self.size(int(one), int(two))
            case dict():
                self.equal(sorted(one), sorted(two))
                return {name: self.value(one[name], two[name]) for name in one}
            case tuple() | list():
                self.equal(len(one), len(two))
                found = [self.value(a, b) for a, b in zip(one, two, strict=True)]
                named = hasattr(one, "_fields")
                return type(one)(*found) if named else type(one)(found)
            case np.ndarray() | jax.Array():
                return self.const(one, two)
        function = callable(one) or type(one).__name__ == "WrappedFun"
        return one if function else self.equal(one, two)

    def equal(self, one, two):
        if type(one) is not type(two) or one != two:
            raise Differs
        return one

    def size(self, one: int, two: int):
        times, rest = divmod(two - one, SIZES[1] - SIZES[0])
        if rest:
            raise Differs
        return times * self.symbol + (one - times * SIZES[0])

    def const(self, one, two):
        """An array; of one with a row for each image, all alike, the first."""
        if jax.numpy.issubdtype(one.dtype, jax.dtypes.prng_key):
            return one
        one_, two_ = np.asarray(one), np.asarray(two)
        if one_.shape == two_.shape:
            if not np.array_equal(one_, two_):
                raise Differs
            return one
        self.equal(one_.ndim, two_.ndim)
        sizes = zip(one_.shape, two_.shape, strict=True)
        axis = next(i for i, (a, b) in enumerate(sizes) if a != b)
        row = one_.take([0], axis)
        if not (row == one_).all():
            raise Differs
        self.equal(two_.take([0], axis).shape, row.shape)
        if not (row == two_).all():
            raise Differs
        return row
