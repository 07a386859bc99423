"""The spiking reading of a network: burst neurons unrolled over time.

    circuit = build(model, spiking, images.shape[1:])
    current = drive(model, circuit, images)
    state = rest(model, circuit, images.shape)
    state, info = step(model, circuit, current, state)      # one time step, all layers
    logits = readout(model, state)

Spikes cross all layers within one step, and what is affine in the image up to the first
Relu is computed once, outside the loop. The last Dense integrates and does not spike;
logits are in the trained network's unit.

As a layer needs nothing but the spikes of the layers below, it may as well take several
steps before the next layer takes its own: its convolutions then see a larger batch. How
many steps at once, and how many images, is a `Plan`; what comes out is the same, up to
the rounding of sums.

The kind of neuron is the coding. `Burst` repeats: image and biases are presented at
every step, and the logits at step `t` are the mean of the currents up to `t`.
`Refining` refines: they are presented once, a spike is a change, and the logits are the
sum of the currents.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxburst.conversion import Affine, Spiking
from jaxburst.convolution import convolve, prepare
from jaxburst.data import Split, batches, check_normalised
from jaxburst.devices import divided, evenly, of_each, one_core_each, share
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
    at_step,
    gated_pool,
    lateral_pool,
    over_channels,
    over_rows,
    remaining,
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
      precision: of the kernels of convolutions that receive spikes, `'float32'` or
        `'bfloat16'`, for accelerators. Spikes are whole numbers, exact in both, and
        sums, currents and membranes keep the precision of the weights; but these
        kernels are rounded to 8 bits of mantissa.
    """

    layers: Layers
    neuron: Burst | Refining = Burst()
    pool: str = "lateral"
    exact: bool = False
    precision: str = "float32"

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
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(
                "Model: precision must be 'float32' or 'bfloat16', found "
                f"{self.precision!r}"
            )
        if self.precision == "bfloat16" and not _largest_count(self) <= 256:
            raise ValueError(
                "Model: bfloat16 holds whole numbers up to 256, but a convolution may "
                f"receive {_largest_count(self)}: gamma, the most spikes of a step, "
                "times the window of an average pool before it; use a smaller gamma or "
                "precision='float32'"
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


def _largest_count(model: Model) -> float:
    """Most spikes of a step that arrive at one place, pools of whole maps aside."""
    gammas = [model.neuron.gamma, *dict(getattr(model.neuron, "gammas", ())).values()]
    windows = [
        layer.window or 1
        for _, layer in walk(model.layers)
        if isinstance(layer, AvgPool)
    ]
    most = math.inf if None in gammas else max(gammas)
    return most * max(windows, default=1) ** 2


State = dict[str, Any]


@jax.tree_util.register_pytree_node_class
class Circuit(dict):
    """What `build` makes of converted weights, `{path: arrays}`; a pytree.

    It remembers the model and the `(H, W, C)` of the images that it was built for.
    """

    def __init__(self, arrays: dict[str, Any], model: Model, image_shape: tuple):
        super().__init__(arrays)
        self.model, self.image_shape = model, image_shape

    def tree_flatten(self):
        paths = tuple(sorted(self))
        return [self[path] for path in paths], (paths, self.model, self.image_shape)

    @classmethod
    def tree_unflatten(cls, static, arrays):
        paths, model, image_shape = static
        return cls(dict(zip(paths, arrays, strict=True)), model, image_shape)


Respond = Callable[..., tuple[Membrane, jax.Array]]


class Info(NamedTuple):
    """What one step shows; nothing of it needs to be carried to the next.

    Attributes:
      spikes: `{path: n_t}` of every Relu, whole numbers `[B, ...]`.
      events: `{path: [B]}`, spikes of this step per image, a burst of k as k and a
        negative spike as one. Of a Relu: those sent; of a Conv or Dense: those that
        enter it, after max pooling and before average pooling (which merges into it).
      potentials: `{path: v_t}`, `[B, ...]`, of the Relus that `simulate` records.
    """

    spikes: dict[str, jax.Array]
    events: dict[str, jax.Array]
    potentials: dict[str, jax.Array]


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

    def charge(self, worth: jax.Array | float) -> jax.Array:
        """What it is in activation units; `worth` as in `_Now`."""
        if self.unit is None:
            return self.value
        return _of_steps(worth, self.value * over_channels(self.unit, self.value))


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
            state[row.path] = Membrane(potential, counts, history, jnp.array(False))
        elif isinstance(row.layer, MaxPool):
            empty = (jnp.zeros(side, dtype) for side in (input_shape, output_shape))
            state[row.path] = Pool(*empty)
    state[_readout(model)] = jnp.zeros((batch, model.layers[-1].features), dtype)
    return state | {"time": jnp.zeros((), jnp.int32)}


class _Now(NamedTuple):
    """What the coding makes of the time steps of a block, `K` of them.

    Attributes:
      t: the steps, counted from 1, `[K]`.
      presented: 1 where the image and the biases are presented, else 0; `[K]` or one.
      worth: what one spike is worth, over the threshold; `[K]` or one.
      respond: how a layer of neurons answers its current.
      record: the Relus whose potentials are wanted.
    """

    t: jax.Array
    presented: jax.Array | float
    worth: jax.Array | float
    respond: Respond
    record: tuple[str, ...]


def _now(model: Model, state: State, steps: int, record: tuple[str, ...]) -> _Now:
    neuron, t = model.neuron, state["time"] + 1 + jnp.arange(steps, dtype=jnp.int32)
    repeating = isinstance(neuron, Burst)

    def respond(path, threshold, membrane, current, t):
        threshold = threshold._replace(bias=at_step(threshold.bias, t))
        return answer(neuron, path, threshold, membrane, current, t)

    dtype = state[_readout(model)].dtype
    presented = 1.0 if repeating else (t == 1).astype(dtype)
    value = 1.0 if repeating else worth(neuron, t).astype(dtype)
    return _Now(t, presented, value, respond, record)


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
def build(model: Model, spiking: Spiking, image_shape: tuple[int, ...]) -> Circuit:
    """Does the work that depends on the weights only, once for all images and steps.

    The threshold of whoever sends spikes moves into the kernels that receive them, so
    that kernels act on whole numbers; convolutions take the form that is fast for
    their shape.

    Args:
      model: the network, neuron and pooling.
      spiking: its converted weights.
      image_shape: `(H, W, C)`.

    Returns:
      The circuit: `spiking` with other kernels, and for every MaxPool what one of its
      spikes is worth. For `step`; and `infer`, `simulate` and `evaluate` take it in
      place of `spiking`, which saves them this work.
    """
    rows = {row.path: row for row in trace_shapes(model.layers, image_shape)}
    circuit = dict(spiking)
    _build(model, model.layers, spiking, None, "", rows, circuit)
    return Circuit(circuit, model, image_shape)


def _built(model: Model, spiking: Spiking, shape: tuple[int, ...], steps: int):
    """A circuit for images `[B, H, W, C]`, checked; nothing to do for one."""
    if not isinstance(spiking, Circuit):
        check(model, spiking, shape, steps)
        return build(model, spiking, shape[1:])
    if (spiking.model, spiking.image_shape) != (model, shape[1:]):
        raise ValueError(
            f"the circuit was built for images of {spiking.image_shape} and "
            f"{spiking.model}; build another for {shape[1:]} and {model}"
        )
    check_steps(model, shape, steps)
    return spiking


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
                    if model.precision == "bfloat16" and unit is not None:
                        kernel = kernel.astype(jnp.bfloat16)
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


def drive(model: Model, circuit: Circuit, images: jax.Array) -> jax.Array:
    """The constant current of the image: all layers before the first Relu.

    Args:
      model: the network, neuron and pooling.
      circuit: from `build`.
      images: `[B, H, W, C]`, normalised.

    Returns:
      What the first Relu (or Residual) receives: at every step, or, of refining
      neurons, at the first.
    """
    pairs = named(model.layers)[: _stem(model.layers)]
    once, signal = _Now(None, 1.0, 1.0, None, ()), _Signal(images[None])
    return _advance(model, pairs, circuit, {}, signal, "", None, once).charge(1.0)[0]


def step(
    model: Model,
    circuit: Circuit,
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
    state, (_, info) = _block(model, circuit, current, state, 1, (), respond)
    return state, jax.tree.map(lambda of_steps: of_steps[0], info)


def _block(model, circuit, current, state, steps, record=(), respond=None):
    """Advances by some steps, every layer by all of them before the next layer.

    Returns `(state, (logits, info))`, both with the steps in front, `[K, B, ...]`.
    """
    state, info = dict(state), Info({}, {}, {})
    pairs = named(model.layers)[_stem(model.layers) :]
    now = _now(model, state, steps, record)
    now = now._replace(respond=respond or now.respond)
    image = jnp.broadcast_to(current, (steps, *current.shape))
    signal = _Signal(_of_steps(now.presented, image))
    output = _advance(model, pairs, circuit, state, signal, "", info, now)
    path = _readout(model)

    def integrate(total: State, arriving) -> tuple[State, jax.Array]:
        charge, time = arriving
        total = {path: total[path] + charge, "time": time}
        return total, readout(model, total)

    total = {name: state[name] for name in (path, "time")}
    arriving = (output.charge(now.worth), now.t)
    total, logits = _over_steps(integrate, total, arriving)
    return state | total, (logits, info)


def _over_steps(advance: Callable, state, arriving):
    """`lax.scan`, without a loop for a single step."""
    if len(jax.tree.leaves(arriving)[0]) > 1:
        return jax.lax.scan(advance, state, arriving)
    state, shown = advance(state, jax.tree.map(lambda x: x[0], arriving))
    return state, jax.tree.map(lambda x: x[None], shown)


def _of_steps(factor: jax.Array | float, value: jax.Array) -> jax.Array:
    """Multiplies `[K, B, ...]` by `[K]`, or by one number."""
    if isinstance(factor, float):
        return value if factor == 1 else factor * value
    return factor.reshape(-1, *[1] * (value.ndim - 1)) * value


def _at_once(layer_function: Callable, value: jax.Array) -> jax.Array:
    """Applies a function of `[B, ...]` to `[K, B, ...]`, steps beside images."""
    merged = layer_function(value.reshape(-1, *value.shape[2:]))
    return merged.reshape(*value.shape[:2], *merged.shape[1:])


def _advance(model, pairs, circuit, state, signal, scope, info, now) -> _Signal:
    """Sends the signal of a block of steps, `[K, B, ...]`, through the named layers.

    Updates `state` and `info` in place.
    """
    for name, layer in pairs:
        path = f"{scope}{name}"
        match layer:
            case Conv() | Dense():
                kernel, bias = circuit[path]
                value = signal.value.astype(kernel.dtype)
                if isinstance(layer, Conv):
                    weigh = partial(
                        convolve, prepared=kernel, layer=layer, dtype=bias.dtype
                    )
                else:
                    weigh = partial(jnp.matmul, b=kernel)
                current = _at_once(weigh, value)
                if signal.events is not None:
                    info.events[path] = signal.events
                if signal.unit is not None:
                    current = _of_steps(now.worth, current)
                bias = over_channels(bias, current)
                signal = _Signal(current + _of_steps(now.presented, bias))
            case Relu():
                spikes = _answer(model, path, circuit[path], state, signal, info, now)
                info.spikes[path] = spikes
                info.events[path] = _count(spikes)
                signal = _Signal(spikes, circuit[path].theta, info.events[path])
            case MaxPool():
                pool = partial(_pool, model, layer)
                state[path], spikes = _over_steps(pool, state[path], signal.value)
                signal = _Signal(spikes, signal.unit, _count(spikes))
            case AvgPool():
                total = _at_once(partial(sum_pool, layer=layer), signal.value)
                if signal.unit is None:
                    total = total / area(layer, signal.value.shape[1:])
                unit = _unit_after(layer, signal.unit, signal.value.shape[1:])
                signal = _Signal(total, unit, signal.events)
            case Flatten():
                flat = signal.value.reshape(*signal.value.shape[:2], -1)
                unit = _unit_after(layer, signal.unit, signal.value.shape[1:])
                signal = _Signal(flat, unit, signal.events)
            case Subsample():
                charge = signal.charge(now.worth)
                signal = _Signal(_at_once(partial(subsample, layer=layer), charge))
            case Residual(body, shortcut):
                inside, around = (
                    _advance(
                        model, named(part), circuit, state, signal, within, info, now
                    ).charge(now.worth)
                    for part, within in (
                        (body, f"{path}/body/"),
                        (shortcut, f"{path}/shortcut/"),
                    )
                )
                scale = over_channels(circuit[path].scale, around)
                signal = _Signal(inside + scale * around)
    return signal


def _answer(model, path, threshold, state, signal, info, now) -> jax.Array:
    """The spikes of a layer of neurons, step after step; `[K, B, ...]`."""
    recorded = path in now.record

    def advance(membrane: Membrane, arriving):
        current, t = arriving
        membrane, spikes = now.respond(path, threshold, membrane, current, t)
        if not recorded:
            return membrane, (spikes, None)
        return membrane, (spikes, remaining(model.neuron, path, threshold, membrane))

    arriving = (signal.charge(now.worth), now.t)
    state[path], (spikes, potentials) = _over_steps(advance, state[path], arriving)
    if recorded:
        info.potentials[path] = potentials
    return spikes


def _pool(model, layer, before: Pool, spikes: jax.Array) -> tuple[Pool, jax.Array]:
    if isinstance(model.neuron, Refining):  # the same charge in new quanta
        before = Pool(*(count * model.neuron.ratio for count in before))
    return _POOLS[model.pool](layer, before, spikes)


def _count(spikes: jax.Array) -> jax.Array:
    """Events per step and image: `Σ|n|`, `[K, B]`."""
    return jnp.abs(spikes).sum(tuple(range(2, spikes.ndim)), dtype=jnp.int32)


class Plan(NamedTuple):
    """The order of a simulation. What comes out depends on it by rounding only.

    Attributes:
      steps: how many time steps a layer takes before the next takes its own.
      images: how many images are simulated at a time.
    """

    steps: int
    images: int

    def __str__(self) -> str:
        steps = "1 step" if self.steps == 1 else f"{self.steps} steps, layer by layer,"
        return f"{steps} of {self.images} images at a time"


def plan(batch: int, steps: int, schedule: str = "auto") -> Plan:
    """Chooses the order of a simulation.

    `'step'` takes one step at a time through all layers: its memory does not depend on
    the number of steps. `'layer'` takes as many as make 256 images, each layer all of
    them before the next: kernels are read once for all. `'auto'` does so up to 256
    images, but on a CPU up to 32, or 16 where every core is a device of its own: there
    larger batches are no faster. A CPU simulates large batches in equal parts that fit
    its cache, if there are any: of 16 to 64 images, on a single core of 8 to 16.

    Args:
      batch: number of images on one device.
      steps: number of time steps.
      schedule: `'auto'`, `'step'` or `'layer'`.

    Returns:
      The `Plan`.
    """
    if schedule not in ("auto", "step", "layer"):
        raise ValueError(
            f"schedule must be 'auto', 'step' or 'layer', found {schedule!r}; logits "
            "from one pass, without events, are `jaxburst.direct`"
        )
    images, enough = batch, 256
    if jax.default_backend() == "cpu":
        least, largest, enough = (8, 16, 16) if one_core_each() else (16, 64, 32)
        part = max(part for part in range(1, largest + 1) if batch % part == 0)
        images = part if part >= least else batch
    most = {"step": 1, "layer": 256, "auto": enough}[schedule]
    return Plan(min(steps, max(1, most // images)), images)


@partial(jax.jit, static_argnames=("model", "steps", "record", "schedule"))
def simulate(
    model: Model,
    spiking: Spiking,
    images: jax.Array,
    steps: int,
    *,
    record: tuple[str, ...] = (),
    schedule: str = "auto",
) -> Trace:
    """Presents images for a number of time steps and records what is asked for.

    Memory does not grow with `steps` but for what is recorded (and, in layer order, up
    to the length of a block).

    Args:
      model: the network, neuron and pooling; static.
      spiking: its converted weights, or the circuit that `build` made of them.
      images: `[B, H, W, C]`, normalised.
      steps: number of time steps `T`; static.
      record: paths of Relus whose spikes and potentials are wanted; static.
      schedule: the order of the work, see `plan`; static.

    Returns:
      The `Trace`: logits and events of every step.

    Raises:
      ValueError: for images, weights or paths that do not fit the network.
    """
    check_normalised(images)
    circuit = _built(model, spiking, images.shape, steps)
    unknown = sorted(set(record) - set(_relus(model)))
    if unknown:
        raise ValueError(
            f"simulate: cannot record {unknown}; the Relus are {_relus(model)}"
        )
    order = plan(len(images), steps, schedule)
    return _unroll(model, circuit, images, steps, order, record)


def _unroll(model, circuit, images, steps, order, record=()) -> Trace:
    if order.images < len(images):
        parts = images.reshape(-1, order.images, *images.shape[1:])
        traces = jax.lax.map(
            lambda part: _unroll(model, circuit, part, steps, order, record), parts
        )
        return jax.tree.map(  # [parts, T, images, ...] to [T, B, ...]
            lambda x: x.swapaxes(0, 1).reshape(steps, len(images), *x.shape[3:]), traces
        )
    current = drive(model, circuit, images)

    def advance(state: State, _, taken: int = order.steps) -> tuple[State, Trace]:
        state, (logits, info) = _block(model, circuit, current, state, taken, record)
        spikes = {path: info.spikes[path] for path in record}
        return state, Trace(logits, info.events, spikes, info.potentials)

    blocks, left = divmod(steps, order.steps)
    state = rest(model, circuit, images.shape)
    state, trace = jax.lax.scan(advance, state, length=blocks)
    trace = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), trace)
    if left:
        _, last = advance(state, None, left)
        trace = jax.tree.map(lambda *both: jnp.concatenate(both), trace, last)
    return trace


@partial(jax.jit, static_argnames=("model", "steps", "schedule"))
def infer(
    model: Model,
    spiking: Spiking,
    images: jax.Array,
    steps: int,
    *,
    schedule: str = "auto",
) -> jax.Array:
    """The logits `[B, classes]` after `steps` time steps, and nothing else.

    Args and errors: as `simulate`. Who calls it again and again gives it what `build`
    returns in place of `spiking`.
    """
    check_normalised(images)
    circuit = _built(model, spiking, images.shape, steps)
    order = plan(len(images), steps, schedule)
    blocks, left = divmod(steps, order.steps)

    def infer_part(part: jax.Array) -> jax.Array:
        current = drive(model, circuit, part)

        def advance(state: State, taken: int = order.steps) -> State:
            return _block(model, circuit, current, state, taken)[0]

        state = rest(model, circuit, part.shape)
        state = jax.lax.fori_loop(0, blocks, lambda _, state: advance(state), state)
        return readout(model, advance(state, left) if left else state)

    if order.images == len(images):
        return infer_part(images)
    parts = images.reshape(-1, order.images, *images.shape[1:])
    return jax.lax.map(infer_part, parts).reshape(len(images), -1)


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
    schedule: str = "auto",
    progress: bool = True,
) -> Curves:
    """Simulates a whole data set; one compilation serves all batches.

    All local devices share every batch. Of images `OnDisk`, those of one batch are in
    memory at a time.

    Args:
      model: the network, neuron and pooling.
      spiking: its converted weights, or the circuit that `build` made of them.
      split: images and labels.
      steps: number of time steps `T`.
      batch_size: number of images at a time, rounded up to what the devices share
        evenly; a last partial batch is padded, and what was padded is not counted.
      schedule: the order of the work, see `plan`.
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
    circuit = _built(model, spiking, shape, steps)
    order = plan(of_each(batch_size), steps, schedule)
    cut, copy = share(batch_size)
    circuit = copy(circuit)
    score = _scorer(model, shape[1:])
    correct = np.zeros(steps, np.int64)
    events: dict[str, np.ndarray] = {}
    parts = batches(split, batch_size)
    if progress:
        count = -(-len(split) // batch_size)
        parts = track(parts, f"Simulating {steps} steps, {order}", count)
    for part, inputs in parts:
        missing = batch_size - len(part)
        labels = np.pad(part.labels, (0, missing), constant_values=-1)
        scored = score(model, circuit, cut((inputs, labels)), steps, order)
        hits, counts = jax.device_get(scored)
        correct += hits.sum(0)
        for path, count in counts.items():
            total = count[: len(part)].sum(0, dtype=np.int64)
            events[path] = events.get(path, 0) + total
    ordered = [path for path, _ in walk(model.layers) if path in events]
    means = {path: events[path] / len(split) for path in ordered}
    return Curves(correct / len(split), means, len(split))


def _score(model, circuit, batch, steps, order):
    """Which answers are right `[B, T]`, and events per step `{path: [B, T]}`."""

    def score(circuit, batch):
        images, labels = batch
        trace = _unroll(model, circuit, images, steps, order)
        hits = trace.logits.argmax(-1).astype(labels.dtype) == labels.reshape(1, -1)
        return jax.tree.map(lambda x: x.swapaxes(0, 1), (hits, trace.events))

    return divided(score, len(batch[1]))(circuit, batch)


@lru_cache
def _scorer(model: Model, image_shape: tuple[int, ...]) -> Callable:
    """`_score`, compiled once for all calls."""
    static = ("model", "steps", "order")
    options = compiler_options(model, image_shape)
    return jax.jit(_score, static_argnames=static, compiler_options=options)


def compiler_options(model: Model, image_shape: tuple[int, ...]) -> dict[str, int]:
    """What to give `jax.jit` besides a function that simulates a network.

    On a CPU XLA unrolls loops over up to 16 channels and vectorises over columns
    instead, with gathers. Where most neurons are in such layers, as in CIFAR's ResNets,
    a lower level of optimisation saves a tenth of the time; wider networks lose by it.

    Args:
      model: the network.
      image_shape: `(H, W, C)`.

    Returns:
      The `compiler_options`, mostly none.
    """
    if jax.default_backend() != "cpu":
        return {}
    relus = [
        row.output
        for row in trace_shapes(model.layers, image_shape)
        if isinstance(row.layer, Relu)
    ]
    narrow = sum(math.prod(shape) for shape in relus if shape[-1] <= 16)
    most = 2 * narrow > sum(map(math.prod, relus))
    return {"xla_backend_optimization_level": 2} if most else {}


def _relus(model: Model) -> list[str]:
    return [path for path, layer in walk(model.layers) if isinstance(layer, Relu)]


def check_steps(model: Model, shape: tuple[int, ...], steps: int) -> None:
    """Refuses shapes of images and numbers of steps that no network can take."""
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


def check(model: Model, spiking: Spiking, shape: tuple[int, ...], steps: int) -> None:
    """Refuses images `[B, H, W, C]`, weights and steps that do not fit the network.

    Raises:
      ValueError: naming the layer, what was expected and what was found.
    """
    if isinstance(spiking, Circuit):
        raise ValueError(
            "expected converted weights, found the circuit that was built from them; "
            "only infer, simulate and evaluate take it"
        )
    check_steps(model, shape, steps)
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
