"""A traced network: a graph, its weights as a function of the variables, a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxburst.checks import array, door, finite
from jaxburst.graph import (
    Function,
    Graph,
    Input,
    Neuron,
    Node,
    Pool,
    Product,
    Synapse,
    Wire,
    apply,
    read,
    stands_for,
)


class Affine(NamedTuple):
    """The weights of a synapse, with what scales and shifts its channels folded in.

    Attributes:
      kernel: as the primitive takes it.
      bias: added to every image's output: `[C]`, or `[C, 1, 1]` where channels come
        first; presented at every time step, by refining neurons at the first.
    """

    kernel: jax.Array
    bias: jax.Array


class Aside(NamedTuple):
    """What was set aside behind an output.

    Attributes:
      what: its name.
      function: a graph whose one input is what comes out instead; None where it is not
        known.
    """

    what: str
    function: Graph | None


class Refused(ValueError):
    """Something in the function has no spiking meaning; the message names it.

    Example:
      >>> rounds = lambda w, x: jnp.round(jax.nn.relu(x @ w)) @ w
      >>> try:
      ...     jb.trace(rounds, np.eye(2), inputs[:1])
      ... except Refused as error:
      ...     print("round" in str(error))
      True
    """


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A traced function: a graph, and how its weights follow from the variables.

    Hashable and equal by structure, so that it can be a static argument under `jit`;
    `print(network)` shows its table.

    Attributes:
      graph: the nodes.
      function: the user's own `f(variables, inputs)`.
      variables: what a traced module held; None for a function of variables.
      tree: the structures of the inputs and of the outputs.
      aside: what was set aside behind an output, by the output's position.
      program: how weights follow from variables, a `program.Program`.

    Example:
      >>> network.synapses, network.neurons
      (('hidden', 'out'), ('relu0',))
      >>> network(weights, inputs).tolist()
      [[0.5], [2.75]]
    """

    graph: Graph
    function: Callable
    variables: Any
    tree: tuple[Any, Any]
    aside: dict[int, Aside]
    program: Any

    def __eq__(self, other) -> bool:
        return isinstance(other, Network) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self):
        return self.graph.fingerprint, self.program.fingerprint, self.tree

    @property
    def neurons(self) -> tuple[str, ...]:
        """The names of the populations of neurons, in order."""
        return tuple(node.name for node in self.graph.of(Neuron))

    @property
    def pools(self) -> tuple[str, ...]:
        """The names of the maxima over spikes, in order."""
        neurons = self.neurons
        return tuple(name for name in self.senders if name not in neurons)

    @property
    def senders(self) -> tuple[str, ...]:
        """The names of all that sends spikes, populations and pools, in order."""
        return tuple(
            node.name
            for node in self.graph.of(Neuron, Pool)
            if node.name in self.graph.dynamic
        )

    @property
    def synapses(self) -> tuple[str, ...]:
        """The names of the synapses, in order."""
        return tuple(node.name for node in self.graph.of(Synapse))

    @property
    def products(self) -> tuple[str, ...]:
        """The names of the products of two signals, in order."""
        return tuple(node.name for node in self.graph.of(Product))

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of one image of each input, without the batch."""
        return tuple(node.image_shape[1:] for node in self.graph.of(Input))

    def weights(self, variables) -> dict[str, Any]:
        """The weights of every node that has some, a pure function of the variables.

        Returns:
          `{name: Affine}` for synapses, `{name: (arrays, ...)}` for wires, those within
          the function of a population included.
        """
        return self.program(variables)

    def leaves(self, inputs, name: str = "inputs") -> list:
        """The inputs' arrays, of a floating-point type where the network has one.

        Raises:
          TypeError, ValueError: for a structure, shape or type that was not traced.
        """
        return _checked(self, inputs, name)

    def outputs(self, found: list):
        """Arrays, one for each output, in the structure that the function returns."""
        return jax.tree.unflatten(self.tree[1], found)

    def whole(self, found: list, inputs) -> list:
        """Outputs as the function returns them, with what was set aside.

        Numbers only: None for places (of the largest, or in order), and for what has
        been moved since.
        """
        batch, outputs = len(jax.tree.leaves(inputs)[0]), list(found)
        for i, (what, function) in self.aside.items():
            node = Node(what, Neuron(None, function), (), ())
            x = stands_for(node, {}, batch)(found[i]) if function else None
            numbers = x is not None and jnp.issubdtype(x.dtype, jnp.floating)
            outputs[i] = x if numbers else None
        return outputs

    @door
    def __call__(self, variables, inputs):
        """The conventional network as the graph has it: the function's outputs."""
        return self.outputs(forward(self, self.weights(variables), inputs)[0])

    def __str__(self) -> str:
        return summary(self)

    __repr__ = __str__


def _checked(network: Network, inputs, name: str) -> list:
    found, tree = jax.tree.flatten(inputs)
    if tree != network.tree[0]:
        pair = isinstance(inputs, tuple) and network.tree[0].num_leaves == 1
        hint = "; pass the inputs alone, without labels" if pair else ""
        raise ValueError(
            f"{name}: expected the structure {network.tree[0]!s:.100}, found "
            f"{tree!s:.100}{hint}"
        )
    for value in found:
        array(name, value)
    first = next((n.name for n in network.graph.of(Synapse)), "the network")
    leaves, batch = [], None
    for node, value in zip(network.graph.of(Input), found, strict=True):
        shape, expected = np.shape(value), node.image_shape[1:]
        if shape[1:] != expected or len(shape) != len(node.shape):
            hint = ""
            if sorted(shape[1:]) == sorted(expected):
                hint = (
                    "; the axes look transposed: this network was traced with "
                    f"(height, width, channels) = {expected}"
                    if len(expected) == 3
                    else "; the axes look transposed"
                )
            raise ValueError(
                f"{first}: {name} must have the shape [B, "
                f"{', '.join(map(str, expected))}], found {list(shape)}{hint}"
            )
        batch = shape[0] if batch is None else batch
        if shape[0] != batch or batch == 0:
            raise ValueError(
                f"{name}: expected the same number of images in each, at least one, "
                f"found {[np.shape(leaf)[0] for leaf in found]}"
            )
        kind, wanted = jnp.result_type(value), jnp.dtype(node.role.dtype)
        floating = jnp.issubdtype(wanted, jnp.floating)
        if floating and not jnp.issubdtype(kind, jnp.floating):
            raise TypeError(
                f"{name} must be floating-point numbers as {wanted}, found {kind}; "
                "normalise pixels as for training"
            )
        if not floating and jnp.issubdtype(kind, jnp.floating):
            raise TypeError(
                f"{name} must be whole numbers ({wanted}) as the example that the "
                f"network was traced with, found {kind}; if that should have been "
                "normalised, trace again"
            )
        finite(name, value, "normalise the data again")
        leaves.append(jnp.asarray(value, wanted) if kind != wanted else value)
    return leaves


def forward(
    network: Network,
    weights: dict,
    inputs,
    neuron: Callable[[Node, jax.Array, Function], jax.Array] | None = None,
) -> tuple[list[jax.Array], dict[str, jax.Array]]:
    """The conventional reading of a network: what its spikes approach.

    Args:
      network: the network.
      weights: from `Network.weights`, or a converted network, in any unit.
      inputs: `[B, ...]`, as the function takes them.
      neuron: what a population makes of its drive, if not the function that it stands
        for: `neuron(node, drive, f)`.

    Returns:
      `(outputs, record)`: the outputs' arrays, and the output of every neuron `[B,
      ...]` under its name.
    """
    leaves = network.leaves(inputs)
    batch, record = len(leaves[0]), {}

    def visit(node: Node, *values):
        match node.role:
            case Input():
                return values[0]
            case Neuron():
                f = stands_for(node, weights, batch)
                found = neuron(node, values[0], f) if neuron else f(values[0])
                record[node.name] = found
                return found
        return apply(node, weights, *values, batch=batch)

    return read(network.graph, visit, *leaves), record


@door
def summary(network: Network) -> str:
    """A table of the network: name, role, output, parameters, MACs, and where it is.

    MACs are multiply-accumulates of one image, taps on zero padding left out.

    Example:
      >>> print(summary(network).splitlines()[0])
      name    role     output  parameters  MACs  source
    """
    from jaxburst.energy import macs  # which reads networks

    counted = macs(network)
    kernels = network.program.parameters
    rows = [("name", "role", "output", "parameters", "MACs", "source")]
    total = 0
    for node in network.graph.nodes:
        if isinstance(node.role, Wire) and node.name not in kernels:
            continue
        kind = type(node.role).__name__.lower()
        if isinstance(node.role, Wire):
            kind = node.role.primitive.name
        inner = getattr(node.role, "function", None)
        own = (node, *(inner.weighing if inner else ()))
        number = sum(kernels.get(one.name, 0) for one in own)
        total += number
        shape = "x".join(map(str, node.image_shape[1:]))
        cells = (f"{number:,}" if number else "", f"{counted.get(node.name, 0):,}")
        cells = (cells[0], cells[1] if node.name in counted else "")
        rows.append((node.name, kind, shape, *cells, node.source))
    rows.append(("total", "", "", f"{total:,}", f"{sum(counted.values()):,}", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    lines = []
    for row in rows:
        left = [row[i].ljust(widths[i]) for i in range(3)]
        right = [row[i].rjust(widths[i]) for i in (3, 4)]
        lines.append("  ".join([*left, *right, row[5]]).rstrip())
    for position, aside in network.aside.items():
        lines.append(f"output {position}: {aside.what} is set aside, logits come out")
    return "\n".join(lines)
