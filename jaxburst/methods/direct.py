"""The outputs of a spiking network at any time, from one pass.

What a neuron that may take back all it has sent has sent up to `t` depends on the sum
of its input alone, not on the order in which it came. Layer after layer,

.. math:: A_l(t) = \\theta_l \\max\\big(0, \\lfloor (v_0 + W_l A_{l-1}(t) + t\\, b_l)
          / \\theta_l \\rfloor\\big)

is the charge that has been sent, at the cost of one pass of the conventional network,
whatever `t` is.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jaxburst.checks import door
from jaxburst.convert import Spiking
from jaxburst.model import Model
from jaxburst.network import forward


@door
def direct(model: Model, spiking: Spiking, inputs, times: tuple[int, ...]):
    """The outputs that a simulation would give after some numbers of steps.

    Of networks whose neurons depend on sums alone: `Burst(gamma=None, signed=True)`,
    and `Refining(gamma=None, silence=0)`, which at every step is the conventional
    network with quantised activations. There are no events on the way, hence no
    energy.

    Args:
      model: the network and neuron; pooling by lateral inhibition.
      spiking: its converted weights.
      inputs: `[B, ...]`, as the network takes them.
      times: numbers of steps, e.g. `(1, 2, 4, 8, 16)`.

    Returns:
      The outputs, `[len(times), B, ...]` each, in the network's unit.

    Raises:
      ValueError: for neurons whose spikes depend on more than the sum of their input.

    Example:
      >>> signed = jb.Model(network, jb.Burst(None, signed=True))
      >>> direct(signed, spiking, inputs, times=(1, 8))[:, :, 0].tolist()
      [[0.5, 3.0], [0.5, 2.75]]
    """
    if model.pool != "lateral":
        raise ValueError(
            "direct: gating passes what arrives at the moment, not sums; use "
            f"pool='lateral'; found pool={model.pool!r}, for which there is simulate"
        )
    leaves = model.network.leaves(inputs)
    return model.network.outputs(_direct(model, spiking, leaves, times))


@partial(jax.jit, static_argnames=("model", "times"))
def _direct(model: Model, spiking: Spiking, leaves: list, times: tuple[int, ...]):
    network = model.network
    inputs = jax.tree.unflatten(network.tree[0], leaves)

    def at(t: jax.Array):
        def sent(node, drive, f):
            own, threshold = model.neuron.at(node.name), spiking[node.name]
            return own.direct(threshold, drive, t, f)

        return forward(network, spiking, inputs, sent)[0]

    few = max(1, 32 // len(leaves[0]))  # times side by side, where batches are small
    return jax.lax.map(at, jnp.asarray(times), batch_size=few)
