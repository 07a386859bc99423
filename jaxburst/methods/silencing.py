"""Neurons that fired by mistake, silenced in a second run: SRP.

trace = silenced(model, spiking, inputs, steps=8, before=4)
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxburst.checks import door
from jaxburst.circuit import Info, answer, prepare
from jaxburst.convert import Spiking
from jaxburst.graph import over
from jaxburst.model import Model
from jaxburst.network import Network
from jaxburst.neurons import Burst
from jaxburst.run import Trace, jitted, unroll


@door(before="count")
def silenced(
    model: Model, spiking: Spiking, inputs, steps: int, *, before: int = 4
) -> Trace:
    r"""Simulates twice, the second time without the neurons that fired too much.

    .. math:: s_t \leftarrow s_t\, [\, v_\tau > 0.001\, \theta \,]

    A neuron whose potential is below zero after the first run of τ = `before` steps has
    sent more than its drive was worth, so that its activation is taken to be zero. The
    second run starts at rest. The hardware needs a bit in every neuron.

    Args:
      model: the network, neuron and pooling; integrate-and-fire neurons, `Burst(1)`.
      spiking: its converted weights.
      inputs: `[B, ...]`, as the network takes them.
      steps: time steps of the second run.
      before: time steps of the first run.

    Returns:
      The `Trace` of all `before + steps` steps; the logits of the second run are its
      own alone.

    Example:
      >>> unary = jb.Model(network, jb.Burst(1))
      >>> silenced(unary, spiking, inputs, steps=8, before=4).logits.shape
      (12, 2, 1)

    References:
      Hao et al., "Reducing ANN-SNN Conversion Error through Residual Membrane
      Potential", AAAI 2023.
    """
    leaves = model.network.leaves(inputs)
    model.neuron.check_steps(before + steps)
    integrate_and_fire("silenced", model)
    found = _silenced(model, spiking, leaves, steps, before)
    return found._replace(logits=model.network.outputs(found.logits))


@jitted("steps", "before")
def _silenced(model, spiking, leaves, steps: int, before: int) -> Trace:
    return silenced_of(model, prepare(model, spiking), leaves, steps, before)


def silenced_of(model: Model, circuit, leaves: list, steps: int, before: int) -> Trace:
    """The same of a circuit; the outputs as a list."""
    own, observe = circuit.own, observer(model.network)
    state, first = unroll(model, circuit, leaves, before, observe)
    active = {}
    for name in model.network.neurons:
        left = model.neuron.at(name).potential(own[name], state[name])
        active[name] = left > 0.001 * over(own[name].theta, left)

    def respond(name, neuron, threshold, state, arriving, f):
        after, spikes, _ = answer(neuron, threshold, state, arriving, f)
        return after, spikes * over(active[name], spikes), None

    _, second = unroll(model, circuit, leaves, steps, observe, respond=respond)
    return jax.tree.map(lambda *both: jnp.concatenate(both), first, second)


def observer(network: Network) -> Callable:
    """What `unroll` is to keep for a `Trace`: outputs and traffic."""
    graph = network.graph

    def observe(_, info: Info) -> Trace:
        outputs = [
            jnp.moveaxis(value, graph[name].batch_axis + 1, 1)
            for name, value in zip(graph.outputs, info.outputs, strict=True)
        ]
        return Trace(outputs, info.traffic, {}, {})

    return observe


def integrate_and_fire(method: str, model: Model) -> None:
    """Refuses neurons whose residual says something else, or nothing."""
    if model.neuron != Burst(1):
        raise ValueError(
            f"{method}: expected integrate-and-fire neurons, Burst(1), whose residual "
            f"tells of a spike too many or too few, found {model.neuron!r}"
        )
