"""The spiking reading of a network: neurons unrolled over time.

    trace = simulate(model, spiking, inputs, steps=8)
    logits = infer(model, spiking, inputs, steps=8)
    curves = evaluate(model, spiking, (inputs, labels), steps=8)

What no neuron leads to is computed once, outside the loop. Outputs integrate and do not
spike; they come in the trained network's unit. How many steps a population takes before
the next takes its own, and how many images are simulated at a time, is a `Plan`; what
comes out is the same, up to the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial, wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxburst.checks import door, traced
from jaxburst.circuit import (
    Circuit,
    Info,
    Respond,
    State,
    block,
    constants,
    outputs_first,
    platform_of,
    prepare,
    rest,
)
from jaxburst.convert import Spiking
from jaxburst.devices import one_core_each, optimised
from jaxburst.graph import Neuron, images_first
from jaxburst.model import Model
from jaxburst.network import Network
from jaxburst.traffic import Traffic


class Plan(NamedTuple):
    """The order of a simulation. What comes out depends on it by rounding only.

    Attributes:
      steps: how many time steps a population takes before the next takes its own.
      images: how many images are simulated at a time.
    """

    steps: int
    images: int

    def __str__(self) -> str:
        steps = "1 step" if self.steps == 1 else f"{self.steps} steps, layer by layer,"
        return f"{steps} of {self.images} images at a time"


def plan(
    network: Network,
    batch: int,
    steps: int,
    schedule: str = "auto",
    platform: str | None = None,
) -> Plan:
    """Chooses the order of a simulation.

    `'step'` takes one step at a time through all layers: its memory does not depend on
    the number of steps. `'layer'` takes as many as make 256 images, each layer all of
    them before the next: kernels are read once for all. `'auto'` does so up to 256
    images, but on a CPU up to 32, or 16 where every core is a device of its own: there
    larger batches are no faster, and `narrow` networks are fastest step by step. A CPU
    simulates large batches in equal parts that fit its cache, if there are any: of 16
    to 64 images, on a single core of 8 to 16.

    Args:
      network: what is simulated.
      batch: images on one device.
      steps: time steps.
      schedule: one of the three.
      platform: where it will run, if not here.
    """
    if schedule not in ("auto", "step", "layer"):
        raise ValueError(
            f"schedule must be 'auto', 'step' or 'layer', found {schedule!r}; logits "
            "from one pass, without events, are `jaxburst.direct`"
        )
    images, enough = batch, 256
    if platform_of(platform) == "cpu":
        least, largest, enough = 16, 64, 32
        if one_core_each():
            least, largest, enough = 8, 16, 1 if narrow(network) else 16
        part = max(part for part in range(1, largest + 1) if batch % part == 0)
        images = part if part >= least else batch
    most = {"step": 1, "layer": 256, "auto": enough}[schedule]
    return Plan(min(steps, max(1, most // images)), images)


def unroll(
    model: Model,
    circuit: Circuit,
    inputs: list,
    steps: int,
    observe: Callable[[State, Info], Any],
    *,
    order: Plan | None = None,
    record: tuple[str, ...] = (),
    respond: Respond | None = None,
    follow: tuple[Callable, Callable] | None = None,
    platform: str | None = None,
):
    """Presents inputs for a number of time steps: the only loop over time.

    Args:
      model, circuit, inputs, steps: what is run, from `prepare`, on arrays `[B, ...]`,
        for `T` steps.
      observe: makes of `(state, info)` after a block of `K` steps what is wanted of
        them, a pytree of arrays `[K, B, ...]`. With blocks of one step, which is the
        default order, the state is that of the step.
      order: the order of the work.
      record: the populations whose potentials `info` shows.
      respond: as in `block`.
      follow: what an observer carries along is `state["seen"]`: at rest it is
        `follow[0](state)`, after a block `follow[1](seen, state, info)`.
      platform: where it will run, if not here.

    Returns:
      `(state, observed)`: the last state (of the last part of the batch, if it is done
      in parts), and what was observed, `[T, B, ...]`.
    """
    count = inputs[0].shape[0]
    order = order or Plan(1, count)
    if order.images < count:

        def one(part):
            return unroll(
                model, circuit, part, steps, observe, order=order, record=record,
                respond=respond, follow=follow, platform=platform,
            )  # fmt: skip

        state, seen = jax.lax.map(one, _parts(inputs, order.images))
        seen = jax.tree.map(  # [parts, T, images, ...] to [T, B, ...]
            lambda x: x.swapaxes(0, 1).reshape(steps, -1, *x.shape[3:]), seen
        )
        return jax.tree.map(lambda x: x[-1], state), seen
    held = constants(model, circuit, inputs, platform)

    def advance(state: State, _, taken: int = order.steps):
        state, info = block(
            model, circuit, held, state, taken, record=record, respond=respond,
            platform=platform,
        )  # fmt: skip
        if follow is not None:
            state["seen"] = follow[1](state["seen"], state, info)
        return state, observe(state, info)

    blocks, left = divmod(steps, order.steps)
    state = rest(model, circuit, count)
    if follow is not None:
        state["seen"] = follow[0](state)
    if blocks == 1:  # in a loop XLA on CPU is slow with the gradient of a kernel
        state, seen = advance(state, None)
    else:
        state, seen = jax.lax.scan(advance, state, length=blocks)
        seen = _merged(seen)
    if left:
        state, last = advance(state, None, left)
        seen = jax.tree.map(lambda *both: jnp.concatenate(both), seen, last)
    return state, seen


class Trace(NamedTuple):
    """What `simulate` records.

    Attributes:
      logits: the outputs after each step, in the network's unit, `[T, B, ...]`, in the
        structure that the network returns.
      traffic: `{name: Traffic}`, `[T, B]` each, as in `Info`, of each step by itself.
      spikes: `{name: [T, B, ...]}` of the populations asked for.
      potentials: `{name: [T, B, ...]}` of the populations asked for, after each step.

    Example:
      >>> trace = simulate(model, spiking, inputs, steps=2)
      >>> trace.events["relu0"].tolist()
      [[1, 6], [1, 5]]
    """

    logits: Any
    traffic: dict[str, Traffic]
    spikes: dict[str, jax.Array]
    potentials: dict[str, jax.Array]

    @property
    def events(self) -> dict[str, jax.Array]:
        """`{name: [T, B]}`, quanta: a burst of k as k and a negative spike as one."""
        return {name: counts.quanta for name, counts in self.traffic.items()}

    def __repr__(self) -> str:
        """Shapes, not numbers."""
        shapes = {n: jax.tree.map(np.shape, x) for n, x in self._asdict().items()}
        return f"Trace({', '.join(f'{n}={found}' for n, found in shapes.items())})"


def compiler_options(network: Network) -> dict[str, Any]:
    """What to give `jax.jit` besides a function that simulates a network.

    On a CPU spikes are then computed once, not for every reader (`devices.optimised`).
    And XLA unrolls loops over up to 16 channels and vectorises over columns instead,
    with gathers: where most neurons are in such layers, as in CIFAR's ResNets, a lower
    level of optimisation saves a tenth of the time; wider networks lose by it.

    JAX takes options at the outermost `jit` only. What jaxburst compiles has them; a
    function that is compiled around it gets them from its caller.

    Example:
      >>> options = compiler_options(model.network)
      >>> run = jax.jit(lambda x: infer(model, spiking, x, 4), compiler_options=options)
      >>> run(inputs).tolist()
      [[0.5], [2.75]]
    """
    return optimised(2 if narrow(network) else None)


@lru_cache(maxsize=64)
def narrow(network: Network) -> bool:
    """Whether most neurons are in populations of up to 16 channels."""
    graph = network.graph
    sizes = {True: 0, False: 0}
    for node in graph.of(Neuron):
        shape = node.image_shape
        few = shape[graph.channel_axes[node.name]] <= 16
        sizes[few] += int(np.prod(shape))
    return sizes[True] > sizes[False]


def jitted(*static: str) -> Callable[[Callable], Callable]:
    """`jax.jit`, with `compiler_options` wherever it is the outermost transformation.

    Args: the names of static arguments besides the first, which is a model.
    """

    def decorate(function: Callable) -> Callable:
        jit = partial(jax.jit, function, static_argnames=("model", *static))
        within = jit()
        outermost = lru_cache(lambda options: jit(compiler_options=dict(options)))

        @wraps(function)
        def call(model: Model, *given):
            if traced(given) or traced(jnp.zeros(())):
                return within(model, *given)
            options = tuple(compiler_options(model.network).items())
            return outermost(options)(model, *given)

        return call

    return decorate


@door
def simulate(
    model: Model,
    spiking: Spiking,
    inputs,
    steps: int,
    *,
    record: str | tuple[str, ...] = (),
    schedule: str = "auto",
    platform: str | None = None,
) -> Trace:
    """Presents inputs for a number of time steps and records what is asked for.

    Memory does not grow with `steps` but for what is recorded (and, in layer order, up
    to the length of a block).

    Args:
      model, spiking: what is run, and its converted weights.
      inputs: `[B, ...]`, as the network takes them.
      steps: number of time steps `T`; static.
      record: names of populations whose spikes and potentials are wanted; static.
      schedule: the order of the work, see `plan`; static.
      platform: where it will run, if not here; static.

    Returns:
      The `Trace`: outputs and events of every step.

    Example:
      >>> trace = simulate(model, spiking, inputs, steps=2, record="relu0")
      >>> trace.spikes["relu0"][:, 1].tolist()  # of 2.5 and 0.25, a burst is 5
      [[5.0, 1.0], [5.0, 0.0]]
      >>> trace.logits[:, 1].tolist()
      [[3.0], [2.75]]
    """
    wrong = sorted(set(record) - set(model.network.neurons))
    if wrong:
        raise ValueError(
            f"simulate: cannot record {wrong}; the populations are "
            f"{list(model.network.neurons)}"
        )
    leaves = model.network.leaves(inputs)
    found = _simulate(model, spiking, leaves, steps, record, schedule, platform)
    return found._replace(logits=model.network.outputs(found.logits))


@jitted("steps", "record", "schedule", "platform")
def _simulate(model, spiking, leaves, steps, record, schedule, platform) -> Trace:
    circuit = prepare(model, spiking, platform)
    return trace_of(model, circuit, leaves, steps, schedule, record, platform)


def trace_of(
    model: Model,
    circuit: Circuit,
    leaves: list,
    steps: int,
    schedule: str | Plan = "auto",
    record: tuple[str, ...] = (),
    platform: str | None = None,
) -> Trace:
    """The `Trace` of a circuit; the outputs as a list."""
    graph, order = model.network.graph, schedule
    if not isinstance(order, Plan):
        order = plan(model.network, leaves[0].shape[0], steps, order, platform)

    def front(name: str, value) -> jax.Array:
        """The images in front of all else that is one image's."""
        node = graph[name]
        value = images_first(graph, name, value, node.batch_axis + 1)
        value = jnp.moveaxis(value, node.batch_axis + 1, 1)
        parts = node.image_shape[node.batch_axis]
        if parts == 1:
            return value
        return value.reshape(len(value), -1, parts, *value.shape[2:])

    def observe(_, info: Info) -> Trace:
        spikes = {name: front(name, info.spikes[name]) for name in record}
        potentials = {n: front(n, value) for n, value in info.potentials.items()}
        outputs = outputs_first(model.network, info.outputs, 1)
        return Trace(outputs, info.traffic, spikes, potentials)

    how = {"order": order, "record": record, "platform": platform}
    return unroll(model, circuit, leaves, steps, observe, **how)[1]


@door
def infer(
    model: Model,
    spiking: Spiking,
    inputs,
    steps: int,
    *,
    schedule: str = "auto",
    platform: str | None = None,
):
    """The outputs after `steps` time steps, and nothing else: logits `[B, classes]`.

    Args and errors: as `simulate`. Who calls it again and again with the same weights
    saves their preparation with `compiled`; who compiles a function around it gives
    `jax.jit` the `run.compiler_options` of the network.

    Example:
      >>> infer(model, spiking, inputs, steps=4).tolist()
      [[0.5], [2.75]]
    """
    leaves = model.network.leaves(inputs)
    found = _infer(model, spiking, leaves, steps, schedule, platform)
    return model.network.outputs(found)


@jitted("steps", "schedule", "platform")
def _infer(model, spiking, leaves, steps, schedule, platform):
    circuit = prepare(model, spiking, platform)
    return last_of(model, circuit, leaves, steps, schedule, platform)


def last_of(model, circuit, leaves, steps, schedule="auto", platform=None) -> list:
    """The outputs of a circuit after the last step."""
    count = leaves[0].shape[0]
    order = plan(model.network, count, steps, schedule, platform)

    def part(leaves):
        how = {"order": order._replace(images=len(leaves[0])), "platform": platform}
        state, _ = unroll(model, circuit, leaves, steps, lambda *_: (), **how)
        readout = partial(model.neuron.readout, t=state["time"])
        return outputs_first(model.network, map(readout, state["outputs"]))

    if order.images == count:
        return part(leaves)
    return _merged(jax.lax.map(part, _parts(leaves, order.images)))


def _parts(leaves: list, images: int) -> list:
    """A batch in equal parts, `[parts, images, ...]`."""
    return [x.reshape(-1, images, *x.shape[1:]) for x in leaves]


def _merged(found):
    """And back."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)
