"""Zero points: what every neuron of a channel sends anyway is known beforehand.

spiking = centre(model, spiking, inputs)
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jaxburst.batching import first
from jaxburst.checks import door
from jaxburst.circuit import prepare
from jaxburst.convert import Spiking
from jaxburst.graph import Pool
from jaxburst.methods.channels import by_channel, shape_of
from jaxburst.model import Model
from jaxburst.run import unroll


@door(inputs="calibration")
def centre(model: Model, spiking: Spiking, inputs, *, batch_size: int = 100) -> Spiking:
    r"""Gives each channel a zero point, so that its first step sends deviations alone.

    .. math:: z_c = \mathrm{median}\, n_1, \qquad m_1 = n_1 - z_c

    `n` is what the neurons of a channel say at the first step and `m` what they send;
    the median makes :math:`\sum |m|` least. Receivers start with the currents that `z`
    causes, a constant that is presented with the biases. Nothing that the network
    computes changes, only what is counted. ReLUs are mostly silent, and keep 0; a
    LayerNorm, a GELU, queries, keys and values are not. The last of all methods: it is
    of thresholds as they are. What pools pass on is counted as before, and so are the
    populations that they read.

    Args:
      model: the network, a neuron that is presented its input once, and pooling.
      spiking: its converted weights.
      inputs: calibration inputs `[N, ...]`, normalised; no labels. The first batch is
        looked at.
      batch_size: number of images to look at; memory grows with it.

    Returns:
      The converted weights with zero points.

    Raises:
      ValueError: for a neuron that is presented its input at every step.

    Example:
      >>> model = jb.Model(network, jb.Refining())
      >>> near = centre(model, spiking, np.array([[2.0, 0.1]] * 3, np.float32))
      >>> near["relu0"].zero.tolist()  # thresholds of 0.5
      [4.0, 0.0]
    """
    if model.neuron.repeats:
        raise ValueError(
            f"centre: {model.neuron!r} is presented its input at every step; zero "
            "points are for Refining and other neurons that send changes"
        )
    graph, found = model.network.graph, dict(spiking)
    pooled = {name for node in graph.of(Pool) for name in graph.senders[node.name]}
    leaves = model.network.leaves(first(inputs, batch_size))
    for name, zero in _medians(model, spiking, leaves).items():
        if name not in pooled and zero.any():
            found[name] = found[name]._replace(zero=zero)
    return found


@partial(jax.jit, static_argnames="model")
def _medians(model: Model, spiking: Spiking, leaves: list) -> dict[str, jax.Array]:
    """What a neuron of each channel says at the first step, as a threshold takes it."""
    network = model.network

    def observe(_, info):
        return {name: info.spikes[name] for name in network.neurons}

    _, seen = unroll(model, prepare(model, spiking), leaves, 1, observe)
    return {
        name: jnp.round(
            jnp.median(by_channel(network, name, spikes[0]), (0, 1))
        ).reshape(shape_of(network, name))
        for name, spikes in seen.items()
    }
