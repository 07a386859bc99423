"""How the weights of a network follow from its variables: a list of primitives.

Evaluated, it folds batch normalisation into kernels, whatever its spelling.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxburst.graph import Constant, at_batch
from jaxburst.network import Affine

# What a variable of the jaxpr stands for while it is followed.


class Held(NamedTuple):
    """A constant: known now."""

    value: np.ndarray


class Sized(NamedTuple):
    """A constant that depends on the number of images: of one, and of several."""

    one: np.ndarray
    many: np.ndarray
    source: str


class Made(NamedTuple):
    """A value that depends on the variables: made by the program, at `slot`.

    `root` is the parameter it comes from; `varies` the axes along which it may vary.
    """

    slot: int
    shape: tuple
    dtype: Any
    root: str | None
    varies: tuple[int, ...]


class Signal(NamedTuple):
    """A node's output."""

    name: str


class Program:
    """How weights follow from the variables: a list of primitives, then folds."""

    def __init__(self, pick):
        self.pick = pick
        self.steps: list[tuple] = []  # primitive, operands, params, slots
        self.slots = 0
        self.uses: dict[str, Any] = {}  # node -> what it takes
        self.parameters: dict[str, int] = {}
        self.fingerprint = ""
        self.rounding = 0.0  # of the shortest numbers in the user's function

    def slot(self) -> int:
        self.slots += 1
        return self.slots - 1

    def seal(self, needed: set[str]) -> None:
        """Keeps what the nodes that are left need."""
        self.uses = {name: use for name, use in self.uses.items() if name in needed}
        wanted = {
            value.slot
            for use in self.uses.values()
            for value in use.operands()
            if isinstance(value, Made)
        }
        kept = []
        for step in reversed(self.steps):
            primitive, operands, params, slots = step
            if wanted.intersection(slots):
                kept.append(step)
                wanted |= {v.slot for v in operands if isinstance(v, Made)}
        self.steps = kept[::-1]
        text = [(str(p), _texts(o), str(q), s) for p, o, q, s in self.steps]
        text += sorted((name, use.text()) for name, use in self.uses.items())
        self.fingerprint = hashlib.sha256(repr(text).encode()).hexdigest()

    def with_factors(self, factors: dict[str, tuple]) -> Program:
        """Of a network with more wires, which multiply: by 1, as far as it knows.

        Args:
          factors: `{wire: (what it multiplies by,)}`.
        """
        if not factors:
            return self
        found = copy.copy(self)
        one = WireUse([Held(np.ones((), np.float32))])
        found.uses = self.uses | dict.fromkeys(factors, one)
        sizes = {name: own[0].size for name, own in factors.items()}
        found.parameters = self.parameters | sizes
        found.fingerprint = f"{self.fingerprint}, {sorted(factors)}"
        return found

    def __call__(self, variables) -> dict[str, Any]:
        return _jitted(self)(self.pick(variables))

    def make(self, leaves: list) -> dict[str, Any]:
        """The weights that follow from the variables' arrays."""
        values = dict(enumerate(leaves))

        def look(value):
            return values[value.slot] if isinstance(value, Made) else value.value

        for primitive, operands, params, slots in self.steps:
            found = bind(primitive, [look(v) for v in operands], at_batch(params, 1))
            values.update(zip(slots, found, strict=True))
        return {name: use.make(look) for name, use in self.uses.items()}


@lru_cache(maxsize=64)
def _jitted(program: Program) -> Callable:
    """All primitives as one: one by one, each would be compiled by itself."""
    return jax.jit(program.make, inline=True)


def _texts(operands) -> list[str]:
    return [
        str(v.slot) if isinstance(v, Made) else repr(Constant(v.value))
        for v in operands
    ]


@dataclasses.dataclass
class SynapseUse:
    """A kernel, and what scales and shifts its channels afterwards."""

    kernel: Made
    features: int | None
    rank: int  # of the output
    axis: int | None  # of its channels
    folds: list = dataclasses.field(default_factory=list)  # (name, value, position)

    def operands(self):
        return [self.kernel, *(value for _, value, _ in self.folds)]

    @property
    def biased(self) -> bool:
        """Whether something is added; else the bias is zero, and no parameter."""
        return any(name in ("add", "sub") for name, _, _ in self.folds)

    def text(self) -> str:
        folds = [(name, position) for name, _, position in self.folds]
        return repr((self.features, self.axis, folds, _texts(self.operands())))

    def make(self, look) -> Affine:
        kernel = jnp.asarray(look(self.kernel))
        bias = jnp.zeros((), kernel.dtype)

        def of_kernel(value):
            """One value per channel, along the kernel's axis of channels."""
            if value.size == 1:
                return value.reshape((1,) * kernel.ndim)
            shape = [-1 if i == self.features else 1 for i in range(kernel.ndim)]
            return value.reshape(shape)

        for name, held, position in self.folds:
            value = jnp.asarray(look(held), kernel.dtype)
            value = self._one_image(value)
            if name == "mul":
                kernel, bias = kernel * of_kernel(value), bias * value
            elif name == "div":
                kernel, bias = kernel / of_kernel(value), bias / value
            elif name == "add":
                bias = bias + value
            elif position == 1:  # x - value
                bias = bias - value
            else:  # value - x
                kernel, bias = -kernel, value - bias
        bias = jnp.broadcast_to(
            bias, jnp.broadcast_shapes(bias.shape, self._least(kernel))
        )
        return Affine(kernel, bias)

    def _least(self, kernel) -> tuple:
        if self.features is None:
            return ()
        return self._shape(kernel.shape[self.features])

    def _shape(self, channels: int) -> tuple:
        """`[C]` with the axes behind it."""
        return (channels, *[1] * (self.rank - 1 - self.place))

    @property
    def place(self) -> int:
        """The output's axis of channels, from the front."""
        assert self.axis is not None  # or nothing that varies would have been folded
        return self.axis % self.rank

    def _one_image(self, value):
        """A value that varies along the channels only, `[C]` or `[C, 1, 1]`."""
        if value.size == 1:
            return value.reshape(())
        index = tuple(
            slice(None) if i == self.place else slice(0, 1) for i in range(value.ndim)
        )
        return value[index].reshape(self._shape(-1))


@dataclasses.dataclass
class WireUse:
    """The arrays that a wire takes."""

    values: list

    def operands(self):
        return self.values

    def text(self) -> str:
        return repr(_texts(self.values))

    def make(self, look) -> tuple:
        return tuple(jnp.asarray(look(value)) for value in self.values)


def bind(primitive, values, params) -> list:
    found = primitive.bind(*values, **primitive.get_bind_params(params))
    return list(found) if primitive.multiple_results else [found]


def is_array(leaf) -> bool:
    kinds = jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct
    return isinstance(leaf, kinds)


SINGLE = np.dtype("float32")


def widened(tree, least=SINGLE):
    """Arrays of less precision in single precision, or in that of others."""

    def one(leaf):
        narrow = is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)
        narrow = narrow and leaf.dtype.itemsize < least.itemsize
        return leaf.astype(least) if narrow else leaf

    return jax.tree.map(one, tree)


def parted(tree) -> tuple[list, Callable[[list], Any]]:
    """The arrays of a pytree, which jitted functions take, and how it is put together
    of such arrays and of whatever else it holds, as Equinox's modules do."""
    leaves, structure = jax.tree.flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if is_array(leaf)]

    def together(arrays):
        found = dict(enumerate(leaves)) | dict(zip(places, arrays, strict=True))
        return jax.tree.unflatten(structure, found.values())

    return [leaves[i] for i in places], together
