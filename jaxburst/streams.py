"""Inputs that change over time: one frame at every step, one state carried on.

trace, state = stream(model, spiking, frames)             # [T, B, ...]
trace, state = stream(model, spiking, more, state)        # and so on
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxburst.checks import door, finite, traced
from jaxburst.circuit import Info, State, block, constants, outputs_first, prepare, rest
from jaxburst.convert import Spiking
from jaxburst.graph import Wire
from jaxburst.model import Model
from jaxburst.run import Trace, jitted


class Streamed(NamedTuple):
    """What is carried from one chunk of a stream to the next.

    Attributes:
      state: of the neurons, pools, products and outputs.
      held: what the last frame was, as far as no neuron leads to it.
      made: a mark of the weights, and the quantum, that it was made with.
    """

    state: State
    held: dict[str, jax.Array]
    made: jax.Array


@door(step="count")
def stream(
    model: Model,
    spiking: Spiking,
    frames,
    state: Streamed | None = None,
    *,
    step: int = 4,
) -> tuple[Trace, Streamed]:
    r"""Presents frames, one at every time step.

    Neurons that repeat receive frame `t` at step `t`; outputs are the mean over all
    frames so far. Neurons that send changes receive what has changed since the last
    frame and send what that changes, so that a still scene costs nothing, and the
    outputs are those of the frame. `Refining` neurons do so with the quantum of one
    step of a refinement, :math:`\theta_s = \theta / r^{s-1}`, as sigma-delta neurons:
    after any stream what they have sent stands for the network of the last frame, every
    population rounded to its quantum.

    Args:
      model: the network, neuron and pooling.
      spiking: its converted weights.
      frames: `[T, B, ...]`, as the network takes them, with time in front.
      state: what the call before returned; None at the beginning. Weights and `step`
        stay the same.
      step: of refining neurons, the step `s` whose quantum is sent. A correction for
        that step stands for all frames; limits and silence are not used.

    Returns:
      `(trace, state)`: outputs and events of every frame, and what the next call needs.

    Raises:
      ValueError: for frames that do not fit the network, and, with neurons that send
        changes, for a network that computes a mask from its inputs: where that changes,
        what has been sent before would not follow.

    Example:
      >>> trace, state = stream(model, spiking, jnp.stack([inputs, inputs]))
      >>> trace.logits[:, 1].tolist()  # of a still scene: a simulation
      [[3.0], [2.75]]
      >>> trace, state = stream(model, spiking, inputs[None], state)  # and so on
      >>> trace.logits.shape, int(state.state["time"])
      ((1, 2, 1), 3)

    References:
      O'Connor and Welling, "Sigma Delta Quantized Networks", ICLR 2017.
    """
    model.neuron.check_steps(step)
    if not model.neuron.repeats:
        _check_masks(model)
    model, spiking = _still(model, spiking, step)
    made = _mark(spiking)
    if state is not None and not traced((state, made)):
        finite("state", state, "begin anew: leave it out")
        if state.made != made:
            raise ValueError(
                "state: was made with other weights, or another step, than it is to go "
                "on with; leave it out to begin anew"
            )
    found, after = _stream(model, spiking, frames, state, made)
    return found._replace(logits=model.network.outputs(found.logits)), after


def _check_masks(model: Model) -> None:
    graph = model.network.graph
    for node in graph.of(Wire):
        moving = node.name in graph.dynamic and node.role.primitive.name == "select_n"
        if moving and node.role.operands[0] is None:
            raise ValueError(
                f"stream: {node.name} ({node.source}) chooses by a mask of the inputs; "
                "where that changes, what has been sent before would not follow; "
                "simulate every frame by itself"
            )


def _still(model: Model, spiking: Spiking, step: int) -> tuple[Model, Spiking]:
    """Neurons that send changes, at the quantum of one of their steps."""
    neuron, found = model.neuron, dict(spiking)
    for name in model.network.neurons if not neuron.repeats else ():
        neuron, found[name] = model.neuron.still(spiking[name], jnp.asarray(step))
    return dataclasses.replace(model, neuron=neuron), found


@jax.jit
def _mark(spiking: Spiking) -> jax.Array:
    """A number that other weights would hardly have: of their bits, and exact."""
    total = jnp.uint32(0)
    for leaf in map(jnp.ravel, jax.tree.leaves(spiking)):
        bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
        odd = jnp.arange(leaf.size, dtype=jnp.uint32) * 2 + 1
        total = total * 31 + (bits * odd).sum(dtype=jnp.uint32)
    return total


@jitted()
def _stream(model: Model, spiking: Spiking, frames, carried: Streamed | None, made):
    circuit, network = prepare(model, spiking), model.network
    leaves = jax.tree.leaves(frames)
    count = leaves[0].shape[1]

    def of(frame: list) -> dict[str, jax.Array]:
        return constants(model, circuit, network.leaves(_tree(network, frame)))

    def start() -> Streamed:
        held = of([jnp.zeros_like(x[0]) for x in leaves])
        held = jax.tree.map(jnp.zeros_like, held)
        return Streamed(rest(model, circuit, count), held, made)

    def shapes(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

    if carried is None:
        carried = start()
    elif shapes(carried) != shapes(jax.eval_shape(start)):
        raise ValueError(
            "state: expected what stream returned for this model and as many inputs, "
            "found that of others; leave it out to begin anew"
        )

    def advance(carried: Streamed, frame: list):
        state, before, _ = carried
        after = of(frame)
        changes = not model.neuron.repeats
        arriving = after
        if changes:
            arriving = {
                name: x - before[name] if jnp.issubdtype(x.dtype, jnp.inexact) else x
                for name, x in after.items()
            }
        state, info = block(model, circuit, arriving, state, changes=changes)
        return Streamed(state, after, made), _seen(network, info)

    carried, seen = jax.lax.scan(advance, carried, leaves)
    return seen, carried


def _tree(network, leaves: list) -> Any:
    return jax.tree.unflatten(network.tree[0], leaves)


def _seen(network, info: Info) -> Trace:
    """One step, without the axis of steps."""
    outputs = outputs_first(network, [value[0] for value in info.outputs])
    return Trace(outputs, jax.tree.map(lambda x: x[0], info.traffic), {}, {})
