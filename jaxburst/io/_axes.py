"""In which order PyTorch has the features that a Flax network has in its own.

Maps are `[B, H, W, C]` here and `[B, C, H, W]` there. Layers that keep the axes apart
do not care; a Dense that reads a flattened map does, and so does all that meets it.

Every axis of a node's output is a tuple of atoms, in order; an axis of size 1 has none.
A flattened map has one axis of three atoms, H, W and C. The features of a Dense are an
atom that nothing is known of, until they are added to others or reshaped to a map.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from jaxburst.graph import (
    Constant,
    Input,
    Neuron,
    Node,
    Operand,
    Pool,
    Synapse,
    Wire,
    is_number,
    read,
    unknown,
)
from jaxburst.network import Network

CHANNELS = "channels"


class Atom(NamedTuple):
    """A part of an axis.

    `tag` is `CHANNELS`; a number, which spatial axis it is; `("free", key)`, features
    that may turn out to be several atoms; `("row", axes)`, axes one after the other;
    or `("other", why)`.
    """

    tag: Any
    size: int


Axis = tuple[Atom, ...]


class Unclear(ValueError):
    """PyTorch's order cannot be told."""


class Orders(NamedTuple):
    """`{layer: order}`: feature p here is feature `order[p]` in PyTorch.

    Layers where the two are the same are left out.

    Attributes:
      rows: of what a dense layer reads.
      features: of what a layer gives, or has one parameter for.
      maps: `{layer: (channels, *spatial)}` of the dense layers that read one flattened
        map, wherever its rows stand.
    """

    rows: dict[str, np.ndarray]
    features: dict[str, np.ndarray]
    maps: dict[str, tuple[int, ...]]


def orders(network: Network) -> Orders:
    """Reads the wires between the layers of a traced Linen network.

    Raises:
      Unclear: naming the layer, where PyTorch's order may be one or another.
    """
    reading = _Reading(network)
    inputs = [node.name for node in network.graph.of(Input)]
    read(network.graph, reading.visit, *inputs)
    return reading.solve()


def _atom(tag, size: int) -> Axis:
    return () if size == 1 else (Atom(tag, size),)


def _size(axis: Axis) -> int:
    return math.prod(atom.size for atom in axis)


def _lost(node: Node, why: str) -> tuple[Axis, ...]:
    """Axes of which PyTorch's order cannot be told; the batch stays what it is."""
    return tuple(
        _atom(("other", why), n) if i != node.batch_axis else ()
        for i, n in enumerate(node.image_shape)
    )


def _product(params: dict, data: int, axes, shape, of_kernel) -> tuple[Axis, ...]:
    """The axes of a product: those of batches, what is free, and `of_kernel(sizes)`."""
    contracted, batched = (pair[data] for pair in params["dimension_numbers"])
    kept = [axes[i] for i in batched]
    free = [axes[i] for i in range(len(axes)) if i not in (*contracted, *batched)]
    sizes = shape[len(kept) :]
    if data == 0:
        return (*kept, *free, *of_kernel(sizes[len(free) :]))
    return (*kept, *of_kernel(sizes[: len(sizes) - len(free)]), *free)


class _Reading:
    def __init__(self, network: Network):
        self.network = network
        self.bound: dict[Any, Axis] = {}  # what free atoms turned out to be
        self.fresh = 0
        self.rows: list[tuple[str, Axis]] = []
        self.features: list[tuple[str, Axis]] = []
        self.plain: list[tuple[str, Axis]] = []  # must be in PyTorch's order

    # Atoms.

    def free(self, size: int, key=None) -> Axis:
        self.fresh += key is None
        return _atom(("free", self.fresh if key is None else key), size)

    def resolve(self, axis: Axis) -> Axis:
        found: list[Atom] = []
        for atom in axis:
            known = self.bound.get(atom.tag)
            found += [atom] if known is None else self.resolve(known)
        return tuple(found)

    def bind(self, atom: Atom, axis: Axis) -> None:
        if axis != (atom,):
            self.bound[atom.tag] = axis

    def same(self, name: str, one: Axis, other: Axis) -> Axis:
        """What two axes are that are added."""
        one, other = self.resolve(one), self.resolve(other)
        if one == other or not one or not other:
            return one or other
        for a, b in ((one, other), (other, one)):
            if len(a) == 1 and _is_free(*a):
                self.bind(*a, b)
                return b
        rows = _rows_of(one) or (), _rows_of(other) or ()
        if rows[0] and [*map(_size, rows[0])] == [*map(_size, rows[1])]:
            parts = tuple(self.same(name, a, b) for a, b in zip(*rows, strict=True))
            return _atom(("row", parts), _size(one))
        if _is_other(one) or _is_other(other):
            return one if _is_other(one) else other
        raise Unclear(
            f"{name}: adds features that PyTorch has in different orders "
            f"({_text(one)} and {_text(other)})"
        )

    # Nodes.

    def visit(self, node: Node, *values):
        role = node.role
        match role:
            case Input():
                return self.input(node)
            case Synapse():
                return self.synapse(node, values[0])
            case Neuron():
                return values[0]
            case Pool():
                return self.moved(node, values, role)
            case Wire():
                return self.wire(node, values)
        raise unknown(node, "the order of features")

    def input(self, node: Node) -> tuple[Axis, ...]:
        shape = node.image_shape
        rank = len(shape)
        axes: list[Axis] = [_atom(i - 1, n) for i, n in enumerate(shape)]
        axes[0] = ()
        if rank >= 4:
            axes[-1] = _atom(CHANNELS, shape[-1])
        elif rank >= 2:
            # [B, T, C] may be [B, C, T] in PyTorch, or not: [B, H, W] without channels.
            axes[-1] = self.free(shape[-1]) if rank == 3 else _atom(0, shape[-1])
        return tuple(axes)

    def synapse(self, node: Node, axes):
        role = node.role
        use = self.network.program.uses[node.name]
        owner = owner_of(use.kernel.root)
        shape = node.image_shape
        own: list[Axis] = []  # of the kernel
        if role.is_conv:
            numbers = role.params["dimension_numbers"]
            _, channels, *spatial = numbers.lhs_spec
            self.channels(node.name, axes[channels])
            for i, axis in enumerate(spatial):
                place = self.resolve(axes[axis])
                tags = [atom.tag for atom in place]
                if tags and tags != [i]:
                    raise Unclear(
                        f"{node.name}: convolves along an axis that is no side of a "
                        f"map in PyTorch ({_text(place)})"
                    )
            batch, channels, *spatial = numbers.out_spec
            found: list[Axis] = [()] * len(shape)
            found[channels] = _atom(CHANNELS, shape[channels])
            for i, axis in enumerate(spatial):
                found[axis] = _atom(i, shape[axis])
            own.append(found[channels])
        else:
            rows = tuple(atom for i in role.contracted[0] for atom in axes[i])
            self.rows.append((owner, rows))

            def of_kernel(sizes) -> list[Axis]:
                for i, size in enumerate(sizes):
                    own.append(self.free(size, (owner, i) if i else owner))
                return own

            found = [*_product(role.params, role.data, axes, shape, of_kernel)]
        self.features += [(owner, axis) for axis in own[-1:]]
        for held in use.operands()[1:]:
            self.parameter(node.name, held, found)
        return tuple(found)

    def channels(self, name: str, axis: Axis) -> None:
        """The channels of a convolution, whose kernel is not reordered."""
        axis = self.resolve(axis)
        if len(axis) == 1 and _is_free(axis[0]):
            self.bind(axis[0], _atom(CHANNELS, axis[0].size))
        elif len(axis) == 1 and (parts := _rows_of(axis)) is not None:
            for part in parts:
                self.channels(name, part)
        elif axis and [atom.tag for atom in axis] != [CHANNELS]:
            raise Unclear(
                f"{name}: what it takes as channels are none in PyTorch ({_text(axis)})"
            )

    def parameter(self, name: str, held, axes) -> None:
        """A parameter, or a constant, that acts on a node's output."""
        if hasattr(held, "root"):
            varies, rank = held.varies, len(held.shape)
        else:
            value = np.asarray(held.value)
            varies = [i for i, n in enumerate(value.shape) if n != 1]
            rank = value.ndim
        for i in varies:
            axis = axes[len(axes) - rank + i]
            if hasattr(held, "root") and held.root and len(varies) == 1:
                self.features.append((owner_of(held.root), axis))
            else:
                self.plain.append((name, axis))

    def wire(self, node: Node, values):
        role = node.role
        name = role.primitive.name
        if name in ("dot_general", "conv_general_dilated"):
            return self.linear(node, values[0])
        if name == "concatenate":
            return self.joined(node, values)
        found = self.moved(node, values, role)
        if name in _ELEMENTWISE:
            for held in role.operands:
                if isinstance(held, Operand):
                    own = self.network.program.uses[node.name].values[held.index]
                    self.parameter(node.name, own, found)
                elif isinstance(held, Constant):
                    self.parameter(node.name, held, found)
        return found

    def moved(self, node: Node, values, role):
        """Axes behind a wire or pool that keeps, drops, adds or permutes them."""
        name, params, axes = role.primitive.name, role.params, list(values[0])
        shape = node.image_shape
        if name in _ELEMENTWISE:
            found = axes
            for other in values[1:]:
                pairs = zip(found, other, strict=True)
                found = [self.same(node.name, a, b) for a, b in pairs]
            return tuple(found)
        if name in ("reshape", "squeeze", "expand_dims"):
            return self.reshaped(node, axes)
        if name == "transpose":
            return tuple(axes[i] for i in params["permutation"])
        if name in ("reduce_sum", "reduce_max"):
            gone = {i % len(axes) for i in params["axes"]}
            return tuple(axis for i, axis in enumerate(axes) if i not in gone)
        if name == "broadcast_in_dim":
            places = dict(
                zip(params["broadcast_dimensions"], range(len(axes)), strict=True)
            )
            return tuple(
                axes[places[i]]
                if i in places and _size(axes[places[i]]) == n
                else _atom(("other", "repeated"), n)
                if is_number(node.shape[i])
                else ()
                for i, n in enumerate(shape)
            )
        if name == "gather" and not params["dimension_numbers"].operand_batching_dims:
            return self.picked(node, axes, params)
        if len(axes) == len(shape):  # windows, slices, padding
            moves = name not in ("reduce_window_sum", "reduce_window_max")
            found = []
            for axis, size in zip(axes, shape, strict=True):
                whole = size == _size(axis) and name in ("slice", "pad")
                found.append(axis if whole else self.resized(axis, size, moves))
            return tuple(found)
        return _lost(node, name)

    def picked(self, node: Node, axes, params):
        """Places of a map, as `x[:, 0]` and `x[:, places]` have them."""
        numbers, shape = params["dimension_numbers"], node.image_shape
        gone = numbers.collapsed_slice_dims
        kept = [i for i in range(len(axes)) if i not in gone]
        found: list[Axis | None] = [None] * len(shape)
        for i, at in zip(kept, numbers.offset_dims, strict=True):
            whole = shape[at] == _size(axes[i])
            found[at] = axes[i] if whole else self.resized(axes[i], shape[at], True)
        new = [i for i, axis in enumerate(found) if axis is None]
        sides = _varying(node.role.operands[-1], numbers, new)
        for at in new:
            found[at] = (
                self.resized(axes[sides[at]], shape[at], True)
                if at in sides
                else _atom(("other", "picked"), shape[at])
            )
        return tuple(found)

    def resized(self, axis: Axis, size: int, moves: bool) -> Axis:
        """An axis of which some is taken."""
        axis = self.resolve(axis)
        if not axis:
            return _atom(("other", "padded"), size)
        atom, *more = axis
        if more or _is_other(axis):
            return _atom(("other", "a part of several axes"), size)
        if _is_free(atom):
            if size == atom.size and not moves:
                return axis
            # Parts of it must mean the same in PyTorch.
            self.plain.append(("a slice", axis))
            return self.free(size)
        if _rows_of(axis) is not None:
            return _atom(("other", "a part of joined features"), size)
        return _atom(atom.tag, size)

    def linear(self, node: Node, axes):
        """A product with constants: resizing, blurring."""
        role, shape = node.role, node.image_shape
        data = next(i for i, held in enumerate(role.operands) if held is None)
        if role.primitive.name == "conv_general_dilated":
            numbers = role.params["dimension_numbers"]
            found: list[Axis] = [()] * len(shape)
            for a, b in zip(numbers.lhs_spec, numbers.out_spec, strict=True):
                found[b] = self.resized(axes[a], shape[b], False) if axes[a] else ()
            return tuple(found)
        taken = role.params["dimension_numbers"][0][data]

        def of_kernel(sizes) -> list[Axis]:
            if len(taken) == len(sizes) == 1:
                return [self.resized(axes[taken[0]], sizes[0], True)]
            return [_atom(("other", "a product"), size) for size in sizes]

        return _product(role.params, data, axes, shape, of_kernel)

    def joined(self, node: Node, values):
        """Signals, and constants, one after the other."""
        at, shape = node.role.params["dimension"], node.image_shape
        found: list[Axis] = []
        for i, size in enumerate(shape):
            if i != at:
                axis = values[0][i]
                for other in values[1:]:
                    axis = self.same(node.name, axis, other[i])
                found.append(axis)
                continue
            parts = [self.resolve(axes[i]) for axes in values]
            tags = {tuple(atom.tag for atom in part) for part in parts if part}
            only: tuple = next(iter(tags)) if len(tags) == 1 else ()
            joined = len(only) == 1 and (only[0] == CHANNELS or is_number(only[0]))
            if any(held is not None for held in node.role.operands) and not joined:
                found.append(_atom(("other", "joined with constants"), size))
            elif joined:
                found.append(_atom(only[0], size))
            else:
                found.append(_atom(("row", tuple(parts)), size))
        return tuple(found)

    def reshaped(self, node: Node, axes):
        """The same atoms between other borders; the first part keeps the name."""
        atoms = [atom for axis in axes for atom in self.resolve(axis)]
        if not self.keeps_batch(node):
            return _lost(node, "merged with the batch")
        spatial = len([n for n in node.image_shape[1:-1] if n != 1])
        found: list[Axis] = []
        for i, size in enumerate(node.image_shape):
            if i == node.batch_axis:
                found.append(())
                continue
            axis: list[Atom] = []
            while size > 1:
                atom = atoms.pop(0)
                if size % atom.size == 0:
                    axis.append(atom)
                    size //= atom.size
                    continue
                if atom.size % size:
                    return _lost(node, "cut across")
                if _is_free(atom) and not axis and spatial:
                    # Features that become a map.
                    after = [n for n in node.image_shape[i:] if n != 1]
                    whole, count = 1, 0
                    while whole < atom.size and count < len(after):
                        whole *= after[count]
                        count += 1
                    if whole == atom.size and count > 1:
                        parts = [_atom(j, n) for j, n in enumerate(after[: count - 1])]
                        parts.append(self.free(after[count - 1]))
                        self.bind(atom, tuple(a for part in parts for a in part))
                        atoms = [*self.resolve((atom,)), *atoms]
                        continue
                rest = Atom(("other", ("part", atom.tag)), atom.size // size)
                axis.append(Atom(atom.tag, size))
                atoms.insert(0, rest)
                size = 1
            found.append(_merged(axis))
        return tuple(found)

    def keeps_batch(self, node: Node) -> bool:
        before = self.network.graph[node.inputs[0]]
        if node.batch_axis is None or before.batch_axis is None:
            return False
        same = before.shape[before.batch_axis] == node.shape[node.batch_axis]
        return same and before.batch_axis == node.batch_axis == 0

    # What follows.

    def solve(self) -> Orders:
        for name, axis in self.plain:
            axis = self.resolve(axis)
            if len(axis) > 1 and not _is_identity(self.order(name, axis)):
                raise Unclear(
                    f"{name}: takes features one by one that PyTorch has in another "
                    f"order ({_text(axis)})"
                )
        found = Orders({}, {}, {})
        for kept, rows in ((found.rows, self.rows), (found.features, self.features)):
            seen: dict[str, np.ndarray] = {}
            for owner, axis in rows:
                axis = self.resolve(axis)
                order = self.order(owner, axis)
                known = seen.setdefault(owner, order)
                if not np.array_equal(known, order):
                    raise Unclear(
                        f"{owner}: is used twice, on features that PyTorch has in "
                        "different orders"
                    )
                if not _is_identity(order):
                    kept[owner] = order
                tags = [atom.tag for atom in axis]
                if rows is self.rows and CHANNELS in tags:
                    rank = max([2, *(t + 1 for t in tags if is_number(t))])
                    sides = {atom.tag: atom.size for atom in axis}
                    shape = [sides.get(t, 1) for t in (CHANNELS, *range(rank))]
                    found.maps[owner] = tuple(shape)
        return found

    def order(self, name: str, axis: Axis) -> np.ndarray:
        axis = self.resolve(axis)
        count = _size(axis)
        if len(axis) == 1:
            parts = _rows_of(axis)
            if parts is not None:
                found, start = [], 0
                for part in parts:
                    found.append(start + self.order(name, part))
                    start += _size(part)
                return np.concatenate(found)
            if _is_other(axis):
                raise Unclear(
                    f"{name}: PyTorch's order of these features cannot be told "
                    f"({_text(axis)})"
                )
            return np.arange(count)
        for atom in axis:
            if not (atom.tag == CHANNELS or is_number(atom.tag)):
                raise Unclear(
                    f"{name}: its features are a map whose last axis PyTorch may have "
                    f"first, or last, too ({_text(axis)}); let the module take "
                    "[B, H, W, C], or reorder these weights yourself"
                )
        ranks = [-1 if atom.tag == CHANNELS else atom.tag for atom in axis]
        first = np.argsort(ranks, kind="stable")  # PyTorch's axes
        sizes = [axis[i].size for i in first]
        theirs = np.arange(count).reshape(sizes)
        return theirs.transpose(np.argsort(first)).reshape(-1)


_ELEMENTWISE = frozenset(
    ("add", "sub", "mul", "div", "neg", "add_any", "select_n", "copy", "copy_p")
    + ("real", "convert_element_type", "reduce_precision")
)


def owner_of(root: str | None) -> str:
    """The layer of a parameter: `block0/conv0` of `params/block0/conv0/kernel`."""
    return "/".join((root or "").split("/")[1:-1])


def _varying(held, numbers, new: list[int]) -> dict[int, int]:
    """`{axis of the output: axis of the input}` that a gather's indices run along.

    Those of `x[:, ::2, ::2]` run along a side each.
    """
    if not isinstance(held, Constant) or held.value.ndim != len(new) + 1:
        return {}
    found: dict[int, int] = {}
    for j, side in enumerate(numbers.start_index_map):
        index = held.value[..., j]
        runs = [at for i, at in enumerate(new) if np.ptp(index, axis=i).any()]
        if len(new) == len(numbers.collapsed_slice_dims) == 1:
            runs = new  # even if it always picks the same
        if len(runs) != 1 or runs[0] in found:
            return {}
        found[runs[0]] = side
    return found


def _is_free(atom: Atom) -> bool:
    return isinstance(atom.tag, tuple) and atom.tag[0] == "free"


def _is_other(axis: Axis) -> bool:
    return any(isinstance(a.tag, tuple) and a.tag[0] == "other" for a in axis)


def _rows_of(axis: Axis):
    """The axes that are one after the other in an axis."""
    if len(axis) == 1 and isinstance(axis[0].tag, tuple) and axis[0].tag[0] == "row":
        return axis[0].tag[1]
    return None


def _merged(axis: list[Atom]) -> Axis:
    """A side of a map and what it was split into, or repeated by, as one."""
    found: list[Atom] = []
    for atom in axis:
        before = found[-1] if found else None
        part = isinstance(atom.tag, tuple) and atom.tag[0] == "other"
        if part and before is not None and is_number(before.tag):
            if atom.tag[1] in ("repeated", ("part", before.tag)):
                found[-1] = Atom(before.tag, before.size * atom.size)
                continue
        found.append(atom)
    return tuple(found)


def _is_identity(order: np.ndarray) -> bool:
    return np.array_equal(order, np.arange(len(order)))


def _text(axis: Axis) -> str:
    names = {CHANNELS: "C", 0: "H", 1: "W", 2: "D"}
    parts = []
    for atom in axis:
        tag = atom.tag if not isinstance(atom.tag, tuple) else None
        named = names.get(tag, "?" if tag is None else f"axis {tag}")
        if isinstance(atom.tag, tuple) and atom.tag[0] == "free":
            named = "features"
        parts.append(f"{named}={atom.size}")
    return " x ".join(parts)
