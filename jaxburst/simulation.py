"""The spiking reading of a network: burst neurons unrolled over time.

    state = rest(model, spiking, images.shape)
    state, info = step(model, circuit, drive, state)        # one time step, all layers

Spikes cross all layers within one step, and what is affine in the image up to the first
Relu is computed once, outside the loop. The last Dense integrates and does not spike;
logits are in the trained network's unit.

The kind of neuron is the coding. `Burst` repeats: image and biases are presented at
every step, and the logits at step `t` are the mean of the currents up to `t`.
`Refining` refines: they are presented once, a spike is a change, and the logits are the
sum of the currents.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxburst.conversion import Affine, Spiking
from jaxburst.convolution import convolve, prepare
from jaxburst.data import Split, batches, check_normalised
from jaxburst.devices import evenly, share
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
from jaxburst.neuron import (
    Burst,
    History,
    Membrane,
    Pool,
    Refining,
    answer,
    gated_pool,
    lateral_pool,
    over_channels,
    over_rows,
    worth,
)
from jaxburst.pooling import area, subsample, sum_pool
from jaxburst.progress import track

_POOLS = {"lateral": lateral_pool, "gated": gated_pool}


@dataclasses.dataclass(frozen=True)
class Model:
    """Everything about a simulation that is not an array: hashable, static under jit.

    Attributes:
      layers: the network.
      neuron: the kind of neuron that stands for every Relu.
      pool: max pooling by `'lateral'` inhibition, or `'gated'`, the baseline.
      exact: convolve by definition only. Otherwise some layers use a faster algorithm
        where there is one (Winograd's, on CPU, in single precision), which rounds
        differently: a potential at the very threshold may cross it a step apart.
    """

    layers: Layers
    neuron: Burst | Refining = Burst()
    pool: str = "lateral"
    exact: bool = False

    def __post_init__(self):
        validate(self.layers)
        if not isinstance(self.neuron, Burst | Refining):
            raise TypeError(
                f"Model: neuron must be a Burst or Refining, found {self.neuron!r}"
            )
        relus = {path for path, layer in walk(self.layers) if isinstance(layer, Relu)}
        unknown = set(dict(getattr(self.neuron, "gammas", ()))) - relus
        if unknown:
            raise ValueError(
                f"Model: gammas must name Relus of the network, found {sorted(unknown)}"
            )
        if self.pool not in _POOLS:
            raise ValueError(
                f"Model: pool must be one of {list(_POOLS)}, found {self.pool!r}"
            )
        if self.pool == "gated" and isinstance(self.neuron, Refining):
            raise ValueError(
                "Model: gating passes current spikes, but those of refining neurons "
                "are changes; use pool='lateral'"
            )


State = dict[str, Any]
Respond = Callable[..., tuple[Membrane, jax.Array]]


class Info(NamedTuple):
    """What one step shows; nothing of it needs to be carried to the next.

    Attributes:
      spikes: `{path: n_t}` of every Relu, whole numbers `[B, ...]`.
      events: `{path: [B]}`, spikes of this step per image, a burst of k as k and a
        negative spike as one. Of a Relu: those sent; of a Conv or Dense: those that
        enter it, after max pooling and before average pooling (which merges into it).
    """

    spikes: dict[str, jax.Array]
    events: dict[str, jax.Array]


class Trace(NamedTuple):
    """What `simulate` records.

    Attributes:
      logits: `[T, B, classes]`, the readout after each step, in the network's unit.
      events: `{path: [T, B]}`, as in `Info`, for each step by itself.
      spikes: `{path: [T, B, ...]}` of the layers asked for.
      potentials: `{path: [T, B, ...]}` of the layers asked for, after each step.
    """

    logits: jax.Array
    events: dict[str, jax.Array]
    spikes: dict[str, jax.Array]
    potentials: dict[str, jax.Array]


class _Signal(NamedTuple):
    """A value on its way through the network: `value * unit`, in activation units.

    The unit is `None` for currents. For spikes the value is whole numbers, and their
    `events` are counted where they were sent.
    """

    value: jax.Array
    unit: jax.Array | None = None
    events: jax.Array | None = None

    @property
    def charge(self) -> jax.Array:
        if self.unit is None:
            return self.value
        return self.value * over_channels(self.unit, self.value)


def rest(model: Model, spiking: Spiking, shape: tuple[int, ...]) -> State:
    """The state before the first step.

    Args:
      model: the network, neuron and pooling.
      spiking: its converted weights.
      shape: `(B, H, W, C)` of the images.

    Returns:
      `{path: Membrane}` for every Relu, `{path: Pool}` for every MaxPool, and the
      charge that the last Dense has integrated.
    """
    state: State = {}
    batch, dtype = shape[0], spiking[_readout(model)].bias.dtype
    for row in trace_shapes(model.layers, shape[1:]):
        input_shape, output_shape = (batch, *row.input), (batch, *row.output)
        if isinstance(row.layer, Relu):
            theta, initial, _ = spiking[row.path]
            potential = jnp.zeros(input_shape, dtype)
            counts, history = jnp.zeros(input_shape, jnp.int32), None
            if isinstance(model.neuron, Burst):
                start = over_channels(theta, counts) * over_channels(initial, counts)
                potential += start.astype(dtype)
                if model.neuron.allowance is not None:
                    history = History(jnp.zeros((), jnp.int32), counts, counts)
                counts = counts if model.neuron.counts else None
            state[row.path] = Membrane(potential, counts, history)
        elif isinstance(row.layer, MaxPool):
            empty = (jnp.zeros(side, dtype) for side in (input_shape, output_shape))
            state[row.path] = Pool(*empty)
    state[_readout(model)] = jnp.zeros((batch, model.layers[-1].features), dtype)
    return state | {"time": jnp.zeros((), jnp.int32)}


class _Now(NamedTuple):
    """What the coding makes of a time step.

    Attributes:
      t: the step, counted from 1.
      presented: 1 where the image and the biases are presented, else 0.
      worth: what one spike is worth, over the threshold.
      respond: how a layer of neurons answers its current.
    """

    t: jax.Array
    presented: jax.Array | float
    worth: jax.Array | float
    respond: Respond


def _now(model: Model, state: State) -> _Now:
    neuron, t = model.neuron, state["time"] + 1
    repeating = isinstance(neuron, Burst)

    def respond(path, threshold, membrane, current, t):
        if threshold.bias.ndim:
            row = jnp.minimum(t, len(threshold.bias)) - 1
            threshold = threshold._replace(bias=threshold.bias[row])
        return answer(neuron, path, threshold, membrane, current, t)

    dtype = state[_readout(model)].dtype
    presented = 1.0 if repeating else (t == 1).astype(dtype)
    value = 1.0 if repeating else worth(neuron, t).astype(dtype)
    return _Now(t, presented, value, respond)


def readout(model: Model, state: State) -> jax.Array:
    """The logits `[B, classes]` after the steps taken so far, in the network's unit.

    Repeating bursts: the mean of the last Dense's currents. Refining: their sum.
    """
    total = state[_readout(model)]
    if isinstance(model.neuron, Refining):
        return total
    return total / state["time"].astype(total.dtype)


def _readout(model: Model) -> str:
    return named(model.layers)[-1][0]


def _stem(layers: Layers) -> int:
    """How many layers come before the first that changes over time."""
    kinds = [isinstance(layer, Relu | Residual) for layer in layers]
    return kinds.index(True)


@partial(jax.jit, static_argnames=("model", "image_shape"))
def build(model: Model, spiking: Spiking, image_shape: tuple[int, ...]) -> Spiking:
    """Does the work that depends on the weights only, once for all images and steps.

    The threshold of whoever sends spikes moves into the kernels that receive them, so
    that kernels act on whole numbers; convolutions take the form that is fast for
    their shape.

    Args:
      model: the network, neuron and pooling.
      spiking: its converted weights.
      image_shape: `(H, W, C)`.

    Returns:
      The circuit: `spiking` with other kernels, for `step`, and for every MaxPool what
      one of its spikes is worth.
    """
    rows = {row.path: row for row in trace_shapes(model.layers, image_shape)}
    circuit = dict(spiking)
    _build(model, model.layers, spiking, None, "", rows, circuit)
    return circuit


def _build(model, layers, spiking, unit, scope, rows, circuit):
    for name, layer in named(layers):
        path = f"{scope}{name}"
        match layer:
            case Conv() | Dense():
                kernel, bias = spiking[path]
                if unit is not None:
                    kernel = kernel * over_rows(unit, kernel)
                if isinstance(layer, Conv):
                    shape, exact = rows[path].input, model.exact
                    kernel = prepare(kernel, layer, shape, exact=exact)
                circuit[path] = Affine(kernel, bias)
                unit = None
            case Residual(body, shortcut):
                _build(model, body, spiking, unit, f"{path}/body/", rows, circuit)
                _build(
                    model, shortcut, spiking, unit, f"{path}/shortcut/", rows, circuit
                )
                unit = None
            case Relu():
                unit = spiking[path].theta
            case MaxPool():
                circuit[path] = unit
            case _:
                unit = _unit_after(layer, unit, (1, *rows[path].input))
    return unit


def _unit_after(
    layer, unit: jax.Array | None, shape: tuple[int, ...]
) -> jax.Array | None:
    """The unit of spikes after a layer that passes them on; `shape` is its input's."""
    match layer:
        case _ if unit is None:
            return None
        case AvgPool():
            return unit / area(layer, shape)
        case Flatten() if unit.ndim:
            return jnp.tile(unit, math.prod(shape[1:]) // unit.size)
        case Subsample():
            return None
        case _:
            return unit


def drive(model: Model, circuit: Spiking, images: jax.Array) -> jax.Array:
    """The constant current of the image: all layers before the first Relu.

    Args:
      model: the network, neuron and pooling.
      circuit: from `build`.
      images: `[B, H, W, C]`, normalised.

    Returns:
      What the first Relu (or Residual) receives at every step.
    """
    pairs = named(model.layers)[: _stem(model.layers)]
    once = _Now(None, 1.0, 1.0, None)
    return _advance(model, pairs, circuit, {}, _Signal(images), "", None, once).charge


def step(
    model: Model,
    circuit: Spiking,
    current: jax.Array,
    state: State,
    respond: Respond | None = None,
) -> tuple[State, Info]:
    """Advances the whole network by one time step.

    Args:
      model: the network, neuron and pooling.
      circuit: from `build`.
      current: the constant input, from `drive`.
      state: the state after the previous step, at first `rest`.
      respond: how a layer of neurons answers its current, if not by the equations of
        `model.neuron`: `respond(path, threshold, membrane, current, t)`.

    Returns:
      `(state, info)`: the state after this step, and what the step shows.
    """
    state, info = dict(state), Info({}, {})
    pairs = named(model.layers)[_stem(model.layers) :]
    now = _now(model, state)
    now = now._replace(respond=respond or now.respond)
    signal = _Signal(current * now.presented)
    output = _advance(model, pairs, circuit, state, signal, "", info, now)
    state[_readout(model)] = state[_readout(model)] + output.charge
    return state | {"time": now.t}, info


def _advance(model, pairs, circuit, state, signal, scope, info, now) -> _Signal:
    """Sends a signal through the named layers; updates `state` and `info` in place."""
    for name, layer in pairs:
        path = f"{scope}{name}"
        match layer:
            case Conv() | Dense():
                kernel, bias = circuit[path]
                if isinstance(layer, Conv):
                    current = convolve(signal.value, kernel, layer)
                else:
                    current = signal.value @ kernel
                if signal.events is not None:
                    info.events[path] = signal.events
                if signal.unit is not None:
                    current = current * now.worth
                bias = over_channels(bias, current) * now.presented
                signal = _Signal(current + bias)
            case Relu():
                state[path], spikes = now.respond(
                    path, circuit[path], state[path], signal.charge, now.t
                )
                info.spikes[path] = spikes
                info.events[path] = _count(spikes)
                unit = circuit[path].theta * now.worth
                signal = _Signal(spikes, unit, info.events[path])
            case MaxPool():
                pool = _POOLS[model.pool]
                before = state[path]
                if isinstance(model.neuron, Refining):  # the same charge in new quanta
                    before = Pool(*(count * model.neuron.ratio for count in before))
                state[path], spikes = pool(layer, before, signal.value)
                signal = _Signal(spikes, signal.unit, _count(spikes))
            case AvgPool():
                total = sum_pool(signal.value, layer)
                if signal.unit is None:
                    total = total / area(layer, signal.value.shape)
                unit = _unit_after(layer, signal.unit, signal.value.shape)
                signal = _Signal(total, unit, signal.events)
            case Flatten():
                flat = signal.value.reshape(signal.value.shape[0], -1)
                unit = _unit_after(layer, signal.unit, signal.value.shape)
                signal = _Signal(flat, unit, signal.events)
            case Subsample():
                signal = _Signal(subsample(signal.charge, layer))
            case Residual(body, shortcut):
                inside, around = (
                    _advance(
                        model, named(part), circuit, state, signal, within, info, now
                    ).charge
                    for part, within in (
                        (body, f"{path}/body/"),
                        (shortcut, f"{path}/shortcut/"),
                    )
                )
                scale = over_channels(circuit[path].scale, around)
                signal = _Signal(inside + scale * around)
    return signal


def _count(spikes: jax.Array) -> jax.Array:
    """Events per image: `Σ|n|`, `[B]`."""
    return jnp.abs(spikes).sum(tuple(range(1, spikes.ndim)), dtype=jnp.int32)


@partial(jax.jit, static_argnames=("model", "steps", "record"))
def simulate(
    model: Model,
    spiking: Spiking,
    images: jax.Array,
    steps: int,
    *,
    record: tuple[str, ...] = (),
) -> Trace:
    """Presents images for a number of time steps and records what is asked for.

    Memory does not grow with `steps` but for what is recorded.

    Args:
      model: the network, neuron and pooling; static.
      spiking: its converted weights.
      images: `[B, H, W, C]`, normalised.
      steps: number of time steps `T`; static.
      record: paths of Relus whose spikes and potentials are wanted; static.

    Returns:
      The `Trace`: logits and events of every step.

    Raises:
      ValueError: for images, weights or paths that do not fit the network.
    """
    check_normalised(images)
    check(model, spiking, images.shape, steps)
    unknown = sorted(set(record) - set(_relus(model)))
    if unknown:
        raise ValueError(
            f"simulate: cannot record {unknown}; the Relus are {_relus(model)}"
        )
    circuit = build(model, spiking, images.shape[1:])
    return _unroll(model, circuit, images, steps, record)


def _unroll(model, circuit, images, steps, record=()) -> Trace:
    current = drive(model, circuit, images)

    def advance(state: State, _) -> tuple[State, Trace]:
        state, info = step(model, circuit, current, state)
        shown = Trace(
            logits=readout(model, state),
            events=info.events,
            spikes={path: info.spikes[path] for path in record},
            potentials={path: state[path].potential for path in record},
        )
        return state, shown

    state = rest(model, circuit, images.shape)
    return jax.lax.scan(advance, state, length=steps)[1]


@partial(jax.jit, static_argnames=("model", "steps"))
def infer(model: Model, spiking: Spiking, images: jax.Array, steps: int) -> jax.Array:
    """The logits `[B, classes]` after `steps` time steps, and nothing else.

    Args and errors: as `simulate`.
    """
    check_normalised(images)
    check(model, spiking, images.shape, steps)
    circuit = build(model, spiking, images.shape[1:])
    current = drive(model, circuit, images)
    state = jax.lax.fori_loop(
        0,
        steps,
        lambda _, state: step(model, circuit, current, state)[0],
        rest(model, circuit, images.shape),
    )
    return readout(model, state)


class Curves(NamedTuple):
    """Means over a data set, for every time step.

    Attributes:
      accuracy: `[T]`, share of the images that are right when read out after `t` steps.
      events: `{path: [T]}`, mean events per image at step `t` by itself, as in `Info`.
      images: number of images.
    """

    accuracy: np.ndarray
    events: dict[str, np.ndarray]
    images: int


def evaluate(
    model: Model,
    spiking: Spiking,
    split: Split,
    steps: int,
    *,
    batch_size: int = 100,
    progress: bool = True,
) -> Curves:
    """Simulates a whole data set; one compilation serves all batches.

    All local devices share every batch. Of images `OnDisk`, those of one batch are in
    memory at a time.

    Args:
      model: the network, neuron and pooling.
      spiking: its converted weights.
      split: images and labels.
      steps: number of time steps `T`.
      batch_size: number of images at a time, rounded up to what the devices share
        evenly; a last partial batch is padded, and what was padded is not counted.
      progress: whether to show a progress bar.

    Returns:
      The `Curves`.

    Raises:
      ValueError: for an empty split, or images or weights that do not fit the network.
    """
    if len(split) == 0:
        raise ValueError("evaluate: there are no images in this split")
    batch_size = evenly(min(batch_size, len(split)))
    shape = (batch_size, *split.images.shape[1:])
    check(model, spiking, shape, steps)
    cut, copy = share(batch_size)
    circuit = copy(build(model, spiking, shape[1:]))
    correct = np.zeros(steps, np.int64)
    events: dict[str, np.ndarray] = {}
    parts = batches(split, batch_size)
    if progress:
        count = -(-len(split) // batch_size)
        parts = track(parts, f"Simulating {steps} steps", count)
    for part, inputs in parts:
        missing = batch_size - len(part)
        labels = np.pad(part.labels, (0, missing), constant_values=-1)
        scored = _score(model, circuit, cut(inputs), cut(labels), steps)
        hits, counts = jax.device_get(scored)
        correct += hits
        for path, count in counts.items():
            total = count[:, : len(part)].sum(1, dtype=np.int64)
            events[path] = events.get(path, 0) + total
    ordered = [path for path, _ in walk(model.layers) if path in events]
    means = {path: events[path] / len(split) for path in ordered}
    return Curves(correct / len(split), means, len(split))


@partial(jax.jit, static_argnames=("model", "steps"))
def _score(model, circuit, images, labels, steps):
    """Right answers per step `[T]`, and events per step and image `{path: [T, B]}`."""
    trace = _unroll(model, circuit, images, steps)
    hits = trace.logits.argmax(-1).astype(labels.dtype) == labels.reshape(1, -1)
    return hits.sum(1, dtype=jnp.int32), trace.events


def _relus(model: Model) -> list[str]:
    return [path for path, layer in walk(model.layers) if isinstance(layer, Relu)]


def check(model: Model, spiking: Spiking, shape: tuple[int, ...], steps: int) -> None:
    """Refuses images `[B, H, W, C]`, weights and steps that do not fit the network.

    Raises:
      ValueError: naming the layer, what was expected and what was found.
    """
    if len(shape) != 4:
        raise ValueError(f"images must be [B, H, W, C], found the shape {shape}")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, found {steps!r}")
    if isinstance(model.neuron, Refining):
        most = 1 + int(math.log(2**16, model.neuron.ratio))
        if steps > most:
            raise ValueError(
                f"steps: spikes that weigh {model.neuron.ratio} times less at every "
                f"step are below the rounding of the weights after {most} steps, found "
                f"{steps}; a handful is enough"
            )
    validate(model.layers, shape[1:])
    for row in trace_shapes(model.layers, shape[1:]):
        if not isinstance(row.layer, Conv | Dense | Relu | Residual):
            continue
        if row.path not in spiking:
            raise ValueError(
                f"{row.path}: the converted network has no weights for it; convert "
                "with the layers that are simulated"
            )
        if isinstance(row.layer, Relu):
            for name, value in spiking[row.path]._asdict().items():
                shapes = [(), row.input[-1:], row.input][: 2 if name == "theta" else 3]
                found = jnp.shape(value)
                if name == "bias":
                    found = found[1:]  # one row per step
                if found not in shapes:
                    raise ValueError(
                        f"{row.path}: for images of {shape[1:]} its {name} must have "
                        f"one of the shapes {shapes}, found {found}"
                    )
        if isinstance(row.layer, Conv | Dense):
            found = spiking[row.path].kernel.shape
            expected = (row.input[-1], row.layer.features)
            if isinstance(row.layer, Conv):
                expected = (row.layer.kernel,) * 2 + expected
            if found != expected:
                raise ValueError(
                    f"{row.path}: for images of {shape[1:]} the kernel must be "
                    f"{expected}, found {found}"
                )
