"""From trained variables to the weights of a spiking network, as a pure function.

A converted network is a plain dictionary `{path: Affine | Threshold | Shortcut}`, in
the unit of the trained network's activations: kernels stay as they are, and residual
sums need no rule of their own. `normalise` writes the same network in the unit of the
paper, where every threshold is 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxburst.ann import EPSILON, apply_in_batches, check_finite
from jaxburst.convolution import convolve_once
from jaxburst.layers import (
    AvgPool,
    Conv,
    Dense,
    Flatten,
    Layers,
    MaxPool,
    Relu,
    Residual,
    Subsample,
    named,
    trace_shapes,
    validate,
    walk,
)
from jaxburst.neuron import Threshold, over_channels, over_rows
from jaxburst.pooling import area, max_pool, subsample, sum_pool


class Affine(NamedTuple):
    """A Conv or Dense with its batch normalisation folded in.

    Attributes:
      kernel: `[kernel, kernel, C_in, C_out]`, or `[C_in, C_out]` of a Dense.
      bias: `[C_out]`, added at every time step; by refining neurons at the first.
    """

    kernel: jax.Array
    bias: jax.Array


class Shortcut(NamedTuple):
    """What a Residual multiplies its shortcut with before the sum.

    Attributes:
      scale: 1 in activation units; the ratio of two thresholds after `normalise`.
        A scalar, or `[C]`.
    """

    scale: jax.Array


Spiking = dict[str, Affine | Threshold | Shortcut]


def convert(
    layers: Layers,
    variables: dict,
    thresholds: dict[str, jax.Array],
    *,
    initial: float = 0.5,
) -> Spiking:
    """Converts a trained network: folds each normalisation, attaches the thresholds.

    Args:
      layers: the network.
      variables: its trained `{'params', 'batch_stats'}`.
      thresholds: `{path: θ}` for every Relu, from `calibrate`.
      initial: initial potential over threshold, `v_0 / θ`. The paper starts at 0; at ½
        the rate is right on average instead of from below, from the first step on.
        Refining neurons start at 0 and round by it at their first step.

    Returns:
      The converted network, a pytree of arrays.

    Raises:
      ValueError: if variables or thresholds do not belong to `layers`, or hold
        something that is not finite or not positive; the message names the layer.
    """
    validate(layers)
    check_finite(variables)
    if not isinstance(initial, jax.core.Tracer) and not 0 <= initial <= 1:
        raise ValueError(
            "convert: initial, the initial potential over the threshold, must lie "
            f"between 0 and 1, found {initial}"
        )
    _check_thresholds(layers, thresholds)
    weights = {
        "/".join(path): value
        for collection in ("params", "batch_stats")
        for path, value in flatten_dict(variables.get(collection, {})).items()
    }
    thresholds = {path: _floating(theta) for path, theta in thresholds.items()}
    spiking: Spiking = {}
    for path, layer in walk(layers):
        match layer:
            case Conv() | Dense():
                spiking[path] = _fold(path, layer, weights)
            case Relu():
                theta = thresholds[path]
                start = jnp.asarray(initial, theta.dtype)
                spiking[path] = Threshold(theta, start, jnp.zeros_like(start))
            case Residual():
                dtype = jnp.result_type(*thresholds.values())
                spiking[path] = Shortcut(jnp.ones((), dtype))
    if weights:
        raise ValueError(
            f"the variables hold weights without a layer: {sorted(weights)}; pass the "
            "layers that were trained"
        )
    return spiking


def _check_thresholds(layers: Layers, thresholds: dict[str, jax.Array]) -> None:
    expected = {path for path, layer in walk(layers) if isinstance(layer, Relu)}
    if expected != set(thresholds):
        raise ValueError(
            "convert: thresholds must name every Relu of the network; missing: "
            f"{sorted(expected - set(thresholds)) or 'none'}, unknown: "
            f"{sorted(set(thresholds) - expected) or 'none'}"
        )
    for path, theta in thresholds.items():
        if isinstance(theta, jax.core.Tracer):
            continue
        if not (np.isfinite(theta).all() and (np.asarray(theta) > 0).all()):
            raise ValueError(
                f"{path}: a threshold must be finite and greater than 0, found a least "
                f"value of {np.min(theta)}; calibrate on images that make it fire"
            )


def _floating(theta: jax.Array) -> jax.Array:
    theta = jnp.asarray(theta)
    return theta if jnp.issubdtype(theta.dtype, jnp.floating) else theta.astype(float)


def _fold(path: str, layer: Conv | Dense, weights: dict[str, jax.Array]) -> Affine:
    r"""Convolution and normalisation at inference, as one affine map.

    .. math::
        s = \mathrm{scale} / \sqrt{\mathrm{var} + \epsilon}, \qquad
        W' = s W, \qquad b' = s (b - \mathrm{mean}) + \mathrm{bias}
    """

    def take(name: str, rank: int = 1) -> jax.Array:
        where = f"{path}/{name}"
        if where not in weights:
            raise ValueError(
                f"{where}: not among the variables; pass the variables of these layers"
            )
        value = weights.pop(where)
        if value.ndim != rank or value.shape[-1] != layer.features:
            raise ValueError(
                f"{where}: found the shape {value.shape}, which does not fit {layer}"
            )
        return jnp.asarray(value)

    kernel = take("kernel", 4 if isinstance(layer, Conv) else 2)
    bias = take("bias") if layer.bias else jnp.zeros(layer.features, kernel.dtype)
    if layer.norm:
        variance = take("norm/var")
        if not isinstance(variance, jax.core.Tracer) and (variance < 0).any():
            raise ValueError(
                f"{path}/norm/var: a variance is negative; load another checkpoint"
            )
        scale = take("norm/scale") / jnp.sqrt(variance + EPSILON)
        kernel = kernel * scale.reshape((1,) * (kernel.ndim - 1) + (-1,))
        bias = (bias - take("norm/mean")) * scale + take("norm/bias")
    return Affine(kernel, bias)


def forward(
    layers: Layers,
    spiking: Spiking,
    images: jax.Array,
    relu: Callable[[str, jax.Array], jax.Array] = lambda path, x: jax.nn.relu(x),
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The conventional reading of a converted network: what its spikes approach.

    Args:
      layers: the network.
      spiking: converted weights, in activation units or normalised.
      images: `[B, H, W, C]`, normalised.
      relu: what the Relu at a path makes of its drive, if not the ReLU.

    Returns:
      `(logits, record)`: logits `[B, classes]`, and the ReLU of every neuron's drive
      under its path.
    """
    record: dict[str, jax.Array] = {}
    return _forward(layers, spiking, images, "", record, relu), record


def _forward(layers, spiking, x, scope, record, relu):
    for name, layer in named(layers):
        path = f"{scope}{name}"
        match layer:
            case Conv():
                kernel, bias = spiking[path]
                x = convolve_once(x, kernel, layer)
                x = x + bias.reshape(1, 1, 1, -1)
            case Dense():
                kernel, bias = spiking[path]
                x = x @ kernel + bias.reshape(1, -1)
            case Relu():
                x = record[path] = relu(path, x)
            case MaxPool():
                x = max_pool(x, layer)
            case AvgPool():
                x = sum_pool(x, layer) / area(layer, x.shape)
            case Flatten():
                x = x.reshape(x.shape[0], -1)
            case Subsample():
                x = subsample(x, layer)
            case Residual(body, shortcut):
                around, inside = (
                    _forward(part, spiking, x, within, record, relu)
                    for part, within in (
                        (shortcut, f"{path}/shortcut/"),
                        (body, f"{path}/body/"),
                    )
                )
                x = inside + over_channels(spiking[path].scale, around) * around
    return x


def verify(
    layers: Layers,
    variables: dict,
    spiking: Spiking,
    images: np.ndarray,
    *,
    batch_size: int = 100,
) -> dict[str, float]:
    """Compares the folded network with the trained one, layer by layer.

    Args:
      layers: the network.
      variables: the trained variables.
      spiking: what `convert` made of them.
      images: `[N, H, W, C]`, normalised.
      batch_size: number of images at a time.

    Returns:
      `{path: largest absolute difference}` for every Relu and for `'logits'`, in
      activation units, in network order. Rounding alone gives about 1e-6 of the
      largest activation.
    """
    folded = jax.jit(forward, static_argnums=0)
    worst: dict[str, float] = {}
    start = 0
    for logits, record in apply_in_batches(layers, variables, images, batch_size):
        batch = images[start : start + len(logits)]
        start += len(logits)
        found, found_record = folded(layers, spiking, batch)
        pairs = {path: (record[path], found_record[path]) for path in record}
        for path, (expected, value) in (pairs | {"logits": (logits, found)}).items():
            difference = float(np.abs(expected - np.asarray(value)).max())
            worst[path] = max(worst.get(path, 0.0), difference)
    order = [path for path, layer in walk(layers) if isinstance(layer, Relu)]
    return {path: worst[path] for path in [*order, "logits"]}


def normalise(
    layers: Layers,
    spiking: Spiking,
    image_shape: tuple[int, ...],
    *,
    logits: float = 1.0,
) -> Spiking:
    r"""Writes a converted network in the paper's unit: every threshold is 1.

    .. math::
        W' = W\, \theta_\mathrm{in} / \theta_\mathrm{out}, \qquad
        b' = b / \theta_\mathrm{out}

    where :math:`\theta_\mathrm{in}` is the threshold of the neurons whose spikes a
    layer receives and :math:`\theta_\mathrm{out}` that of the neurons it drives. What
    a shortcut carries past a residual body is multiplied by the same ratio. Both forms
    spike alike; in this one a membrane is counted in thresholds.

    Args:
      layers: the network.
      spiking: converted weights, in any unit.
      image_shape: `(H, W, C)`.
      logits: the unit of the logits: they come out divided by it.

    Returns:
      The converted network with `θ = 1` everywhere. (A Relu that reads the image,
      spikes of other Relus, or a current that also goes elsewhere cannot choose their
      unit, and keeps a threshold in it.)

    References:
      Li and Zeng, IJCAI 2022; weight normalisation of Diehl et al., IJCNN 2015.
    """
    validate(layers, image_shape)
    shapes = {row.path: row.input for row in trace_shapes(layers, image_shape)}
    one = jnp.ones((), spiking[named(layers)[-1][0]].kernel.dtype)
    scaled: Spiking = {}
    _normalise(layers, spiking, one, one * logits, "", shapes, scaled)
    return {path: scaled[path] for path in spiking}


def _normalise(layers, spiking, unit, wanted, scope, shapes, scaled):
    """Rewrites one scope that receives values in `unit` and should end in `wanted`.

    Returns the unit in which its output comes.
    """
    pairs = named(layers)
    for position, (name, layer) in enumerate(pairs):
        path = f"{scope}{name}"
        target = _next_unit(pairs[position + 1 :], spiking, scope, wanted)
        match layer:
            case Conv() | Dense():
                kernel, bias = spiking[path]
                ratio = over_rows(unit, kernel) / over_channels(target, kernel)
                scaled[path] = Affine(kernel * ratio, bias / target)
                unit = target
            case Relu():
                theta, initial, bias = spiking[path]
                bias = bias / over_channels(unit, bias)
                scaled[path] = Threshold(theta / unit, initial, bias)
            case Flatten() if unit.ndim:
                unit = jnp.tile(unit, math.prod(shapes[path]) // unit.size)
            case Subsample(features) if unit.ndim:
                before = (features - unit.size) // 2
                after = features - unit.size - before
                unit = jnp.pad(unit, (before, after), constant_values=1)
            case Residual(body, shortcut):
                around, inside = (
                    _normalise(part, spiking, unit, target, within, shapes, scaled)
                    for part, within in (
                        (shortcut, f"{path}/shortcut/"),
                        (body, f"{path}/body/"),
                    )
                )
                scaled[path] = Shortcut(spiking[path].scale * around / inside)
                unit = inside
    return unit


def _next_unit(following, spiking, scope, wanted):
    """The unit in which the next layers want a current: that of the Relu it drives."""
    for name, layer in following:
        match layer:
            case Relu():
                return spiking[f"{scope}{name}"].theta
            case AvgPool():
                continue
            case _:
                return jnp.ones((), wanted.dtype)
    return wanted
