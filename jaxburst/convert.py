"""From trained variables to the weights of a spiking network, as a pure function.

A converted network is a plain dictionary `{name: Affine | Threshold | arrays}`, in the
unit of the trained network's activations: kernels stay as they are, and sums need no
rule of their own.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxburst.batching import batches
from jaxburst.checks import door
from jaxburst.graph import Node, Synapse
from jaxburst.network import Affine, Network, forward
from jaxburst.neurons import Threshold
from jaxburst.tracing.program import parted

Spiking = dict[str, Any]
Thresholds = dict[str, jax.Array]


@door
def convert(
    network: Network,
    variables,
    thresholds: Thresholds,
    *,
    initial: float = 0.5,
) -> Spiking:
    """Converts a trained network: folds its weights, attaches the thresholds.

    A pure function: it works under `jit`, `grad`, and `vmap` over stacked variables.

    Args:
      variables: its trained variables, `network.variables` of a module.
      thresholds: `{name: θ}` for every population of neurons, from `calibrate`.
      initial: initial potential over threshold, `v_0 / θ`. The paper starts at 0; at ½
        the rate is right on average instead of from below, from the first step on.
        Refining neurons start at 0 and round by it at their first step.

    Returns:
      The converted network, a pytree of arrays: `Affine` for synapses, `Threshold` for
      neurons, tuples of arrays for wires that hold some.

    Raises:
      ValueError: if variables or thresholds do not belong to `network`, or hold
        something that is not finite or not positive; the message names the layer.

    Example:
      >>> import jaxburst as jb
      >>> net = lambda w, x: jax.nn.relu(x @ w[0]) @ w[1]
      >>> weights = (np.ones((3, 4)), np.ones((4, 2)))
      >>> network = jb.trace(net, weights, np.ones((1, 3)))
      >>> spiking = convert(network, weights, {"relu0": 1.0})
      >>> sorted(spiking)
      ['0', '1', 'relu0']
    """
    spiking: Spiking = dict(network.weights(variables))
    kinds = {jnp.result_type(leaf) for leaf in jax.tree.leaves(spiking)}
    kinds = [kind for kind in kinds if jnp.issubdtype(kind, jnp.floating)]
    kind = max(kinds, key=lambda kind: kind.itemsize, default=float)
    for name in network.neurons:
        theta = jnp.asarray(thresholds[name], kind)
        start = jnp.asarray(initial, kind)
        spiking[name] = Threshold(theta, start, jnp.zeros_like(start))
    return spiking


def threshold_shapes(network: Network, name: str) -> list[tuple[int, ...]]:
    """The shapes that a threshold may have: a scalar, and one value per channel."""
    node = network.graph[name]
    shape = node.image_shape[1:]
    axis = network.graph.channel_axes[name]
    rank = len(node.shape)
    return [(), (node.image_shape[axis], *[1] * (rank - 1 - axis)), shape]


def check_spiking(network: Network, spiking: Spiking) -> None:
    """Refuses converted weights that are not those of a network."""
    needed = {*network.program.parameters, *network.neurons}
    for node in network.graph.weighing:
        if node.name in spiking:
            _check_node(network, node, spiking[node.name])
        elif node.name in needed:
            raise ValueError(
                f"{node.name}: the converted network has no weights for it; convert "
                "with the network that is simulated"
            )


def _check_node(network: Network, node: Node, own) -> None:
    if node.name in network.neurons:
        if not isinstance(own, Threshold):
            raise ValueError(f"{node.name}: expected a Threshold, found {own!r:.80}")
        shapes = threshold_shapes(network, node.name)
        for field, value in own._asdict().items():
            allowed = shapes[: 2 if field == "theta" else 3]
            found = jnp.shape(value)
            if field == "bias" and found:
                found = found[1:]  # one row per step
            if found not in allowed:
                raise ValueError(
                    f"{node.name}: its {field} must have one of the shapes {allowed}"
                    f"{', with a row for each step' if field == 'bias' else ''}; found "
                    f"{jnp.shape(value)}"
                )
    elif isinstance(node.role, Synapse):
        if not isinstance(own, Affine):
            raise ValueError(f"{node.name}: expected an Affine, found {own!r:.80}")
        if own.kernel.shape != node.role.kernel:
            raise ValueError(
                f"{node.name}: the kernel must be {node.role.kernel}, found "
                f"{own.kernel.shape}"
            )
        shape, bias = node.image_shape, np.shape(own.bias)
        if any(a not in (1, b) for a, b in zip(bias[::-1], shape[::-1], strict=False)):
            raise ValueError(f"{node.name}: its bias must fit {shape}, found {bias}")


@door
def verify(
    network: Network,
    variables,
    spiking: Spiking,
    inputs,
    *,
    batch_size: int = 100,
) -> dict[str, float]:
    """Compares converted weights, without spikes, with the user's own function.

    How well the network spikes is what `evaluate` says.

    Args: as for `convert`, what it made, and inputs `[N, ...]`.

    Returns:
      `{output: largest absolute difference}`, in activation units: `'logits'`, or
      `'output0'`, ... where there are several. Rounding alone gives about 1e-6 of the
      largest. What was set aside behind an output is put there again: chances are
      compared with chances. Places of the largest are not compared.

    Raises:
      ValueError: for outputs that are not finite, or where none can be compared.

    Example:
      >>> verify(network, weights, spiking, inputs)
      {'logits': 0.0}
    """
    arrays, together = parted(variables)

    @jax.jit
    def both(arrays, spiking, inputs):
        expected = jax.tree.leaves(network.function(together(arrays), inputs))
        found = network.whole(forward(network, spiking, inputs)[0], inputs)
        return [
            None if b is None else abs(1.0 * a - b).max()  # of truths, too
            for a, b in zip(expected, found, strict=True)
        ]

    worst: dict[str, float] = {}
    for _, batch in batches(inputs, batch_size):
        found = both(arrays, spiking, batch)
        for i, difference in enumerate(found):
            if difference is None:
                continue
            name = "logits" if len(found) == 1 else f"output{i}"
            if not np.isfinite(difference):
                raise ValueError(f"{name}: an output is not finite; check the weights")
            worst[name] = max(worst.get(name, 0.0), float(difference))
    if not worst:
        what = ", ".join(aside.what for aside in network.aside.values())
        raise ValueError(
            f"verify: what was set aside behind every output ({what}) cannot be "
            "compared; trace the function that returns what it is given"
        )
    return worst
