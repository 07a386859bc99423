"""What every layer did during a simulation, against the activations it stands for."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxburst.conversion import Spiking, forward
from jaxburst.layers import Relu, walk
from jaxburst.neuron import Burst, worth
from jaxburst.simulation import Model, build, drive, rest, step


class LayerReport(NamedTuple):
    """What one layer of neurons did during a simulation.

    Attributes:
      path: the layer.
      theta: its threshold, in units of activation (the mean, if there are several).
      activation: mean of the activations the rates stand for.
      rate: mean of what the spikes say, in the same unit: `θ N / T` of burst neurons,
        the sum of all changes of refining ones.
      error: root mean square of rate minus activation.
      saturated: share of the neurons whose activation is out of reach, above `γ θ`;
        none of the refining ones.
      silent: share of the neurons that sent nothing.
      events: spikes per image over the whole simulation.
    """

    path: str
    theta: float
    activation: float
    rate: float
    error: float
    saturated: float
    silent: float
    events: float


def report(
    model: Model, spiking: Spiking, images: jax.Array, steps: int
) -> list[LayerReport]:
    """Simulates one batch and compares every layer of neurons with its activations.

    Args:
      model: the network, neuron and pooling.
      spiking: its converted weights.
      images: one batch, `[B, H, W, C]`, normalised.
      steps: number of time steps.

    Returns:
      One `LayerReport` per Relu, in network order.
    """
    sums, activations = _sums(model, spiking, images, steps)
    repeating = isinstance(model.neuron, Burst)
    rows = []
    for path, layer in walk(model.layers):
        if not isinstance(layer, Relu):
            continue
        theta, activation = np.asarray(spiking[path].theta), activations[path]
        charge, sent = (np.asarray(value) for value in sums[path])
        rate = theta * charge / (steps if repeating else 1)
        gamma = model.neuron.at(path).gamma if repeating else None
        reach = theta * (gamma or np.inf)
        rows.append(
            LayerReport(
                path=path,
                theta=float(theta.mean()),
                activation=float(activation.mean()),
                rate=float(rate.mean()),
                error=float(np.sqrt(np.square(rate - activation).mean())),
                saturated=float((activation > reach).mean()),
                silent=float((sent == 0).mean()),
                events=float(sent.sum() / len(images)),
            )
        )
    return rows


@partial(jax.jit, static_argnames=("model", "steps"))
def _sums(model, spiking, images, steps):
    """`{path: (Σ worth n, Σ|n|)}` of every neuron, and `{path: activation}`."""
    circuit = build(model, spiking, images.shape[1:])
    current = drive(model, circuit, images)

    def advance(_, carry):
        state, sums = carry
        state, info = step(model, circuit, current, state)
        value = worth(model.neuron, state["time"])
        sums = {
            path: (charge + value * spikes, sent + jnp.abs(spikes))
            for path, (charge, sent) in sums.items()
            for spikes in [info.spikes[path]]
        }
        return state, sums

    state = rest(model, circuit, images.shape)
    nothing = {
        path: (jnp.zeros_like(state[path].potential),) * 2
        for path, layer in walk(model.layers)
        if isinstance(layer, Relu)
    }
    _, sums = jax.lax.fori_loop(0, steps, advance, (state, nothing))
    return sums, forward(model.layers, spiking, images)[1]


def table(rows: list[LayerReport]) -> str:
    """The report as text, one line per layer."""
    width = max(len(row.path) for row in rows)
    head = (
        f"{'path':<{width}}  {'theta':>8}  {'activation':>10}  {'rate':>8}  "
        f"{'error':>8}  {'saturated':>9}  {'silent':>7}  {'events':>11}"
    )
    lines = [
        f"{row.path:<{width}}  {row.theta:>8.4f}  {row.activation:>10.4f}  "
        f"{row.rate:>8.4f}  {row.error:>8.4f}  {row.saturated:>9.2%}  "
        f"{row.silent:>7.1%}  {row.events:>11,.0f}"
        for row in rows
    ]
    return "\n".join([head, *lines])
