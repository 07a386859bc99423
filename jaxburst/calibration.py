"""From the activations of a trained network to the thresholds of a spiking one."""

from __future__ import annotations

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxburst.ann import apply_in_batches, check_finite
from jaxburst.conversion import Spiking, convert, forward
from jaxburst.devices import share
from jaxburst.layers import Layers, Relu, validate, walk
from jaxburst.neuron import Burst, Refining, answer, over_channels, worth
from jaxburst.simulation import Model, build, drive, infer, rest, step

Thresholds = dict[str, jax.Array]


class ZeroThreshold(ValueError):
    """The threshold of a layer would be 0: most of its activations are."""


def calibrate(
    layers: Layers,
    variables: dict,
    images: np.ndarray,
    neuron: Burst,
    *,
    percentile: float = 99.9,
    per: str = "layer",
    batch_size: int = 100,
) -> Thresholds:
    r"""Chooses the threshold of every Relu from the activations it was seen to reach.

    .. math:: \theta = P / \gamma

    where `P` is the percentile of all outputs of the Relu, zeros included. A neuron
    then covers `[0, P]` with `γ` spikes per step, and an integrate-and-fire neuron,
    `γ = 1`, has the threshold `P`. The percentile is exact and does not depend on how
    the images are cut into batches.

    Args:
      layers: the network.
      variables: its trained `{'params', 'batch_stats'}`.
      images: calibration images `[N, H, W, C]`, normalised as for training.
      neuron: the neuron to calibrate for; only `gamma` and `gammas` are read. For
        `Refining`, which has no range of its own, `Burst(levels)`: that many quanta
        then cover the range at the first step.
      percentile: between 0 and 100; 100 is the maximum.
      per: one threshold per `'layer'` or per `'channel'`.
      batch_size: number of images at a time.

    Returns:
      `{path: θ}` for every Relu; θ is a scalar, or `[C]` per channel. A channel that
      stays silent takes the largest threshold of its layer, with a warning.

    Raises:
      TypeError: for a neuron that is not a `Burst`.
      ValueError: for an unusable argument, activations that are not finite, and
        (`ZeroThreshold`) a Relu whose threshold would be 0; the message names the
        layer.

    References:
      Percentile: Rueckauer et al., 2017. Division by γ: the normalisation of Li and
      Zeng, IJCAI 2022, in activation units.
    """
    check_percentile(percentile)
    if not isinstance(neuron, Burst):
        raise TypeError(
            "calibrate: neuron must be a Burst, whose gamma divides the range; for "
            f"refining neurons pass Burst(levels); found {neuron!r}"
        )
    if per not in ("layer", "channel"):
        raise ValueError(f"calibrate: per must be 'layer' or 'channel', found {per!r}")
    if None in (neuron.gamma, *dict(neuron.gammas).values()):
        raise ValueError(
            "calibrate: a neuron without limit has no range to divide by gamma; "
            "calibrate for the gamma whose resolution it should have"
        )
    if len(images) == 0:
        raise ValueError("calibrate: the calibration set is empty; pass some images")
    validate(layers, images.shape[1:])
    check_finite(variables)
    peaks: dict[str, _Peak] = {}
    for _, record in apply_in_batches(layers, variables, images, batch_size):
        for path, activations in record.items():
            if not np.isfinite(activations).all():
                raise ValueError(
                    f"{path}: an activation is not finite; check the weights and the "
                    "normalisation of the images"
                )
            columns = activations.shape[-1] if per == "channel" else 1
            values = activations.reshape(-1, columns).T
            if path not in peaks:
                total = values.shape[1] // len(activations) * len(images)
                peaks[path] = _Peak(percentile / 100 * (total - 1), total)
            peaks[path].add(values)
    silent = {}
    thresholds = {}
    for path, peak in peaks.items():
        values = peak.value()
        if not values.any():
            raise ZeroThreshold(
                f"{path}: its threshold would be 0, since the {percentile:g}th "
                "percentile of its activations is 0; calibrate with a higher "
                "percentile or more images, or remove a Relu that never fires"
            )
        if not values.all():
            silent[path] = int((values == 0).sum())
        theta = np.where(values == 0, values.max(), values) / neuron.at(path).gamma
        theta = theta.astype(values.dtype)
        thresholds[path] = jnp.asarray(theta if per == "channel" else theta[0])
    if silent:
        warnings.warn(
            f"channels with the threshold 0, since they did not fire, take the largest "
            f"threshold of their layer: {silent}",
            stacklevel=2,
        )
    return thresholds


def choose_percentile(
    layers: Layers,
    variables: dict,
    images: np.ndarray,
    neuron: Burst,
    *,
    steps: int,
    candidates: tuple[float, ...] = (95, 97, 99, 99.5, 99.9, 99.99, 100),
    initial: float = 0.5,
    batch_size: int = 100,
) -> tuple[float, dict[float, float]]:
    """Chooses the percentile for `calibrate` by the network's outputs; no labels.

    Every other image calibrates; on the rest, the spiking network's class
    probabilities after `steps` steps should diverge least from the trained network's.

    Args:
      layers: the network.
      variables: its trained `{'params', 'batch_stats'}`.
      images: calibration images `[N, H, W, C]`, normalised; at least 2.
      neuron: the neuron to calibrate for.
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

    References:
      The objective: Brain-Cog-Lab's search for MSAT, there by Bayesian optimisation.
    """
    if len(images) < 2:
        raise ValueError(
            "choose_percentile: one half of the images calibrates and one scores; "
            f"pass at least 2, found {len(images)}"
        )
    seen, unseen = images[::2], images[1::2]
    parts = apply_in_batches(layers, variables, unseen, batch_size)
    expected = np.concatenate([logits for logits, _ in parts])
    model = Model(layers, neuron)
    scores: dict[float, float] = {}
    for percentile in candidates:
        try:
            thresholds = calibrate(
                *(layers, variables, seen, neuron),
                percentile=percentile,
                batch_size=batch_size,
            )
        except ZeroThreshold:
            continue
        spiking = convert(layers, variables, thresholds, initial=initial)
        found = _outputs(model, spiking, unseen, steps, batch_size)
        scores[percentile] = float(divergence(expected, found).mean())
    if not scores:
        raise ZeroThreshold(
            f"choose_percentile: all of {candidates} leave some threshold 0; pass "
            "higher candidates"
        )
    return min(scores, key=scores.get), scores


def _outputs(model, spiking, images, steps, batch_size) -> np.ndarray:
    """Logits of all images; one compilation serves all batches."""
    batch_size, found = min(batch_size, len(images)), []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        missing = [(0, batch_size - len(batch))] + [(0, 0)] * 3
        logits = infer(model, spiking, np.pad(batch, missing), steps)
        found.append(np.asarray(logits)[: len(batch)])
    return np.concatenate(found)


def divergence(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    r"""Kullback-Leibler divergence of class probabilities, in nats.

    .. math:: \sum_k p_k \log (p_k / q_k)

    with `p` and `q` the softmax of the logits `expected` and `found`, `[..., classes]`.
    """
    expected, found = _log_softmax(expected), _log_softmax(found)
    return (np.exp(expected) * (expected - found)).sum(-1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def calibrate_mse(
    layers: Layers,
    variables: dict,
    images: np.ndarray,
    neuron: Burst,
    *,
    per: str = "channel",
    batch_size: int = 100,
) -> Thresholds:
    r"""Chooses thresholds by which `γ` levels describe the activations best.

    .. math::
        \theta = \arg\min_\theta \sum_a \big(\theta\, \mathrm{clip}(\lfloor a / \theta +
        \tfrac12 \rfloor, 0, \gamma) - a\big)^2

    over the activations `a` of all images, among 100 thresholds evenly spaced up to the
    maximum over γ. Few levels cut off the largest activations and resolve the rest.

    Args, returns and errors: as `calibrate`.

    References:
      Li et al., "A Free Lunch From ANN: Towards Efficient, Accurate Spiking Neural
      Networks Calibration", ICML 2021, with burst levels in place of time steps.
    """
    highest = calibrate(
        layers,
        variables,
        images,
        neuron,
        percentile=100,
        per=per,
        batch_size=batch_size,
    )
    errors: dict[str, np.ndarray] = {}
    for _, record in apply_in_batches(layers, variables, images, batch_size):
        for path, activations in record.items():
            columns = activations.shape[-1] if per == "channel" else 1
            values = activations.reshape(-1, columns)
            top = highest[path].reshape(-1).astype(values.dtype)
            found = np.asarray(_errors(values, top, neuron.at(path).gamma))
            errors[path] = errors.get(path, 0) + found.astype(np.float64)
    best = {path: _SHARES[error.argmin(0)] for path, error in errors.items()}
    return {
        path: theta * best[path].reshape(theta.shape).astype(theta.dtype)
        for path, theta in highest.items()
    }


_SHARES = np.linspace(0.01, 1, 100)


@partial(jax.jit, static_argnames="gamma")
def _errors(values: jax.Array, highest: jax.Array, gamma: int) -> jax.Array:
    """Squared errors `[shares, C]` of quantising `[n, C]` values."""

    def error(share):
        theta = (highest * share).reshape(1, -1)
        levels = jnp.clip(jnp.floor(values / theta + 0.5), 0.0, float(gamma))
        return jnp.square(theta * levels - values).sum(0)

    return jax.lax.map(error, jnp.asarray(_SHARES, values.dtype))


def correct(
    model: Model,
    spiking: Spiking,
    images: jax.Array,
    steps: int,
    *,
    each_step: bool = False,
) -> Spiking:
    r"""Shifts the drive of each channel so that mean rates match mean activations.

    .. math:: b \leftarrow b + \mathrm{mean}(a) - \mathrm{mean}(\hat a)

    where `a` is the activation and :math:`\hat a` what the spikes say it is, layer by
    layer, each with the layers below already corrected. Burst neurons get one
    correction, right after `steps` steps, and a part of their current at every step.
    Refining neurons get one for each of the first `steps` steps, the last of which
    stays; and so do burst neurons with `each_step`, where the spikes of every single
    step shall match.

    Args:
      model: the network, neuron and pooling.
      spiking: its converted weights.
      images: calibration images, one batch `[B, H, W, C]`, normalised; no labels.
      steps: number of time steps to correct for.
      each_step: whether burst neurons get a correction for each step.

    Returns:
      `spiking` with a correction in every `Threshold.bias`: `[steps, C]`, or `[1, C]`
      where one serves all steps.

    References:
      Li et al., "A Free Lunch From ANN", ICML 2021 (light calibration); for each step,
      Wu et al., "FTBC: Forward Temporal Bias Correction", ECCV 2024.
    """
    cut, copy = share(len(images))
    shared = copy(spiking), cut(images)
    each_step = each_step or isinstance(model.neuron, Refining)
    find = _correct_each_step if each_step else _correct_once
    biases = find(model, *shared, steps)
    # Where the rest is, not on every device that shared the images.
    return _with_biases(spiking, jax.tree.map(jnp.asarray, jax.device_get(biases)))


def _with_biases(spiking: Spiking, biases: dict[str, jax.Array]) -> Spiking:
    changed = {path: spiking[path]._replace(bias=bias) for path, bias in biases.items()}
    return spiking | changed


def _targets(model, spiking, images):
    """Mean activation of each channel, `{path: [C]}`."""
    _, record = jax.jit(forward, static_argnums=0)(model.layers, spiking, images)
    return {path: _channel_mean(a) for path, a in record.items()}


def _correct_once(model, spiking, images, steps):
    """One correction for all steps, layer by layer."""
    targets = _targets(model, spiking, images)
    # Of one shape from the beginning, so that one compilation serves all layers.
    biases = {path: jnp.zeros_like(target)[None] for path, target in targets.items()}
    for path, layer in walk(model.layers):
        if isinstance(layer, Relu):
            corrected = _with_biases(spiking, biases)
            rate = _mean_rates(model, corrected, images, steps)[path]
            biases[path] = biases[path] + (targets[path] - rate)[None]
    return biases


@partial(jax.jit, static_argnames=("model", "steps"))
def _mean_rates(model, spiking, images, steps):
    """Mean of `θ N / T` of each channel, `{path: [C]}`."""
    circuit = build(model, spiking, images.shape[1:])
    current = drive(model, circuit, images)

    def advance(state, _):
        state, info = step(model, circuit, current, state)
        return state, {path: _channel_mean(n) for path, n in info.spikes.items()}

    _, means = jax.lax.scan(advance, rest(model, spiking, images.shape), length=steps)
    return {path: spiking[path].theta * mean.mean(0) for path, mean in means.items()}


def _correct_each_step(model, spiking, images, steps):
    """All corrections in one simulation: layers and steps come in the right order."""
    targets = _targets(model, spiking, images)
    circuit = build(model, spiking, images.shape[1:])
    current = drive(model, circuit, images)
    state = rest(model, spiking, images.shape)
    rows = []
    for _ in range(steps):
        state, row = _corrected_step(model, circuit, current, state, targets)
        rows.append(row)
    return {path: jnp.stack([row[path] for row in rows]) for path in targets}


@partial(jax.jit, static_argnames="model")
def _corrected_step(model, circuit, current, state, targets):
    neuron, found = model.neuron, {}

    def respond(path, threshold, membrane, current, t):
        theta = over_channels(threshold.theta, current)
        bias = jnp.zeros_like(targets[path])
        for _ in range(3):  # a shift moves the active neurons only: repeat
            trial = threshold._replace(bias=bias)
            after, spikes = answer(neuron, path, trial, membrane, current, t)
            heard = theta * spikes
            if isinstance(neuron, Refining):
                quantum = theta * worth(neuron, t).astype(current.dtype)
                heard = quantum * after.sent.astype(current.dtype)
            bias = bias + targets[path] - _channel_mean(heard)
        found[path] = bias
        threshold = threshold._replace(bias=bias)
        return answer(neuron, path, threshold, membrane, current, t)

    state, _ = step(model, circuit, current, state, respond)
    return state, found


def _channel_mean(x: jax.Array) -> jax.Array:
    return x.mean(tuple(range(x.ndim - 1)))


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


class _Peak:
    """The exact percentile of a stream: keeps no more than the values above it."""

    def __init__(self, position: float, total: int):
        """`position` counts, from 0, among the `total` values in rising order."""
        self.share = position % 1
        self.count = total - int(position)
        self.largest: np.ndarray | None = None

    def add(self, values: np.ndarray) -> None:
        """Takes in `[columns, n]` more values."""
        if self.largest is not None:
            values = np.concatenate([self.largest, values], axis=1)
        surplus = values.shape[1] - self.count
        if surplus > 0:
            values = np.partition(values, surplus, axis=1)[:, surplus:]
        self.largest = values

    def value(self) -> np.ndarray:
        """The percentile of each column, interpolated linearly, `[columns]`."""
        least = np.sort(self.largest, axis=1)[:, :2]
        return least[:, 0] + self.share * (least[:, -1] - least[:, 0])
