"""What is proved of every traced network, once: numerically, at random signals."""

from __future__ import annotations

import functools
import operator
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxburst.checks import finite
from jaxburst.graph import (
    Input,
    Neuron,
    Node,
    Pool,
    Product,
    Wire,
    apply,
    at_batch,
    images_first,
    read,
)
from jaxburst.network import Network, Refused, forward
from jaxburst.tracing.program import parted, widened

AFFINE_TOLERANCE = 1e-3


def prove(network: Network, variables, example, kind) -> None:
    """Checks numerically that wires are affine, and that the graph is the function.

    Args:
      network, variables, example: what was traced.
      kind: the type that narrower inputs are widened to, as they were for the trace.

    Raises:
      ValueError: for weights that are not finite.
      Refused: where something that should be affine is not.
      AssertionError: where the graph is not the user's function: a fault of this
        library.
    """
    inputs = widened(jax.tree.map(_some, example), kind)
    if any(
        isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(variables)
    ):
        raise TypeError("trace: variables must be arrays, found shapes alone")
    arrays, together = parted(variables)
    weights = _quick(lambda arrays: network.weights(together(arrays)))(arrays)
    hint = "look for a variance below 0 or a division by 0 in what it is made of"
    finite("variables", weights, hint, masks=True)
    _check_wires(network, weights, inputs)

    def both(arrays, weights, inputs):
        own = jax.tree.leaves(network.function(together(arrays), inputs))
        return own, network.whole(forward(network, weights, inputs)[0], inputs)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, found = jax.device_get(_quick(both)(arrays, weights, inputs))
    tolerance = max(1e-4, 16 * network.program.rounding)
    for i, (one, other) in enumerate(zip(expected, found, strict=True)):
        if other is None:
            continue
        one = np.asarray(one, np.float64)
        error = np.abs(one - np.asarray(other)).max() / max(np.abs(one).max(), 1e-30)
        if np.isfinite(one).all() and not error <= tolerance:
            raise AssertionError(
                f"output {i} of the traced network differs from the function's by "
                f"{error:.1e} of the largest; this is a fault of jaxburst, please "
                "report it"
            )


def _some(leaf) -> np.ndarray:
    """Two images of the example, or random ones of its shape."""
    kind = jnp.result_type(leaf)
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        leaf = np.asarray(leaf)[:2]
        return leaf if len(leaf) == 2 else np.concatenate([leaf, leaf])
    shape = (2, *leaf.shape[1:])
    if jnp.issubdtype(kind, jnp.floating):
        return np.random.default_rng(0).normal(size=shape).astype(kind)
    return np.zeros(shape, kind)


def _quick(function: Callable) -> Callable:
    """`jax.jit` for what runs once: compiling takes longer than running."""
    level = {"xla_backend_optimization_level": 0}
    return jax.jit(function, compiler_options=level)


def _check_wires(network: Network, weights, inputs) -> None:
    """Checks that every neuron, pool and output is affine in what it is sent.

    Of five images three hold 0, 1 and 2 times the same random numbers at every input,
    neuron and pool, one holds others, and the last is the second again. An affine
    function has no second difference among the first three, and what keeps images
    apart gives the same for the second and the last.

    Raises:
      Refused: where it is not so.
    """
    graph = network.graph
    rng = np.random.default_rng(0)
    given, integers = {}, {}
    for node, leaf in zip(graph.of(Input), network.leaves(inputs), strict=True):
        if not jnp.issubdtype(jnp.dtype(node.role.dtype), jnp.floating):
            integers[node.name] = np.stack([leaf[0]] * 3 + [leaf[-1], leaf[0]])
    for node in graph.of(Input, Neuron, Pool, Product):
        if node.name not in integers:
            numbers = rng.normal(size=at_batch(node.shape, 2)).astype(np.float32)
            given[node.name] = np.split(numbers, 2, node.batch_axis)

    def run(weights, given, integers):
        found = {}

        def parts(name: str, value) -> list:
            """The five images."""
            axis = graph[name].batch_axis
            return jnp.split(images_first(graph, name, value, axis), 5, axis)

        def whole(node: Node, images: list) -> jax.Array:
            axis = node.batch_axis
            value = jnp.concatenate(images, axis)
            return images_first(graph, node.name, value, axis, back=True)

        def note(name: str, value) -> None:
            if not jnp.issubdtype(value.dtype, jnp.floating):
                return
            images = parts(name, value)
            fixed = functools.reduce(operator.and_, (x == images[0] for x in images))
            # Numbers of masks are large, and no signals.
            none, one, two, other, again = (jnp.where(fixed, 0, x) for x in images)
            second, mixed = abs(none - 2 * one + two).max(), abs(one - again).max()
            size = functools.reduce(jnp.maximum, map(abs, (none, one, two, other)))
            found[name] = (second, mixed, size.max() + 1e-30)

        def apart(name: str, value) -> None:
            _, one, _, _, again = parts(name, value)
            wrong = ~((one == again) | (jnp.isnan(one) & jnp.isnan(again)))
            size = abs(jnp.where(jnp.isfinite(one), one, 0)).max() + 1e-30
            mixed = jnp.where(wrong, abs(one - again), 0).max()
            found[f"{name} "] = (jnp.zeros(()), mixed, size)

        def still(node: Node, value) -> jax.Array:
            """What is constant over time is the same in the first three images."""
            if node.batch_axis is None:
                return value
            _, one, _, other, again = parts(node.name, value)
            return whole(node, [one, one, one, other, again])

        def signal(node: Node, like) -> jax.Array:
            one, other = (x.astype(like) for x in given[node.name])
            return whole(node, [jnp.zeros_like(one), one, one + one, other, one])

        def visit(node: Node, *values):
            match node.role:
                case Input() if node.name in integers:
                    return integers[node.name]
                case Input():
                    return signal(node, node.role.dtype)
                case Neuron() | Pool() | Product():
                    for name, value in zip(node.inputs, values, strict=True):
                        note(name, value)
                    if isinstance(node.role, Neuron) and node.role.function:
                        found = apply(node, weights, *values, batch=5)
                        apart(node.name, found)
                    return signal(node, values[0].dtype)
            value = apply(node, weights, *values, batch=5)
            if isinstance(node.role, Wire) and not node.role.affine:
                value = still(node, value)
            return value

        outputs = read(graph, visit, *graph.of(Input))
        for name, value in zip(graph.outputs, outputs, strict=True):
            note(name, value)
        return found

    found = jax.device_get(_quick(run)(weights, given, integers))
    for name, (second, mixed, size) in found.items():
        node = graph[name.rstrip()]
        if not mixed <= AFFINE_TOLERANCE * size:
            raise Refused(
                f"{node.name}, at {node.source}: what leads to it mixes the images of "
                "a batch, or does not keep the numbers of each together"
            )
        if not second <= AFFINE_TOLERANCE * size:
            raise Refused(
                f"{node.name}, at {node.source}: what leads to it is not affine: "
                f"doubling the signals changes it by {second / size:.1e} too much"
            )
