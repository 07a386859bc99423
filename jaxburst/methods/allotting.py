"""Thresholds per channel, allotted by what their errors harm and their spikes cost.

thresholds = allot(network, variables, inputs[:200], error=0.01)
model = Model(network, SigmaDelta())
"""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from jaxburst.batching import add_up, length
from jaxburst.checks import door
from jaxburst.convert import Thresholds
from jaxburst.energy import HOROWITZ_FP32
from jaxburst.methods.balancing import charged
from jaxburst.methods.channels import by_channel, centred, shape_of
from jaxburst.network import Network, forward

_DRAWS = 4


@door(inputs="calibration")
def allot(
    network: Network,
    variables,
    inputs,
    *,
    error: float = 0.01,
    batch_size: int = 50,
) -> Thresholds:
    r"""Chooses the threshold of each channel, for least traffic at a given error.

    .. math::
        \theta_c = \mu \sqrt{K_c / D_c}, \qquad
        \frac{1}{12} \sum_c D_c\, \theta_c^2 = \mathrm{error} \cdot E \|y\|^2

    An activation that is rounded to `θ` errs by :math:`\theta^2 / 12` on average, which
    moves the outputs `y` by :math:`D_c`, the sum of squared derivatives over the
    channel's active neurons, times as much. A threshold half as large costs about a
    third of a signed binary digit more for each active neuron, each of which reaches so
    many synapses: :math:`K_c` is the sum of these. Lagrange's rule gives the root. So
    `calibrate_mse` divides the range of each channel alike, this its harm.

    Derivatives are those of random signs of the outputs (Hutchinson), of logits less
    their mean. Errors of neurons are taken to be independent.

    Args:
      network: the network.
      variables: its trained variables.
      inputs: calibration inputs `[N, ...]`, normalised; no labels. A hundred or two.
      error: of the outputs by rounding, squared, over their mean square.
      batch_size: number of images at a time.

    Returns:
      `{name: θ}`, one threshold per channel. A channel that nobody hears, or that
      stays silent, takes the largest of its population; such a population, of all.

    Raises:
      ValueError: for an error that is not positive, or a network that stays silent.

    Example:
      >>> thresholds = allot(network, weights, inputs, error=0.001)
      >>> [name for name in thresholds]
      ['relu0']

    References:
      Reverse water-filling, with sensitivities in place of variances: Cover and
      Thomas, Elements of Information Theory, chapter 10.
    """
    weights = network.weights(variables)
    found, size = add_up(_sensitivities(network), weights, inputs, batch_size)
    count = length(inputs)
    size = size / count
    events = {name: own[1].sum() / count for name, own in found.items()}
    for pool in network.pools:
        senders = network.graph.senders[pool]
        events[pool] = sum(found[n][2].sum() / count for n in senders if n in found)
    spent = charged(network, events)
    harms, costs = {}, {}
    for name, (harm, _, heard) in found.items():
        # What reaches outputs by wires alone is added there.
        price = spent[name] or events[name] * HOROWITZ_FP32.accumulate * 1e-12
        harms[name] = harm / count / _DRAWS
        costs[name] = price * heard / max(heard.sum(), 1)
    total = sum(costs[name][harms[name] > 0].sum() for name in found)
    if not total > 0:
        raise ValueError(
            "inputs: no neuron is active and heard at the outputs on any of them; pass "
            "others, or calibrate"
        )
    thetas = {}
    for name, harm in harms.items():
        known = (harm > 0) & (costs[name] > 0)
        ratio = np.divide(costs[name], harm, out=np.zeros_like(harm), where=known)
        thetas[name] = np.sqrt(12 * error * size / total * ratio)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(weights)}
    kind = jnp.result_type(*(k for k in kinds if jnp.issubdtype(k, jnp.floating)))
    highest = max(theta.max() for theta in thetas.values())
    return {
        name: jnp.asarray(
            np.where(theta > 0, theta, theta.max() or highest).reshape(
                shape_of(network, name)
            ),
            kind,
        )
        for name, theta in thetas.items()
    }


@lru_cache(maxsize=8)
def _sensitivities(network: Network):
    """Of every population, by channel: squared derivatives at active neurons, how many
    of these there are, and how many of them are heard; and the outputs' squares."""

    def function(weights, batch, counts):
        once = counts.astype(jnp.float32)

        def outputs(noise):
            def shifted(node, drive, f):
                return f(drive) + noise[node.name]

            found, _ = forward(network, weights, batch, shifted)
            names = network.graph.outputs
            return [
                centred(by_channel(network, name, x)).astype(jnp.float32)
                for name, x in zip(names, found, strict=True)
            ]

        _, record = forward(network, weights, batch)
        found, pull = jax.vjp(outputs, jax.tree.map(jnp.zeros_like, record))
        # Several outputs count alike, whatever their unit.
        sizes = [jnp.square(x).mean() if len(found) > 1 else 1.0 for x in found]

        def drawn(key):
            signs = [
                jax.random.rademacher(key, x.shape, x.dtype) / jnp.sqrt(size)
                for x, size in zip(found, sizes, strict=True)
            ]
            (own,) = pull(signs)
            return {
                name: jnp.square(by_channel(network, name, x)) * once.reshape(-1, 1, 1)
                for name, x in own.items()
            }

        # Not in a loop: XLA on CPU takes many times as long with convolutions there.
        keys = jax.random.split(jax.random.key(0), _DRAWS)
        squares = jax.tree.map(lambda *x: sum(x), *map(drawn, keys))
        seen = {}
        for name, x in record.items():
            active = by_channel(network, name, x) != 0
            square = squares[name]
            heard = active & (square > 0)
            counted = active * once.reshape(-1, 1, 1)
            seen[name] = (
                (square * active).sum((0, 1)), counted.sum((0, 1)),
                heard.astype(jnp.float32).sum((0, 1)),
            )  # fmt: skip
        whole = sum(
            (jnp.square(x).sum((1, 2)) * once).sum() / size
            for x, size in zip(found, sizes, strict=True)
        )
        return seen, whole

    return function
