"""What every layer did during a simulation, against the activations it stands for.

`report` says how far the rates of each layer are from its activations, `errors` says
why.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxburst.conversion import Spiking, forward
from jaxburst.data import check_normalised
from jaxburst.layers import MaxPool, Relu, walk
from jaxburst.neuron import Burst, over_channels, remaining, worth
from jaxburst.pooling import max_pool
from jaxburst.simulation import Model, build, check, drive, rest, step


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


CAUSES = (
    "inherited",
    "inactivated",
    "initial",
    "remainder",
    "stuck",
    "overfiring",
    "pooling",
)


class LayerErrors(NamedTuple):
    """The conversion error of one layer over time, by cause; `errors` has the equation.

    Attributes:
      path: a Relu or a MaxPool.
      activation: mean of what the rates should be after the last step, in units of
        activation: of a Relu the trained network's activations, of a MaxPool the pool
        of the rates that enter it.
      mean: `{cause: [T]}`, mean of the signed error after every step, in units of
        activation, for the causes that exist here, and for their `'total'`.
      size: `{cause: [T]}`, mean of its absolute value. Parts of opposite sign cancel:
        the size of the total is at most the sum of the sizes.
    """

    path: str
    activation: float
    mean: dict[str, np.ndarray]
    size: dict[str, np.ndarray]


def errors(
    model: Model, spiking: Spiking, images: jax.Array, steps: int
) -> list[LayerErrors]:
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

    A MaxPool has a row of its own with the one part it adds: `pooling`, what it passes
    on minus the pool of the rates that enter it. It is zero under lateral inhibition.
    The next layer inherits it, with all errors of the layers before.

    Memory does not grow with `steps` but for the means that are returned.

    Args:
      model: the network, its burst neuron and pooling.
      spiking: its converted weights.
      images: one batch, `[B, H, W, C]`, normalised.
      steps: number of time steps `T`.

    Returns:
      One `LayerErrors` per Relu and MaxPool, in network order.

    Raises:
      ValueError: for neurons that do not repeat or do not conserve charge, and for
        images or weights that do not fit the network.

    References:
      The three causes: Li and Zeng, IJCAI 2022, "residual information", "spikes of
      inactivated neurons" and "pooling error". Over-firing as in the unevenness error
      of Bu et al., ICLR 2022.
    """
    if not isinstance(model.neuron, Burst):
        raise ValueError(
            "errors: refining neurons present the image once and correct what they "
            "sent, so there is no rate to take apart; use a Burst, or `report`"
        )
    if model.neuron.reset != "subtract":
        raise ValueError(
            "errors: a reset to zero loses charge, so the rate says nothing about what "
            "remains; use reset='subtract', or `report`"
        )
    if model.neuron.allowance is not None:
        raise ValueError(
            "errors: the charge of spikes taken back by an allowance is lost, so the "
            "rate says nothing about what remains; use allowance=None, or `report`"
        )
    check_normalised(images)
    check(model, spiking, images.shape, steps)
    shown, activation = jax.device_get(_errors(model, spiking, images, steps))
    return [
        LayerErrors(path, float(activation[path]), *shown[path])
        for path, layer in walk(model.layers)
        if isinstance(layer, Relu | MaxPool)
    ]


def parts(
    theta: jax.Array,
    start: jax.Array,
    end: jax.Array,
    drive: jax.Array,
    rate: jax.Array,
    activation: jax.Array,
    time: jax.Array,
) -> dict[str, jax.Array]:
    """The error of every neuron by cause, `{cause: [B, ...]}`: they sum to the whole.

    Args:
      theta: thresholds.
      start: potential before the first step, `v_0`.
      end: potential now, `v_T`.
      drive: mean of current and bias up to now.
      rate: `θ N / T`.
      activation: of the trained network.
      time: steps up to now, `T`.

    Everything but `time` is `[B, ...]`, in units of activation, and so is the result.
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


@partial(jax.jit, static_argnames=("model", "steps"))
def _errors(model, spiking, images, steps):
    """`{path: ({cause: mean [T]}, {cause: size [T]})}`, and `{path: activation}`."""
    circuit = build(model, spiking, images.shape[1:])
    current = drive(model, circuit, images)
    activations = forward(model.layers, spiking, images)[1]
    begin = rest(model, circuit, images.shape)
    pools = {
        path: layer for path, layer in walk(model.layers) if isinstance(layer, MaxPool)
    }

    def pooled(path, state, time):
        """What a pool passes on, and the pool of what enters it, as rates."""
        total, sent = state[path]
        unit = over_channels(circuit[path], sent) / time
        return unit * sent, unit * max_pool(total, pools[path])

    def advance(carry, _):
        state, counts = carry
        state, info = step(model, circuit, current, state)
        counts = jax.tree.map(jnp.add, counts, info.spikes)
        time = state["time"].astype(current.dtype)
        shown = {}
        for path, sent in counts.items():
            activation = activations[path]
            theta = over_channels(circuit[path].theta, sent)
            start, end = (
                remaining(model.neuron, path, circuit[path], when[path])
                for when in (begin, state)
            )
            rate = theta * sent / time
            mean = rate + (end - start) / time  # what came in: charge is conserved
            found = parts(theta, start, end, mean, rate, activation, time)
            shown[path] = _means(found | {"total": rate - activation})
        for path in pools:
            out, expected = pooled(path, state, time)
            shown[path] = _means(dict.fromkeys(("pooling", "total"), out - expected))
        return (state, counts), shown

    nothing = jax.tree.map(jnp.zeros_like, activations)
    (state, _), shown = jax.lax.scan(advance, (begin, nothing), length=steps)
    time = state["time"].astype(current.dtype)
    expected = {path: pooled(path, state, time)[1] for path in pools}
    return shown, {path: it.mean() for path, it in (activations | expected).items()}


def _means(found: dict[str, jax.Array]) -> tuple[dict, dict]:
    """Means of values and of absolute values, of each image first, then of them all:
    float32 sums stay short."""

    def mean(x: jax.Array) -> jax.Array:
        return x.mean(tuple(range(1, x.ndim))).mean()

    sizes = {cause: mean(jnp.abs(value)) for cause, value in found.items()}
    return {cause: mean(value) for cause, value in found.items()}, sizes


def error_table(rows: list[LayerErrors], step: int) -> str:
    """The mean absolute errors after a step as text, a line per layer.

    In percent of the layer's mean activation; empty where a cause does not exist.
    """
    causes = [*CAUSES, "total"]
    width = max(len(row.path) for row in rows)
    head = f"{'path':<{width}}  {'activation':>10}"
    lines = [head + "".join(f"  {cause:>11}" for cause in causes)]
    for row in rows:
        scale = row.activation or np.nan
        cells = (
            f"  {row.size[cause][step - 1] / scale:>11.2%}"
            if cause in row.size
            else " " * 13
            for cause in causes
        )
        start = f"{row.path:<{width}}  {row.activation:>10.4f}"
        lines.append((start + "".join(cells)).rstrip())
    return "\n".join(lines)
