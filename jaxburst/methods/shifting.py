"""Neurons that sent one spike too many or too few, shifted in a second run: COS.

trace = shifted(model, spiking, inputs, steps=8, before=4)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxburst.checks import door
from jaxburst.circuit import answer, prepare
from jaxburst.convert import Spiking
from jaxburst.graph import over
from jaxburst.methods.silencing import integrate_and_fire, observer
from jaxburst.model import Model
from jaxburst.run import Plan, Trace, jitted, unroll

MARGIN = 1e-3
"""Over a threshold, by which a shift is more than enough."""


@door(before="count")
def shifted(
    model: Model, spiking: Spiking, inputs, steps: int, *, before: int = 4
) -> Trace:
    r"""Simulates layer by layer, from potentials by which a spike more or less is sent.

    .. math::
        v_0 \leftarrow \begin{cases}
        v_0 - \max(\theta,\ \min_{s_t > 0} u_t - (1 - \epsilon)\, \theta)
            & v_\tau < 0 \text{ after some spike} \\
        v_0 + \max(\theta,\ (1 + \epsilon)\, \theta - \max_{s_t = 0} u_t)
            & v_\tau \ge \theta
        \end{cases}

    A layer first answers τ = `before` steps of what it hears, :math:`u_t` being its
    potentials before they are reset. A neuron whose potential ends below zero has sent
    a spike too many, one that ends at the threshold a spike too few. It then answers
    all steps from the shifted potential. The hardware keeps τ steps of what a layer
    hears, so that each layer is τ steps behind the one before.

    Assumed: a neuron that fired at every step is shifted up by θ.

    Args:
      model: the network, neuron and pooling; integrate-and-fire neurons, `Burst(1)`.
      spiking: its converted weights.
      inputs: `[B, ...]`, as the network takes them. A layer holds all steps at once.
      steps: time steps of the second run.
      before: time steps of the first run, at most as many.

    Returns:
      The `Trace` of the second runs.

    Example:
      >>> unary = jb.Model(network, jb.Burst(1))
      >>> shifted(unary, spiking, inputs, steps=8, before=4).logits.shape
      (8, 2, 1)

    References:
      Hao et al., "Bridging the Gap between ANNs and SNNs by Calibrating Offset Spikes",
      ICLR 2023, section 4, and their program.
    """
    leaves = model.network.leaves(inputs)
    model.neuron.check_steps(steps)
    integrate_and_fire("shifted", model)
    if before > steps:
        raise ValueError(f"shifted: before: at most the {steps} steps, found {before}")
    found = _shifted(model, spiking, leaves, steps, before)
    return found._replace(logits=model.network.outputs(found.logits))


@jitted("steps", "before")
def _shifted(model, spiking, leaves, steps: int, before: int) -> Trace:
    return shifted_of(model, prepare(model, spiking), leaves, steps, before)


def shifted_of(model: Model, circuit, leaves: list, steps: int, before: int) -> Trace:
    """The same of a circuit; the outputs as a list."""

    def respond(name, neuron, threshold, state, arriving, f):
        first = jax.tree.map(lambda x: x[:before], arriving)
        _, spikes, left = answer(neuron, threshold, state, first, f, record=True)
        current, t = arriving
        shift = _shift(threshold.theta, spikes, left)
        current = current.at[0].add(shift)  # as if the potential were
        return answer(neuron, threshold, state, (current, t), f)

    how = {"order": Plan(steps, len(leaves[0])), "respond": respond}
    _, found = unroll(model, circuit, leaves, steps, observer(model.network), **how)
    return found


def _shift(theta, spikes, left):
    """Of potentials at rest, by what was sent and what it left, `[τ, B, ...]`."""
    fired, charged = spikes > 0, left + over(theta, spikes) * spikes
    theta = over(theta, left[-1])
    lowest = jnp.where(fired, charged, jnp.inf).min(0)
    highest = jnp.where(fired, -jnp.inf, charged).max(0)
    down = jnp.maximum(theta, lowest - (1 - MARGIN) * theta)
    up = jnp.maximum(theta, (1 + MARGIN) * theta - highest)
    up = jnp.where(fired.all(0), theta, up)
    many = (left[-1] < 0) & fired.any(0)
    return jnp.where(left[-1] >= theta, up, jnp.where(many, -down, 0.0))
