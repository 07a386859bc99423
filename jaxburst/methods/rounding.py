"""The quantised conventional network: what spikes have to be better than.

model, spiking = rounded(network, variables, inputs, bits=4)
curves = evaluate(model, spiking, (test, labels), steps=1)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxburst.checks import door
from jaxburst.convert import Spiking, convert
from jaxburst.graph import Synapse
from jaxburst.methods.calibration import calibrate_mse
from jaxburst.methods.corrections import correct
from jaxburst.model import Model
from jaxburst.network import Network
from jaxburst.neurons import Burst, Refining
from jaxburst.units import unit_of_rows


@door
def quantise(model: Model, spiking: Spiking, bits: int = 8) -> Spiking:
    r"""Rounds kernels to whole numbers of a step for each output channel.

    .. math::
        w_{ic} \leftarrow \frac{s_c}{u_i}
        \mathrm{round}\Big( \frac{u_i w_{ic}}{s_c} \Big), \qquad
        s_c = \frac{\max_i |u_i w_{ic}|}{2^{b-1} - 1}

    with what one of the whole numbers that it receives is worth, :math:`u_i`: what
    hardware stores is the product. Kernels stay floating-point numbers, here.

    Args:
      model: the network, neuron and pooling.
      spiking: its converted weights.
      bits: of a weight, with its sign; at least 2.

    Returns:
      The converted network with rounded kernels.

    Example:
      >>> kernel = quantise(model, spiking, 2)["hidden"].kernel  # -1, 0 and 1 remain
      >>> kernel.tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    if bits < 2:
        raise ValueError("bits: expected at least 2, one of them the sign, found 1")
    found, most = dict(spiking), 2 ** (bits - 1) - 1
    for node in model.network.graph.of(Synapse):
        kernel, bias = spiking[node.name]
        role, route = node.role, model.routes.get(node.inputs[0])
        unit = route and unit_of_rows(node, route, spiking, model.network.graph)
        unit = jnp.ones((), kernel.dtype) if unit is None else unit
        summed = set(role.contracted[1])
        if role.is_conv:
            summed = set(range(kernel.ndim)) - {role.features}
        stored = kernel * unit
        largest = jnp.abs(stored).max(tuple(summed), keepdims=True)
        # A step could be less than the smallest number, where weights have decayed.
        largest = jnp.maximum(largest, jnp.finfo(kernel.dtype).tiny * most)
        rounded = jnp.round(stored / largest * most) * (largest / most)
        found[node.name] = spiking[node.name]._replace(kernel=rounded / unit)
    return found


@door
def rounded(
    network: Network,
    variables,
    inputs,
    *,
    bits: int = 4,
    batch_size: int = 100,
    progress: bool = False,
) -> tuple[Model, Spiking]:
    """The conventional network with every activation rounded once, to `bits` bits.

    It is a network of refining neurons at their first step, without silence: run it for
    one step. Thresholds per channel describe the activations best with the levels that
    the bits allow; the means of the activations are corrected on two batches, as in the
    preset `refining`; kernels are rounded last, to 8 bits. Inputs and outputs are not
    rounded.

    Args:
      network: the network.
      variables: its trained variables.
      inputs: calibration inputs `[N, ...]`, normalised; no labels.
      bits: of an activation, without a sign; at least 1.
      batch_size: number of images at a time.
      progress: whether to show a bar.

    Returns:
      `(model, spiking)`, for `evaluate(model, spiking, data, steps=1)`. Its events are
      the activations that are not zero.

    Example:
      >>> model, spiking = rounded(network, weights, inputs, bits=2)
      >>> model.neuron
      Refining(gamma=3, ratio=2, silence=0)
    """
    levels = 2**bits - 1
    thresholds = calibrate_mse(
        network, variables, inputs, Burst(levels), batch_size=batch_size,
        progress=progress,
    )  # fmt: skip
    model = Model(network, Refining(levels, silence=0))
    spiking = convert(network, variables, thresholds)
    some = jax.tree.map(lambda x: x[: 2 * batch_size], inputs)
    spiking = correct(model, spiking, some, steps=1)
    return model, quantise(model, spiking)
