"""Synaptic operations and joules, spiking and conventional.

A synaptic operation is one event reaching one synapse of a Conv or Dense. Events are
counted where they enter it: after max pooling, and before average pooling, which merges
into the layer it feeds. A burst of `k` spikes is `k` events, a negative spike is an
event. Taps on zero padding count for the spiking network as they do for the
conventional one, so that operations = mean events per input x multiply-accumulates.
Identity shortcuts and biases count nothing.
"""

from __future__ import annotations

import numpy as np

from jaxburst.layers import (
    Conv,
    Dense,
    Layers,
    Relu,
    Residual,
    Subsample,
    named,
    trace_shapes,
    walk,
)

PICOJOULES_PER_AC = 0.9
"""One accumulate, 32-bit floating point, 45 nm (Horowitz, ISSCC 2014)."""

PICOJOULES_PER_MAC = 4.6
"""One multiply-accumulate, 32-bit floating point, 45 nm (Horowitz, ISSCC 2014)."""

PICOJOULES_PER_INT8_MAC = 0.3
"""One 8-bit multiply (0.2) and 32-bit integer add (0.1), 45 nm (Horowitz, 2014)."""

PICOJOULES_PER_INT_AC = 0.1
"""One 32-bit integer add, 45 nm (Horowitz, 2014): a spike at an 8-bit weight."""


def macs(layers: Layers, image_shape: tuple[int, ...]) -> dict[str, int]:
    """Multiply-accumulates of the conventional network, `{path: per image}`."""
    rows = trace_shapes(layers, image_shape)
    return {row.path: row.macs for row in rows if isinstance(row.layer, Conv | Dense)}


def fan_out(layers: Layers, image_shape: tuple[int, ...]) -> dict[str, float]:
    """Synapses that one event entering a layer reaches there, on average.

    Args:
      layers: the network.
      image_shape: `(H, W, C)`.

    Returns:
      `{path: fan-out}` of every Conv and Dense that receives spikes.
    """
    return {row.path: row.fan_out for row in _spiking_rows(layers, image_shape)}


def senders(layers: Layers) -> dict[str, str]:
    """Whose spikes enter each Conv and Dense: `{its path: path of the Relu}`."""
    found: dict[str, str] = {}

    def follow(layers: Layers, sender: str | None, scope: str) -> None:
        for name, layer in named(layers):
            path = f"{scope}{name}"
            match layer:
                case Relu():
                    sender = path
                case Residual(body, shortcut):
                    follow(body, sender, f"{path}/body/")
                    follow(shortcut, sender, f"{path}/shortcut/")
                    sender = None
                case Conv() | Dense() | Subsample():
                    if sender is not None and not isinstance(layer, Subsample):
                        found[path] = sender
                    sender = None

    follow(layers, None, "")
    return found


def operations(
    layers: Layers, image_shape: tuple[int, ...], events: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Synaptic operations of every layer: events that enter it times its fan-out.

    Args:
      layers: the network.
      image_shape: `(H, W, C)`.
      events: from `Curves` or `Trace`, `{path: [T, ...]}`.

    Returns:
      `{path: [T, ...]}`, operations of each step by itself, for every Conv and Dense
      that receives spikes.

    Raises:
      ValueError: if events of a layer are missing.
    """
    counted = {}
    for path, fan in fan_out(layers, image_shape).items():
        if path not in events:
            raise ValueError(
                f"{path}: its events are missing; pass the events of a simulation of "
                "these very layers"
            )
        counted[path] = np.asarray(events[path], np.float64) * fan
    return counted


def joules(
    layers: Layers,
    image_shape: tuple[int, ...],
    events: dict[str, np.ndarray],
    *,
    first_layer: str = "once",
) -> np.ndarray:
    """Energy of the spiking network up to each time step, in joules per image.

    Args:
      layers: the network.
      image_shape: `(H, W, C)`.
      events: from `Curves` or `Trace`, `{path: [T, ...]}`.
      first_layer: whether the multiply-accumulates of the analog first layer count
        `'once'`, since its input is constant, or at `'every step'`, as some papers
        count.

    Returns:
      `[T, ...]`, energy spent up to and including step `t`.
    """
    if first_layer not in ("once", "every step"):
        raise ValueError(
            f"first_layer must be 'once' or 'every step', found {first_layer!r}"
        )
    total = sum(operations(layers, image_shape, events).values())
    spiking = np.cumsum(total, axis=0) * PICOJOULES_PER_AC
    steps = np.arange(1, len(spiking) + 1).reshape(-1, *[1] * (spiking.ndim - 1))
    times = steps if first_layer == "every step" else np.ones_like(steps)
    rows = trace_shapes(layers, image_shape)
    analog = sum(row.macs for row in rows if row.signal == "image")
    return (spiking + times * analog * PICOJOULES_PER_MAC) * 1e-12


def ann_joules(layers: Layers, image_shape: tuple[int, ...]) -> float:
    """Energy of one image through the conventional network, in joules."""
    return sum(macs(layers, image_shape).values()) * PICOJOULES_PER_MAC * 1e-12


def relative(
    layers: Layers,
    image_shape: tuple[int, ...],
    events: dict[str, np.ndarray],
    *,
    first_layer: str = "once",
) -> np.ndarray:
    """Energy up to each step over the conventional network's; arguments as `joules`."""
    spent = joules(layers, image_shape, events, first_layer=first_layer)
    return spent / ann_joules(layers, image_shape)


def _spiking_rows(layers, image_shape):
    rows = {row.path: row for row in trace_shapes(layers, image_shape)}
    ordered = [rows[path] for path, _ in walk(layers)]
    return [row for row in ordered if row.macs and row.signal == "spikes"]
