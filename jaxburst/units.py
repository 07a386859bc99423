"""What the whole numbers that travel in a network are worth: thresholds by place.

A `Route` says whose spikes arrive where, without any weights; here are the units that
thresholds give it: in the shape of what travels, or of the kernel that receives it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxburst.graph import FACTORS, Graph, Node, Route, Wire


def unit_of_places(
    node: Node, route: Route, spiking: dict[str, Any], graph: Graph
) -> jax.Array:
    """What one whole number of a node is worth: a scalar, or like one image's `[...]`,
    with 1 for axes along which it does not vary."""
    shared = _shared(route, spiking)
    if shared is not None:
        return shared
    ids = route.ids
    for axis in range(ids.ndim):  # where all that is there agrees, one will do
        best = ids.max(axis, keepdims=True)
        if ((ids == best) | (ids < 0)).all():
            ids = best
    return _of_channels(ids[0] if node.batch_axis == 0 else ids, route, spiking, graph)


def unit_of_rows(
    node: Node, route: Route, spiking: dict[str, Any], graph: Graph
) -> jax.Array | None:
    """The unit of what a synapse receives, in the shape of its kernel.

    None where one row of the kernel receives several units.
    """
    shared = _shared(route, spiking)
    if shared is not None:
        return shared
    rows = _rows(node, route)
    if rows is None:
        return None
    role, (_, of_kernel) = node.role, node.role.contracted
    units = _of_channels(rows, route, spiking, graph)
    shape = [1] * len(role.kernel)
    groups = role.params.get("feature_group_count", 1) if role.is_conv else 1
    if groups == 1:
        for axis in of_kernel:
            shape[axis] = role.kernel[axis]
        return units.reshape(shape)
    (axis,), features = of_kernel, role.features
    each = units.reshape(groups, -1)  # [groups, rows]
    table = jnp.repeat(each, role.kernel[features] // groups, axis=0)
    shape[axis], shape[features] = role.kernel[axis], role.kernel[features]
    return (table.T if axis < features else table).reshape(shape)


def folds(node: Node, route: Route, spiking: dict[str, Any]) -> bool:
    """Whether the unit of what a synapse receives goes into its kernel."""
    return _shared(route, spiking) is not None or _rows(node, route) is not None


def shifts(node: Node) -> bool:
    """Whether a wire adds something that is presented."""
    role = node.role
    if role.primitive.name in FACTORS:
        return False
    return any(held is not None and not _is_index(held) for held in role.operands)


def places_added(graph: Graph, name: str) -> int:
    """How many places are added up on the way from the neurons to a node."""
    node = graph[name]
    if not isinstance(node.role, Wire):
        return 1
    before = max(places_added(graph, one) for one in node.inputs)
    params = node.role.params
    if node.role.primitive.name == "reduce_window_sum":
        return before * int(np.prod(params["window_dimensions"]))
    if node.role.primitive.name == "reduce_sum":
        shape = graph[node.inputs[0]].image_shape
        return before * int(np.prod([shape[i] for i in params["axes"]]))
    return before


def _shared(route: Route, spiking: dict[str, Any]) -> jax.Array | None:
    """The unit that all places share, if they do."""
    theta = jnp.asarray(spiking[route.sources[0]].theta)
    if len(route.sources) > 1 or theta.ndim:
        return None
    return theta * theta.dtype.type(route.factor)


def _of_channels(ids: np.ndarray, route: Route, spiking, graph: Graph) -> jax.Array:
    """The units of channels, counted through all sources of a route."""
    found = []
    for name in route.sources:
        theta = jnp.asarray(spiking[name].theta)
        count = graph[name].image_shape[graph.channel_axes[name]]
        found.append(jnp.broadcast_to(theta.reshape(-1), (count,)))
    thetas = jnp.concatenate(found)
    return thetas[np.maximum(ids, 0)] * thetas.dtype.type(route.factor)


def _rows(node: Node, route: Route) -> np.ndarray | None:
    """The channel that each row of a synapse's kernel receives, in the kernel's order.

    None where one row receives several.
    """
    of_data, of_kernel = node.role.contracted
    others = tuple(i for i in range(route.ids.ndim) if i not in of_data)
    best = route.ids.max(others, keepdims=True)
    if not ((route.ids == best) | (route.ids < 0)).all():
        return None
    order = [of_data[i] for i in np.argsort(of_kernel)]
    return best.transpose(*order, *others).reshape([best.shape[i] for i in order])


def _is_index(held) -> bool:
    """Whether what a wire holds is a place, or nothing but zeros."""
    value = getattr(held, "value", None)
    if value is None:
        return False
    return not np.issubdtype(value.dtype, np.inexact) or not value.any()
