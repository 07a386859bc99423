"""From the activations of a trained network to the thresholds of a spiking one."""

from __future__ import annotations

import warnings
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from jaxburst.batching import add_up, each, first, in_order, length, sweep, together
from jaxburst.checks import door
from jaxburst.convert import Spiking, Thresholds, check_finite, convert
from jaxburst.graph import at_batch
from jaxburst.methods.channels import (
    by_channel,
    channels,
    distance,
    outputs_by_channel,
    shape_of,
)
from jaxburst.network import Network, forward
from jaxburst.neurons import Neuron
from jaxburst.run import Model, compiler_options, last_of, prepared

__all__ = [
    "calibrate",
    "calibrate_mse",
    "choose_percentile",
]


class ZeroThreshold(ValueError):
    """The threshold of a population would be 0: most of its activations are."""


@door
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
      network: the network.
      variables: its trained variables.
      inputs: calibration inputs `[N, ...]`, normalised as for training; no labels.
      neuron: the kind to calibrate for; only its `levels` are read, the `gamma` of
        `Burst`. For `Refining`, which has no range of its own, pass `Burst(levels)`:
        that many quanta then cover the range at the first step.
      percentile: between 0 and 100; 100 is the maximum.
      per: one threshold per `'layer'` or per `'channel'`.
      batch_size: number of images at a time.

    Returns:
      `{name: θ}` for every population; θ is a scalar, or one per channel, `[C]`, or
      `[C, 1, 1]` where channels come first. A channel that stays silent takes the
      largest threshold of its population, and a population that stays silent the
      largest of all, with a warning.

    Raises:
      ValueError: for an unusable argument, activations that are not finite, and
        (`ZeroThreshold`) a population that fires but whose threshold would be 0; the
        message names it.

    Example:
      >>> calibrate(network, weights, inputs, jb.Burst(5), percentile=100)  # 2.5 / 5
      {'relu0': Array(0.5, dtype=float32)}

    References:
      Percentile: Rueckauer et al., 2017. Division by γ: the normalisation of Li and
      Zeng, IJCAI 2022, in activation units.
    """
    check_percentile(percentile)
    count = _check("calibrate", network, variables, inputs, neuron, per)
    weights = network.weights(variables)
    peaks = {
        name: _Peak(percentile, count, *shape)
        for name, shape in _sizes(network, per).items()
    }
    broken = dict.fromkeys(peaks, 0)
    function = _values(network, per, percentile == 100)
    for rows, (found, finite) in sweep(function, weights, inputs, batch_size):
        for name, peak in peaks.items():
            broken[name] += int((~finite[name][:rows]).sum())
            peak.add(found[name][:rows])
    _refuse_broken(together({name: np.int64(n) for name, n in broken.items()}))
    ranges = {name: peak.value() for name, peak in peaks.items()}
    for name, (values, most) in ranges.items():
        if not values.any() and most > 0:
            raise ZeroThreshold(
                f"{name}: its threshold would be 0, since the {percentile:g}th "
                "percentile of its activations is 0; calibrate with a higher "
                "percentile or more images"
            )
    return _thresholds(
        network, variables, {name: values for name, (values, _) in ranges.items()},
        neuron, per,
    )  # fmt: skip


def _check(what: str, network, variables, inputs, neuron, per: str) -> int:
    """Refuses unusable arguments; the number of images."""
    if not isinstance(network, Network):
        raise TypeError(
            f"{what}: network must be what trace returns, found "
            f"{type(network).__name__}"
        )
    if per not in ("layer", "channel"):
        raise ValueError(f"{what}: per must be 'layer' or 'channel', found {per!r}")
    for name in network.neurons:
        if neuron.at(name).levels is None:
            raise ValueError(
                f"{what}: {neuron!r} has no range of its own that thresholds could "
                "divide; pass Burst(levels) with the number of levels that the range "
                "should have"
            )
    count = length(inputs)
    network.leaves(first(inputs))
    check_finite(variables)
    return count


def _sizes(network: Network, per: str) -> dict[str, tuple[int, int]]:
    """`{name: (columns, values of an image in each)}`."""
    found = {}
    for name in network.neurons:
        size = int(np.prod(at_batch(network.graph[name].shape, 1)))
        columns = channels(network, name) if per == "channel" else 1
        found[name] = columns, size // columns
    return found


@lru_cache
def _values(network: Network, per: str, largest: bool):
    """Activations `{name: [B, n, columns]}` of a batch, and whether they are finite."""

    def function(weights, batch):
        finite = {}

        def activate(node, x, f):
            y = f(x)
            # Before a ReLU, which XLA may let turn NaN into 0; drives may be masked.
            checked = x if f.other is None else y
            known = jnp.isfinite(by_channel(network, node.name, checked))
            finite[node.name] = known.all((1, 2))
            return y

        _, record = forward(network, weights, batch, activate)
        found = {name: abs(by_channel(network, name, x)) for name, x in record.items()}
        if per == "layer":
            found = {name: x.reshape(len(x), -1, 1) for name, x in found.items()}
        if largest:  # all that the maximum needs
            found = {name: x.max(1, keepdims=True) for name, x in found.items()}
        return found, finite

    return function


def _refuse_broken(broken: dict[str, int]) -> None:
    for name, images in broken.items():  # in the network's order
        if images:
            raise ValueError(
                f"{name}: an activation is not finite; check the weights and the "
                "normalisation of the inputs"
            )


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
        if not self.largest.size:
            self.largest = self.largest.astype(rows.dtype)
        self._keep(np.concatenate([self.largest, rows], axis=1))

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
            rows = np.concatenate(each(padded), axis=1)
            self._keep(rows)
        least = np.sort(self.largest, axis=1)
        most, least = float(least[:, -1].max()), least[:, :2]
        return least[:, 0] + self.share * (least[:, -1] - least[:, 0]), most


def _thresholds(network, variables, ranges, neuron, per: str) -> Thresholds:
    """Ranges over levels, in the type of the weights; what is silent gets a range."""
    kind = _kind(network, variables)
    silent = {name: int((x == 0).sum()) for name, x in ranges.items() if not x.all()}
    dead = [name for name in silent if not ranges[name].any()]
    found: dict[str, np.ndarray] = {}
    for name, values in ranges.items():
        if name not in dead:
            levels = neuron.at(name).levels
            found[name] = np.where(values == 0, values.max(), values) / levels
    highest = max((float(theta.max()) for theta in found.values()), default=1.0)
    for name in dead:
        found[name] = np.full(len(ranges[name]), highest)
    partly = {name: n for name, n in silent.items() if name not in dead}
    if partly:
        warnings.warn(
            f"channels with the threshold 0, since they did not fire, take the largest "
            f"threshold of their population: {partly}",
            stacklevel=3,
        )
    if dead:
        warnings.warn(
            f"populations that did not fire take the largest threshold of all, "
            f"{highest:g}, and so stay silent: {dead}",
            stacklevel=3,
        )
    return {
        name: jnp.asarray(
            found[name].reshape(shape_of(network, name) if per == "channel" else ()),
            kind,
        )
        for name in ranges
    }


def _kind(network: Network, variables):
    """The type of the network's activations, where it has weights."""
    made = jax.eval_shape(network.weights, variables)
    kinds = {x.dtype for x in jax.tree.leaves(made)}
    floats = [kind for kind in kinds if jnp.issubdtype(kind, jnp.floating)]
    return jnp.result_type(*floats) if floats else jnp.result_type(float)


@door
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
      network: the network.
      variables: its trained variables.
      inputs: calibration inputs `[N, ...]`, normalised; at least 2.
      neuron: the kind to calibrate for.
      steps: number of time steps that the network will be given. Few favour a low
        percentile, many a high one.
      candidates: the percentiles to choose from. One that leaves some threshold 0 is
        passed over.
      initial: initial potential over threshold, as for `convert`.
      batch_size: number of images at a time.

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
    count = length(inputs)
    if count < 2:
        raise ValueError(
            "choose_percentile: one half of the images calibrates and one scores; "
            f"pass at least 2, found {count}"
        )
    seen, unseen = halves(inputs)
    expected = outputs(network, network.weights(variables), unseen, batch_size)
    model = Model(network, neuron)
    scores: dict[float, float] = {}
    for percentile in candidates:
        try:
            thresholds = calibrate(
                *(network, variables, seen, neuron),
                percentile=percentile,
                batch_size=batch_size,
            )
        except ZeroThreshold:
            continue
        spiking = convert(network, variables, thresholds, initial=initial)
        found = _after(model, spiking, unseen, steps, batch_size)
        scores[percentile] = float(distance(network, expected, found).mean())
    if not scores:
        raise ZeroThreshold(
            f"choose_percentile: all of {candidates} leave some threshold 0; pass "
            "higher candidates"
        )
    return min(scores, key=scores.get), scores


def halves(inputs):
    """Every other image, and the rest."""
    return tuple(jax.tree.map(lambda x, i=i: x[i::2], inputs) for i in (0, 1))


def outputs(network: Network, weights, inputs, batch_size: int) -> list[np.ndarray]:
    """The trained network's outputs for all images, `[N, n, C]` each."""
    return _whole(_trained(network), weights, inputs, batch_size)


@lru_cache
def _trained(network: Network):
    def function(weights, batch):
        found, _ = forward(network, weights, batch)
        names = network.graph.outputs
        pairs = zip(names, found, strict=True)
        return [by_channel(network, name, x) for name, x in pairs]

    return function


def _after(model, spiking: Spiking, inputs, steps: int, batch_size: int):
    """The spiking network's outputs for all images, `[N, n, C]` each."""
    circuit = prepared(model, spiking)
    options = compiler_options(model.network)
    return _whole(_spiking(model, steps), circuit, inputs, batch_size, options)


@lru_cache
def _spiking(model: Model, steps: int):
    def function(circuit, batch):
        found = last_of(model, circuit, model.network.leaves(batch), steps)
        return outputs_by_channel(model.network, found)

    return function


def _whole(function, weights, inputs, batch_size: int, options=None) -> list:
    """What a sweep gives for all images of all processes."""
    count = length(inputs)
    parts = [
        [x[:rows] for x in found]
        for rows, found in sweep(function, weights, inputs, batch_size, options=options)
    ]
    if not parts:  # a process without images of its own
        shapes = jax.eval_shape(function, weights, first(inputs))
        parts = [[np.zeros((0, *x.shape[1:]), x.dtype) for x in shapes]]
    return [in_order(np.concatenate(x), count) for x in zip(*parts, strict=True)]


@door
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

    Args, returns and errors: as `calibrate`. `progress` shows a bar.

    Example:
      >>> {name: theta.tolist() for name, theta in
      ...     calibrate_mse(network, weights, inputs, jb.Burst(5)).items()}
      {'relu0': [0.5, 0.05000000074505806]}

    References:
      Li et al., "A Free Lunch From ANN: Towards Efficient, Accurate Spiking Neural
      Networks Calibration", ICML 2021, with burst levels in place of time steps.
    """
    _check("calibrate_mse", network, variables, inputs, neuron, per)
    weights = network.weights(variables)
    most = {name: 0.0 for name in network.neurons}
    broken = dict.fromkeys(most, 0)
    words = ("Largest activations", "Thresholds") if progress else ("", "")
    parts = sweep(
        _values(network, per, True), weights, inputs, batch_size, description=words[0]
    )
    for rows, (found, finite) in parts:
        for name, values in found.items():
            broken[name] += int((~finite[name][:rows]).sum())
            most[name] = np.maximum(most[name], values[:rows].max((0, 1)))
    sizes = _sizes(network, per)
    most = {
        name: np.broadcast_to(np.asarray(x, np.float64), sizes[name][:1])
        for name, x in most.items()
    }
    _refuse_broken(together({name: np.int64(n) for name, n in broken.items()}))
    most = jax.tree.map(lambda x: x.max(0), each(most))
    levels = tuple((name, neuron.at(name).levels) for name in network.neurons)
    kind = _kind(network, variables)
    tops = {name: np.where(x > 0, x, 1).astype(kind) for name, x in most.items()}
    found = add_up(
        _histograms(network, per, levels), (weights, tops), inputs, batch_size,
        description=words[1],
    )  # fmt: skip
    ranges = {}
    for name, count in levels:
        share = _SHARES[_errors(*found[name], count).argmin(1)]
        ranges[name] = most[name] * share
    return _thresholds(network, variables, ranges, neuron, per)


_SHARES = np.linspace(0.01, 1, 100)


@lru_cache
def _histograms(network: Network, per: str, levels: tuple[tuple[str, int], ...]):
    """Of every column, how many activations there are in each of `200 γ` equal parts of
    its range, and the sum of their distances from the middle, in parts."""
    levels = dict(levels)

    def function(given, batch, counts):
        weights, tops = given
        _, record = forward(network, weights, batch)
        found = {}
        for name, x in record.items():
            x = abs(by_channel(network, name, x))
            x = x if per == "channel" else x.reshape(len(x), -1, 1)
            parts, columns = 200 * levels[name], x.shape[-1]
            place = x * (parts / over_last(tops[name], x)).astype(x.dtype)
            index = jnp.clip(jnp.floor(place), 0, parts - 1)
            apart = place - index - 0.5
            index = index.astype(jnp.int32)
            index = index + parts * over_last(jnp.arange(columns, dtype=jnp.int32), x)
            once = jnp.broadcast_to(counts.reshape(-1, 1, 1), x.shape)
            nothing = jnp.zeros(columns * parts, jnp.int32)
            number = nothing.at[index].add(once.astype(jnp.int32))
            moment = nothing.astype(x.dtype).at[index].add(apart * once.astype(x.dtype))
            found[name] = number.reshape(columns, -1), moment.reshape(columns, -1)
        return found

    return function


def over_last(value, x: jax.Array) -> jax.Array:
    """One value per column, `[C]`, for `[B, n, C]`."""
    return jnp.reshape(value, (1, 1, x.shape[-1]))


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


def check_percentile(percentile: float) -> None:
    """Refuses what is not between 0 and 100.

    Raises:
      ValueError: saying what was found.
    """
    if not 0 <= percentile <= 100:
        raise ValueError(
            f"percentile must lie between 0 and 100, found {percentile}; "
            "99.9 leaves out the largest thousandth of the activations"
        )
