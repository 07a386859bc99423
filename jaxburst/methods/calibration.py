"""From the activations of a trained network to the thresholds of a spiking one."""

from __future__ import annotations

import warnings
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from jaxburst.batching import add_up, each, gather, length, sweep, together
from jaxburst.checks import door
from jaxburst.circuit import prepared
from jaxburst.convert import Thresholds, convert
from jaxburst.graph import over
from jaxburst.methods.channels import (
    by_channel,
    channels,
    distance,
    outputs_by_channel,
    shape_of,
)
from jaxburst.model import Model
from jaxburst.network import Network, forward
from jaxburst.neurons import Neuron
from jaxburst.run import compiler_options, last_of

__all__ = ["calibrate", "calibrate_mse", "choose_percentile"]


class ZeroThreshold(ValueError):
    """The threshold of a population would be 0: most of its activations are."""


@door(inputs="calibration")
def calibrate(
    network: Network,
    variables,
    inputs,
    neuron: Neuron,
    *,
    percentile: float = 99.9,
    per: str = "layer",
    batch_size: int = 100,
) -> Thresholds:
    r"""Chooses the threshold of every population from the activations it reached.

    .. math:: \theta = P / \gamma

    where `P` is the percentile of all activations of the population, zeros included, of
    their size where they may be negative. A
    neuron then covers `[0, P]` with `γ` spikes per step, and an integrate-and-fire
    neuron, `γ = 1`, has the threshold `P`. The percentile is exact and does not depend
    on how the images are cut into batches, or divided among processes.

    Args:
      variables: the trained ones.
      inputs: calibration inputs `[N, ...]`, normalised as for training; no labels.
      neuron: the kind to calibrate for; only its `levels` are read, the `gamma` of
        `Burst`. For `Refining`, which has no range of its own, pass `Burst(levels)`:
        that many quanta then cover the range at the first step.
      percentile: between 0 and 100; 100 is the maximum.
      per: one threshold per `'layer'` or per `'channel'`.

    Returns:
      `{name: θ}` for every population; θ is a scalar, or one per channel, `[C]`, or
      `[C, 1, 1]` where channels come first. A channel that stays silent takes the
      largest threshold of its population, and a population that stays silent the
      largest of all; both with a warning.

    Raises:
      ValueError: for activations that are not finite, and (`ZeroThreshold`) a
        population that fires but whose threshold would be 0; the message names it.

    Example:
      >>> calibrate(network, weights, inputs, jb.Burst(5), percentile=100)  # 2.5 / 5
      {'relu0': Array(0.5, dtype=float32)}

    References:
      Percentile: Rueckauer et al., 2017. Division by γ: the normalisation of Li and
      Zeng, IJCAI 2022, in activation units.
    """
    weights, levels = network.weights(variables), _levels(network, neuron)
    ranges = reached(network, weights, inputs, per, percentile, batch_size)
    partly = {}
    for name, (values, most) in ranges.items():
        if values.any():
            partly |= {name: int((values == 0).sum())} if not values.all() else {}
        elif most > 0:
            raise ZeroThreshold(
                f"{name}: its threshold would be 0, since the {percentile:g}th "
                "percentile of its activations is 0; calibrate with a higher "
                "percentile or more images"
            )
    if partly:
        warnings.warn(
            f"channels with the threshold 0, since they did not fire, take the largest "
            f"threshold of their population: {partly}",
            stacklevel=2,
        )
    found = {name: values for name, (values, _) in ranges.items()}
    return _thresholds(network, weights, found, levels, per)


def _levels(network: Network, neuron: Neuron) -> dict[str, int]:
    """How many thresholds the range of each population is divided into."""
    found = {}
    for name in network.neurons:
        found[name] = neuron.at(name).levels
        if found[name] is None:
            raise ValueError(
                f"neuron: {neuron!r} has no range of its own that thresholds could "
                "divide; pass Burst(levels) with the number of levels that the range "
                "should have"
            )
    return found


def reached(network, weights, inputs, per, percentile, batch_size, words="") -> dict:
    """`{name: (percentile of each column, largest of all)}` of the activations."""
    count, peaks = length(inputs), {}
    for name in network.neurons:
        size = int(np.prod(network.graph[name].image_shape))
        columns = channels(network, name) if per == "channel" else 1
        peaks[name] = _Peak(percentile, count, columns, size // columns)
    broken = dict.fromkeys(peaks, np.int64(0))
    function = _values(network, per, percentile == 100)
    for rows, (found, finite) in sweep(
        function, weights, inputs, batch_size, description=words
    ):
        for name, peak in peaks.items():
            broken[name] += (~finite[name][:rows]).sum()
            peak.add(found[name][:rows])
    broken = together(broken)
    for name in network.neurons:
        if broken[name]:
            raise ValueError(
                f"{name}: an activation is not finite; check the weights and the "
                "normalisation of the inputs"
            )
    return {name: peak.value() for name, peak in peaks.items()}


@lru_cache
def _values(network: Network, per: str, largest: bool):
    """Activations `{name: [B, n, columns]}` of a batch, and whether they are finite."""

    def function(weights, batch):
        finite = {}

        def activate(node, x, f):
            y = f(x)
            # Before a ReLU, which XLA may let turn NaN into 0; drives may be masked.
            known = jnp.isfinite(x if f.other is None else y)
            finite[node.name] = by_channel(network, node.name, known).all((1, 2))
            return y

        _, record = forward(network, weights, batch, activate)
        found = {name: _columns(network, name, x, per) for name, x in record.items()}
        if largest:  # all that the maximum needs
            found = {name: x.max(1, keepdims=True) for name, x in found.items()}
        return found, finite

    return function


def _columns(network: Network, name: str, x: jax.Array, per: str) -> jax.Array:
    """The sizes of a population's activations, `[B, n, columns]`."""
    x = abs(by_channel(network, name, x))
    return x if per == "channel" else x.reshape(len(x), -1, 1)


class _Peak:
    """The exact percentile of a stream: keeps no more than the values above it."""

    def __init__(self, percentile: float, images: int, columns: int, size: int):
        """Of so many images, each of which has `size` values in every column."""
        position = percentile / 100 * (images * size - 1)  # from 0, in rising order
        self.share = position % 1
        self.count = images * size - int(position)
        self.largest = np.zeros((columns, 0))

    def add(self, values: np.ndarray) -> None:
        """Takes in `[images, n, columns]` more values."""
        rows = np.moveaxis(values, -1, 0).reshape(values.shape[-1], -1)
        before = self.largest.astype(rows.dtype, copy=False)
        self._keep(np.concatenate([before, rows], axis=1))

    def _keep(self, rows: np.ndarray) -> None:
        surplus = rows.shape[1] - self.count
        if surplus > 0:
            rows = np.partition(rows, surplus, axis=1)[:, surplus:]
        self.largest = rows

    def value(self) -> tuple[np.ndarray, float]:
        """The percentile of each column, interpolated linearly, `[columns]`, and the
        largest value of all, over all processes."""
        if jax.process_count() > 1:
            # A share may have fewer values than are kept: fill with what is below all.
            columns, here = self.largest.shape
            padded = np.full((columns, self.count), -1.0)
            padded[:, :here] = self.largest
            self._keep(np.concatenate(each(padded), axis=1))
        least = np.sort(self.largest, axis=1)
        most, least = float(least[:, -1].max()), least[:, :2]
        return least[:, 0] + self.share * (least[:, -1] - least[:, 0]), most


def _thresholds(network, weights, ranges: dict, levels: dict, per: str) -> Thresholds:
    """Ranges over levels, in the type of the weights; what is silent gets a range."""
    floats = [x.dtype for x in jax.tree.leaves(weights) if x.dtype.kind in "fV"]
    dead = [name for name, values in ranges.items() if not values.any()]
    found = {
        name: np.where(values == 0, values.max(), values) / levels[name]
        for name, values in ranges.items()
    }
    if dead:
        alive = [float(x.max()) for name, x in found.items() if name not in dead]
        highest = max(alive, default=1.0)
        found |= {name: np.full(len(ranges[name]), highest) for name in dead}
        warnings.warn(
            f"populations that did not fire take the largest threshold of all, "
            f"{highest:g}, and so stay silent: {dead}",
            stacklevel=3,
        )
    kind = jnp.result_type(*floats or [float])
    shapes = {n: shape_of(network, n) if per == "channel" else () for n in ranges}
    return {
        name: jnp.asarray(x.reshape(shapes[name]), kind) for name, x in found.items()
    }


@door(inputs="calibration")
def choose_percentile(
    network: Network,
    variables,
    inputs,
    neuron: Neuron,
    *,
    steps: int,
    candidates: tuple[float, ...] = (95, 97, 99, 99.5, 99.9, 99.99, 100),
    initial: float = 0.5,
    batch_size: int = 100,
) -> tuple[float, dict[float, float]]:
    """Chooses the percentile for `calibrate` by the network's outputs; no labels.

    Every other image calibrates; on the rest, the spiking network's class probabilities
    after `steps` steps should diverge least from the trained network's. Of networks
    with a single number or several outputs, the squared error should be least, over
    the variance of each output.

    Args:
      variables: the trained ones.
      inputs: calibration inputs `[N, ...]`, normalised; at least 2.
      neuron: the kind to calibrate for.
      steps: number of time steps that the network will be given. Few favour a low
        percentile, many a high one.
      candidates: the percentiles to choose from. One that leaves some threshold 0 is
        passed over.
      initial: initial potential over threshold, as for `convert`.

    Returns:
      `(percentile, {candidate: mean divergence})`; the smallest of the divergences is
      the percentile's.

    Raises:
      ValueError: for fewer than 2 images, as `calibrate`, and where every candidate
        leaves some threshold 0.

    Example:
      >>> best, errors = choose_percentile(
      ...     network, weights, np.tile(inputs, (4, 1)), jb.Burst(5), steps=8,
      ...     candidates=(50, 100))
      >>> best
      100

    References:
      The objective: Brain-Cog-Lab's search for MSAT, there by Bayesian optimisation.
    """
    if length(inputs) < 2:
        raise ValueError(
            "choose_percentile: one half of the images calibrates and one scores; "
            "pass at least 2, found 1"
        )
    seen, unseen = halves(inputs)
    expected = outputs(network, network.weights(variables), unseen, batch_size)
    model, scores = Model(network, neuron), {}
    options = compiler_options(network)
    for percentile in candidates:
        how = {"percentile": percentile, "batch_size": batch_size}
        try:
            thresholds = calibrate(network, variables, seen, neuron, **how)
        except ZeroThreshold:
            continue
        spiking = convert(network, variables, thresholds, initial=initial)
        circuit = prepared(model, spiking)
        last = _last(model, steps)
        found = gather(last, circuit, unseen, batch_size, options=options)
        scores[percentile] = float(distance(network, expected, found).mean())
    if not scores:
        raise ZeroThreshold(
            f"choose_percentile: all of {candidates} leave some threshold 0; pass "
            "higher candidates"
        )
    return min(scores, key=lambda one: scores[one]), scores


def halves(inputs):
    """Every other image, and the rest."""
    return tuple(jax.tree.map(lambda x, i=i: x[i::2], inputs) for i in (0, 1))


def outputs(network: Network, weights, inputs, batch_size: int) -> list[np.ndarray]:
    """The trained network's outputs for all images, `[N, n, C]` each."""
    return gather(_trained(network), weights, inputs, batch_size)


@lru_cache
def _trained(network: Network):
    def function(weights, batch):
        found, _ = forward(network, weights, batch)
        pairs = zip(network.graph.outputs, found, strict=True)
        return [by_channel(network, name, x) for name, x in pairs]

    return function


@lru_cache
def _last(model: Model, steps: int):
    """The spiking network's outputs, `[B, n, C]` each."""

    def function(circuit, batch):
        found = last_of(model, circuit, model.network.leaves(batch), steps)
        return outputs_by_channel(model.network, found)

    return function


@door(inputs="calibration")
def calibrate_mse(
    network: Network,
    variables,
    inputs,
    neuron: Neuron,
    *,
    per: str = "channel",
    batch_size: int = 100,
    progress: bool = False,
) -> Thresholds:
    r"""Chooses thresholds by which `γ` levels describe the activations best.

    .. math::
        \theta = \arg\min_\theta \sum_a \big(\theta\, \mathrm{clip}(\lfloor a / \theta +
        \tfrac12 \rfloor, 0, \gamma) - a\big)^2

    over the sizes `a` of all activations of all images, among 100 thresholds evenly
    spaced up to the maximum over γ. Few levels cut off the largest activations and
    resolve the rest.

    Args, returns and errors: as `calibrate`; of silent channels, which are common and
    harmless, there is no warning. `progress` shows a bar.

    Example:
      >>> {name: theta.tolist() for name, theta in
      ...     calibrate_mse(network, weights, inputs, jb.Burst(5)).items()}
      {'relu0': [0.5, 0.05000000074505806]}

    References:
      Li et al., "A Free Lunch From ANN: Towards Efficient, Accurate Spiking Neural
      Networks Calibration", ICML 2021, with burst levels in place of time steps.
    """
    weights, levels = network.weights(variables), _levels(network, neuron)
    words = ("Largest activations", "Thresholds") if progress else ("", "")
    most = {
        name: values
        for name, (values, _) in reached(
            network, weights, inputs, per, 100, batch_size, words[0]
        ).items()
    }
    tops = {name: np.where(x > 0, x, 1).astype(x.dtype) for name, x in most.items()}
    found = add_up(
        _histograms(network, per, tuple(levels.items())), (weights, tops), inputs,
        batch_size, description=words[1],
    )  # fmt: skip
    ranges = {}
    for name, count in levels.items():
        number, moment = found[name]
        ranges[name] = most[name] * _SHARES[_errors(number, moment, count).argmin(1)]
    return _thresholds(network, weights, ranges, levels, per)


_SHARES = np.linspace(0.01, 1, 100)


@lru_cache
def _histograms(network: Network, per: str, levels: tuple[tuple[str, int], ...]):
    """Of every column, how many activations there are in each of `200 γ` equal parts of
    its range, and the sum of their distances from the middle, in parts."""
    of = dict(levels)

    def function(given, batch, counts):
        weights, tops = given
        _, record = forward(network, weights, batch)
        found = {}
        for name, x in record.items():
            x = _columns(network, name, x, per)
            parts, columns = 200 * of[name], x.shape[-1]
            place = x * (parts / over(tops[name], x)).astype(x.dtype)
            index = jnp.clip(jnp.floor(place), 0, parts - 1)
            apart = place - index - 0.5
            index = index.astype(jnp.int32)
            index = index + parts * over(jnp.arange(columns, dtype=jnp.int32), x)
            once = jnp.broadcast_to(counts.reshape(-1, 1, 1), x.shape)
            nothing = jnp.zeros(columns * parts, jnp.int32)
            number = nothing.at[index].add(once.astype(jnp.int32))
            moment = nothing.astype(x.dtype).at[index].add(apart * once.astype(x.dtype))
            found[name] = number.reshape(columns, -1), moment.reshape(columns, -1)
        return found

    return function


def _errors(number: np.ndarray, moment: np.ndarray, levels: int) -> np.ndarray:
    """Squared errors `[columns, shares]` of quantising, but for what all share.

    A threshold is `2 m` parts of the range for the share `m / 100`, so that every part
    is rounded to one level `k`. Of the values `c + d` there, in parts, `c` the middle,
    `Σ (2 m k - c - d)² = Σ (2 m k - c)² - 2 (2 m k - c) Σ d + Σ d²`.
    """
    part = np.arange(number.shape[1])
    shares = np.arange(1, 101).reshape(-1, 1)
    level = np.clip((part + shares) // (2 * shares), 0, levels)
    gap = 2.0 * shares * level - (part + 0.5)
    return number @ np.square(gap).T - 2 * moment @ gap.T
