"""What every layer did during a simulation, against the activations it stands for.

`report` says how far the rates of each layer are from its activations, `errors` says
why.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxburst.batching import at_once
from jaxburst.checks import door, whole
from jaxburst.circuit import Circuit, prepare
from jaxburst.convert import Spiking
from jaxburst.graph import execute, over
from jaxburst.methods.channels import by_channel
from jaxburst.model import Model
from jaxburst.network import forward
from jaxburst.run import unroll
from jaxburst.text import aligned

__all__ = ["LayerErrors", "LayerReport", "error_table", "errors", "report", "table"]


class LayerReport(NamedTuple):
    """What one population of neurons did during a simulation.

    Attributes:
      name: the population.
      theta: its threshold, in units of activation (the mean, if there are several).
      activation: mean of the activations the rates stand for.
      rate: mean of what the spikes say, in the same unit: `θ N / T` of neurons that
        repeat, the sum of all changes of refining ones.
      error: root mean square of rate minus activation.
      saturated: share of the neurons whose activation is out of reach, above `γ θ`;
        none of the refining ones.
      silent: share of the neurons that sent nothing.
      events: spikes per image over the whole simulation.

    Example:
      >>> (row,) = report(model, spiking, inputs, steps=4)
      >>> row.theta, row.activation
      (0.5, 0.8125)
    """

    name: str
    theta: float
    activation: float
    rate: float
    error: float
    saturated: float
    silent: float
    events: float


@door
def report(model: Model, spiking: Spiking, inputs, steps: int) -> list[LayerReport]:
    """Simulates one batch and compares every population with its activations.

    Args: as for `simulate`; the inputs are one batch.

    Returns:
      One `LayerReport` per population, in network order.

    Example:
      >>> (row,) = report(model, spiking, inputs, steps=4)
      >>> row.silent, row.events  # of 4 neurons one has a negative drive
      (0.25, 13.0)
    """
    found = at_once(_report(model, steps), spiking, inputs)
    rows = []
    for name in model.network.neurons:
        means = {field: float(np.mean(x)) for field, x in found[name].items()}
        means["error"] = float(np.sqrt(means["error"]))
        theta = float(jnp.mean(spiking[name].theta))
        rows.append(LayerReport(name=name, theta=theta, **means))
    return rows


class _Seen(NamedTuple):
    """What is kept of a population along the way.

    Attributes:
      start: the potential before the first step.
      heard: of neurons that repeat the sum of what the spikes of each step say, of
        others what they say together.
      sent: `Σ|n|`.
    """

    start: jax.Array
    heard: jax.Array
    sent: jax.Array


def _watching(model: Model, circuit: Circuit) -> tuple[Callable, Callable]:
    """What `run.unroll` follows: `{name: _Seen}`, step by step."""
    kinds = {name: model.neuron.at(name) for name in model.network.neurons}

    def begin(state):
        found = {}
        for name, own in kinds.items():
            start = own.potential(circuit.own[name], state[name])
            found[name] = _Seen(start, jnp.zeros_like(start), jnp.zeros_like(start))
        return found

    def after(seen, state, info):
        found = {}
        for name, own in kinds.items():
            start, before, sent = seen[name]
            spikes, threshold = info.spikes[name][0], circuit.own[name]
            heard = own.heard(threshold, state[name], spikes, state["time"])
            if own.repeats:
                heard = before + heard
            found[name] = _Seen(start, heard, sent + jnp.abs(spikes))
        return found

    return begin, after


@lru_cache(maxsize=8)
def _report(model: Model, steps: int):
    """The fields of `LayerReport`, a number for each image."""
    network = model.network

    def function(spiking, inputs):
        circuit, leaves = prepare(model, spiking), network.leaves(inputs)
        follow = _watching(model, circuit)
        state, _ = unroll(model, circuit, leaves, steps, lambda *_: (), follow=follow)
        found, seen = {}, state["seen"]
        for name, activation in forward(network, spiking, inputs)[1].items():
            rate = seen[name].heard / (steps if model.neuron.repeats else 1)
            sent, levels = seen[name].sent, model.neuron.at(name).levels
            reach = over(spiking[name].theta, activation) * (levels or np.inf)

            def mean(x, name=name):
                return by_channel(network, name, x).mean((1, 2))

            found[name] = {
                "activation": mean(activation),
                "rate": mean(rate),
                "error": mean(jnp.square(rate - activation)),
                "saturated": mean(activation > reach),
                "silent": mean(sent == 0),
                "events": by_channel(network, name, sent).sum((1, 2)),
            }
        return found

    return function


@door
def table(rows: list[LayerReport]) -> str:
    """The report as text, one line per layer.

    Example:
      >>> print(table(report(model, spiking, inputs, steps=4)))
      name    theta  activation    rate   error  saturated  silent  events
      relu0  0.5000      0.8125  0.8125  0.0000      0.00%   25.0%      13
    """
    how = {
        "name": "", "theta": ".4f", "activation": ".4f", "rate": ".4f", "error": ".4f",
        "saturated": ".2%", "silent": ".1%", "events": ",.0f",
    }  # fmt: skip
    return aligned(
        [[*how], *([f"{getattr(r, f):{as_}}" for f, as_ in how.items()] for r in rows)]
    )


CAUSES = (
    *("inherited", "inactivated", "initial", "remainder", "stuck", "overfiring"),
    "pooling",
)


class LayerErrors(NamedTuple):
    """The conversion error of one layer over time, by cause; `errors` has the equation.

    Attributes:
      name: a population or a pool.
      activation: mean of what the rates should be after the last step, in units of
        activation: of a population the trained network's activations, of a pool the
        pool of the rates that enter it.
      mean: `{cause: [T]}`, mean of the signed error after every step, in units of
        activation, for the causes that exist here, and for their `'total'`.
      size: `{cause: [T]}`, mean of its absolute value. Parts of opposite sign cancel:
        the size of the total is at most the sum of the sizes.

    Example:
      >>> (row,) = errors(model, spiking, inputs, steps=4)
      >>> row.name, row.activation, len(row.size["total"])
      ('relu0', 0.8125, 4)
    """

    name: str
    activation: float
    mean: dict[str, np.ndarray]
    size: dict[str, np.ndarray]


@door
def errors(model: Model, spiking: Spiking, inputs, steps: int) -> list[LayerErrors]:
    r"""Tells the causes of the conversion error apart, in every layer, at every step.

    A neuron that resets by subtraction conserves charge, so its rate
    :math:`r = \theta N_T / T` is its mean drive and what is not yet balanced,

    .. math::
        r = \bar z + (v_0 - v_T) / T, \qquad
        \bar z = \tfrac1T \textstyle\sum_t (I_t + b)

    and with the drive :math:`z` of the trained network its error is exactly

    .. math::
        r - \mathrm{ReLU}(z)
        = \underbrace{\mathrm{ReLU}(\bar z) - \mathrm{ReLU}(z)}_\text{inherited}
        + \begin{cases}
            r & \bar z \le 0 \text{: inactivated} \\
            v_0 / T - v_T / T & \bar z > 0
          \end{cases}

    * `inherited`: from the layers below (and from a `bias` that corrects means).
    * `inactivated`: spikes of neurons that should be silent, sent before the inhibition
      arrived.
    * `initial`: the initial charge.
    * residual information, the charge that did not leave in time: the `remainder` below
      the threshold; what is `stuck` above it, since a neuron sends at most `γ` spikes
      per step (the part that bursts release; of a saturated neuron it does not fade);
      `overfiring`, the debt of a neuron that sent too much, `v_T < 0`.

    A pool has a row of its own with the one part it adds: `pooling`, what it passes
    on minus the pool of the rates that enter it. It is zero under lateral inhibition.
    The next layer inherits it, with all errors of the layers before.

    Memory does not grow with `steps` but for the means that are returned.

    Args: as for `simulate`; the inputs are one batch.

    Returns:
      One `LayerErrors` per population and pool, in network order.

    Raises:
      ValueError: for neurons that do not repeat or do not conserve charge.

    Example:
      >>> (row,) = errors(model, spiking, inputs, steps=4)
      >>> round(float(row.mean["total"][-1]), 4)
      0.0

    References:
      The three causes: Li and Zeng, IJCAI 2022, "residual information", "spikes of
      inactivated neurons" and "pooling error". Over-firing as in the unevenness error
      of Bu et al., ICLR 2022.
    """
    if not model.neuron.repeats:
        raise ValueError(
            f"errors: {model.neuron!r} presents the input once and corrects what was "
            "sent, so there is no rate to take apart; use a neuron that repeats, or "
            "`report`"
        )
    if not model.neuron.conserves:
        raise ValueError(
            f"errors: {model.neuron!r} loses charge, so the rate says nothing about "
            "what remains; of Burst use reset='subtract' and allowance=None, or "
            "`report`"
        )
    found = at_once(_errors(model, steps), spiking, inputs)
    shown, activation = jax.tree.map(lambda x: x.mean(0), found)
    names = [node.name for node in model.network.graph.nodes if node.name in shown]
    return [LayerErrors(name, float(activation[name]), *shown[name]) for name in names]


def parts(theta, start, end, drive, rate, activation, time) -> dict[str, jax.Array]:
    """The error of every neuron by cause, `{cause: [B, ...]}`: they sum to the whole.

    Of thresholds, `v_0`, `v_T`, the mean of current and bias up to now, `θ N / T`, the
    trained network's activation, `[B, ...]` each, and the steps up to now, `T`.
    """
    active = drive > 1e-6 * theta  # less is rounding, and as good as no drive

    def where(condition, value):
        return jnp.where(condition, value, jnp.zeros_like(value))

    return {
        "inherited": where(active, drive) - activation,
        "inactivated": where(~active, rate),
        "initial": where(active, start / time),
        "remainder": where(active & (0 <= end) & (end < theta), -end / time),
        "stuck": where(active & (end >= theta), -end / time),
        "overfiring": where(active & (end < 0), -end / time),
    }


@lru_cache(maxsize=8)
def _errors(model: Model, steps: int):
    """`{name: ({cause: mean [T]}, {cause: size [T]})}`, and `{name: activation}`, one
    row on each device."""
    network = model.network
    graph = network.graph

    def function(spiking, inputs):
        circuit, leaves = prepare(model, spiking), network.leaves(inputs)
        images = len(leaves[0])
        activations = forward(network, spiking, inputs)[1]

        def pooled(name, state, time):
            """What a pool passes on, and the pool of what enters it, as rates."""
            total, sent = state[name]
            unit = over(circuit.units.get(name, jnp.ones((), sent.dtype)), sent) / time
            return unit * sent, unit * execute(graph[name], total, batch=images)

        def observe(state, _):
            shown, seen = {}, state["seen"]
            for name, activation in activations.items():
                time = state["time"].astype(activation.dtype)
                own, threshold = model.neuron.at(name), spiking[name]
                end = own.potential(threshold, state[name])
                start, heard, _ = seen[name]
                rate = heard / time
                mean = rate + (end - start) / time  # what came in: charge is conserved
                theta = over(threshold.theta, rate)
                found = parts(theta, start, end, mean, rate, activation, time)
                shown[name] = _means(found | {"total": rate - activation})
            for name in network.pools:
                out, expected = pooled(name, state, time)
                shown[name] = _means(
                    dict.fromkeys(("pooling", "total"), out - expected)
                )
            return jax.tree.map(lambda x: x[None], shown)

        follow = _watching(model, circuit)
        state, shown = unroll(model, circuit, leaves, steps, observe, follow=follow)
        time = state["time"].astype(jnp.result_type(*activations.values()))
        expected = {name: pooled(name, state, time)[1] for name in network.pools}
        means = {name: it.mean() for name, it in (activations | expected).items()}
        return jax.tree.map(lambda x: x[None], (shown, means))

    return function


def _means(found: dict[str, jax.Array]) -> tuple[dict, dict]:
    """Means of values and of absolute values, of each image first, then of them all:
    float32 sums stay short."""

    def mean(x: jax.Array) -> jax.Array:
        return x.mean(tuple(range(1, x.ndim))).mean()

    sizes = {cause: mean(jnp.abs(value)) for cause, value in found.items()}
    return {cause: mean(value) for cause, value in found.items()}, sizes


@door(rows="errors", step="count")
def error_table(rows: list[LayerErrors], step: int) -> str:
    """The mean absolute errors after a step as text, a line per layer.

    In percent of the layer's mean activation; empty where a cause does not exist.

    Example:
      >>> text = error_table(errors(model, spiking, inputs, steps=4), step=4)
      >>> text.splitlines()[1].split()[:6]  # of the initial charge as much is left
      ['relu0', '0.8125', '0.00%', '0.00%', '5.77%', '5.77%']
    """
    for row in rows:
        whole("step", step, 1, len(row.size["total"]))
    causes = [*CAUSES, "total"]
    lines = [["name", "activation", *causes]]
    for row in rows:
        shares = {
            k: x[step - 1] / (row.activation or np.nan) for k, x in row.size.items()
        }
        cells = [f"{shares[k]:.2%}" if k in shares else "" for k in causes]
        lines.append([row.name, f"{row.activation:.4f}", *cells])
    return aligned(lines)
