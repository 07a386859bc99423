"""Thresholds balanced between layers: fine where errors harm, coarse where spikes cost.

thresholds = calibrate_mse(layers, variables, images, Burst(4))
thresholds = balance(layers, variables, thresholds, images[:100], Refining())
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxburst import energy
from jaxburst.calibration import Thresholds
from jaxburst.conversion import Spiking, convert, forward
from jaxburst.devices import share
from jaxburst.layers import Layers, Relu, walk
from jaxburst.neuron import Burst, Refining, over_channels, worth
from jaxburst.simulation import Model, simulate

_LARGEST = 4.0  # a layer's threshold changes by no more than this factor


def balance(
    layers: Layers,
    variables: dict,
    thresholds: Thresholds,
    images: jax.Array,
    neuron: Burst | Refining,
    *,
    steps: int = 3,
) -> Thresholds:
    r"""Multiplies the thresholds of each layer by a factor, for less error at no cost.

    .. math::
        k_l \propto (E_l / D_l)^{1/3}, \qquad \sum_l E_l / k_l = \sum_l E_l

    `D` is the squared error of the logits when the activations of layer `l` alone are
    rounded to what one of its spikes is worth at the last step, and `E` are the
    synaptic operations that its spikes cause up to there. Rounding errors grow like
    :math:`k_l^2` and are independent from layer to layer; spikes become fewer like
    :math:`1/k_l`. The factors make :math:`\sum_l D_l k_l^2` least for a given
    :math:`\sum_l E_l / k_l`, by Lagrange's rule.

    Args:
      layers: the network.
      variables: its trained `{'params', 'batch_stats'}`.
      thresholds: `{path: θ}` for every Relu, from `calibrate` or `calibrate_mse`.
      images: one batch of calibration images `[B, H, W, C]`, normalised; no labels. A
        hundred: the network is applied to them once for every Relu.
      neuron: the neuron that the thresholds are for.
      steps: number of time steps after which the error should be small.

    Returns:
      `{path: k θ}`.

    Raises:
      ValueError: as `convert` and `simulate`.
    """
    cut, copy = share(len(images))
    images, spiking = cut(images), copy(convert(layers, variables, thresholds))
    spent = _operations(layers, spiking, images, neuron, steps)
    quantum = float(worth(neuron, jnp.asarray(steps)))
    exact = _logits(layers, spiking, images, quantum, -1)
    rounded = (
        _logits(layers, spiking, images, quantum, row) for row in range(len(spent))
    )
    harm = np.array([float(jnp.square(logits - exact).mean()) for logits in rounded])
    factors = _factors(np.array(list(spent.values())), harm)
    balanced = {}
    for path, factor in zip(spent, factors, strict=True):
        theta = jnp.asarray(thresholds[path])
        balanced[path] = theta * theta.dtype.type(factor)
    return balanced


def _factors(spent: np.ndarray, harm: np.ndarray) -> np.ndarray:
    # Layers that send nothing, or that nobody hears, should not move the others.
    known = (spent > 0) & (harm > 0)
    if not known.any():
        return np.ones_like(spent)
    factors = np.ones_like(spent)
    factors[known] = np.cbrt(spent[known] / harm[known])
    factors[known] *= (spent[known] / factors[known]).sum() / spent[known].sum()
    return np.clip(factors, 1 / _LARGEST, _LARGEST)


def _operations(layers, spiking, images, neuron, steps) -> dict[str, float]:
    """Synaptic operations per image that the spikes of each Relu cause."""
    trace = simulate(Model(layers, neuron), spiking, images, steps)
    spent = {path: 0.0 for path, layer in walk(layers) if isinstance(layer, Relu)}
    senders = energy.senders(layers)
    shape = images.shape[1:]
    for path, counts in energy.operations(layers, shape, trace.events).items():
        spent[senders[path]] += float(counts.sum()) / len(images)
    return spent


@partial(jax.jit, static_argnums=(0, 3))
def _logits(
    layers: Layers, spiking: Spiking, images: jax.Array, quantum: float, row: int
) -> jax.Array:
    """Logits relative to their mean, one layer's activations rounded: that of `row`."""
    relus = [path for path, layer in walk(layers) if isinstance(layer, Relu)]

    def relu(path, current):
        activation = jax.nn.relu(current)
        theta = over_channels(spiking[path].theta, current) * quantum
        rounded = theta * jnp.floor(activation / theta + 0.5)
        return jnp.where(relus.index(path) == row, rounded, activation)

    logits, _ = forward(layers, spiking, images, relu)
    return logits - logits.mean(-1, keepdims=True)
