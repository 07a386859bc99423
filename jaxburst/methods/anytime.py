"""Anytime inference: an image stops as soon as its decision is settled.

    margins = settle(model, spiking, inputs, steps=4)       # images without labels
    result = evaluate_anytime(model, spiking, (test, labels), margins)
    print(result.accuracy, result.steps)                    # mean steps per image

The margin of an image is its largest logit minus its second largest. Images that have
stopped leave the batch, which shrinks through a few fixed sizes, each compiled once: it
saves steps and energy always, and time where a step costs more than moving the images.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxburst.batching import batches, gather, length, together
from jaxburst.checks import door
from jaxburst.circuit import (
    Circuit,
    State,
    block,
    constants,
    outputs_first,
    prepared,
    rest,
)
from jaxburst.convert import Spiking
from jaxburst.evaluation import pair
from jaxburst.graph import Node, Pool, Product
from jaxburst.methods.channels import has_classes
from jaxburst.model import Model
from jaxburst.run import compiler_options, jitted, trace_of

__all__ = [
    "Anytime",
    "Decisions",
    "Margins",
    "decide",
    "evaluate_anytime",
    "settle",
]

_SIZES = 4  # the batch, a half, a quarter and an eighth: each is a compilation


class Margins(NamedTuple):
    """When to stop: after step `t` if the margin is at least `threshold[t - 1]`.

    Attributes:
      threshold: `[T]`, in units of the logits; infinite where no image should stop. All
        images stop after step `T`, so that the last one does not matter.

    Example:
      >>> import math
      >>> # Never after step 1; after step 2 all stop
      >>> decide(two, of_two, inputs, Margins(np.array([math.inf, 0.0]))).steps.tolist()
      [2, 2]
    """

    threshold: np.ndarray


class Decisions(NamedTuple):
    """What a batch of images came to.

    Attributes:
      classes: `[B]`, the largest logit of each image when it stopped.
      steps: `[B]`, after how many steps it stopped, 1 .. T.
      events: `{name: [T, B]}`, as in `Trace`; 0 once an image has stopped.

    Example:
      >>> found = decide(two, of_two, inputs, Margins(np.zeros(2)))
      >>> found.events["relu0"].tolist()  # both stop after one step
      [[1, 6], [0, 0]]
    """

    classes: np.ndarray
    steps: np.ndarray
    events: dict[str, np.ndarray]


class Anytime(NamedTuple):
    """Means over a data set whose images stop when they are settled.

    Attributes:
      accuracy: share of the images that are right when they stop.
      steps: mean number of steps of an image.
      stopped: `[T]`, number of images that stopped after `t` steps.
      events: `{name: [T]}`, mean events per image at step `t`, over all images: one
        that has stopped counts 0. So `energy.joules(...)[-1]` is the mean energy.
      images: number of images.

    Example:
      >>> data = inputs, np.array([0, 1])
      >>> found = evaluate_anytime(
      ...     two, of_two, data, Margins(np.zeros(2)), progress=False)
      >>> found.accuracy, found.steps
      (0.5, 1.0)
    """

    accuracy: float
    steps: float
    stopped: np.ndarray
    events: dict[str, np.ndarray]
    images: int


@door
def settle(
    model: Model,
    spiking: Spiking,
    inputs,
    steps: int,
    *,
    agreement: float = 0.999,
    batch_size: int = 100,
) -> Margins:
    r"""Chooses the margins from images without labels.

    .. math::
        m_t = \inf \Big\{ m \ge 0 : \frac{|\{i \in R_t : m_t^i \ge m, y_t^i = y_T^i\}|}
        {|\{i \in R_t : m_t^i \ge m\}|} \ge \mathrm{agreement} \Big\}

    where :math:`R_t` are the images still running, :math:`m_t^i` is the margin of image
    `i` after step `t` and :math:`y_t^i` its decision. The threshold lies half way
    between the last margin that qualifies and the next one below.

    Decisions are compared with the spiking network's own after all steps, not with
    those of the trained network: the share is then the price of stopping early, and
    what the conversion costs at step `T` is not blamed on it.

    Args:
      model, spiking: what is run, and its converted weights.
      inputs: calibration inputs `[N, ...]`, normalised; no labels.
      steps: number of time steps `T` after which every image stops.
      agreement: share, 0 .. 1, of the images stopped at any one step whose decision
        must be that of step `T`. It holds on these images. Others agree less, above
        all if the network was trained on these: prefer some that it was not.

    Returns:
      The `Margins`; infinite where none qualifies or no image is still running.

    Example:
      >>> settle(two, of_two, inputs, steps=2).threshold.tolist()  # stop at once
      [0.0, inf]
    """
    _check_classes(model)
    course, circuit = _courses(model, steps), prepared(model, spiking)
    options = compiler_options(model.network)
    found = gather(course, circuit, inputs, batch_size, options=options)
    classes, margins = (x.T for x in found)
    agrees = classes == classes[-1]
    threshold = np.full(steps, np.inf)
    running = np.ones(classes.shape[1], bool)
    for t in range(steps):
        threshold[t] = _least(margins[t, running], agrees[t, running], agreement)
        running &= ~(margins[t] >= threshold[t])
    return Margins(threshold)


@lru_cache(maxsize=8)
def _courses(model: Model, steps: int):
    """Decisions and margins after each step, `[B, T]`."""

    def function(circuit, batch):
        leaves = model.network.leaves(batch)
        trace = trace_of(model, circuit, leaves, steps)
        return tuple(x.T for x in _leading(trace.logits[0]))

    return function


def _least(margins: np.ndarray, agrees: np.ndarray, agreement: float) -> float:
    """The smallest margin above which the share that agrees is large enough."""
    order = np.argsort(-margins)
    margins = margins[order].astype(np.float64)
    shares = np.cumsum(agrees[order]) / np.arange(1, len(order) + 1)
    below = np.append(margins, -margins[-1:])[1:]  # 0 is half way below the last
    separate = (margins > below) | (np.arange(len(order)) == len(order) - 1)
    fits = np.flatnonzero((shares >= agreement) & separate)
    return float(margins[fits[-1]] + below[fits[-1]]) / 2 if len(fits) else np.inf


@door
def decide(model: Model, spiking: Spiking, inputs, margins: Margins) -> Decisions:
    """Presents one batch of images, each until its decision is settled.

    Args: as for `simulate`, and when to stop, from `settle`.

    Returns:
      The `Decisions`: what `simulate` shows of each image up to the step it stopped at.

    Example:
      >>> found = decide(two, of_two, inputs, Margins(np.zeros(2)))
      >>> found.classes.tolist(), found.steps.tolist()
      ([0, 0], [1, 1])
    """
    _check_classes(model)
    leaves, circuit = model.network.leaves(inputs), prepared(model, spiking)
    return _decide(model, circuit, leaves, margins, len(leaves[0]))


def _decide(model, circuit, leaves, margins: Margins, count) -> Decisions:
    """As `decide`, for the first `count` images; the others only fill the batch."""
    threshold, size = np.asarray(margins.threshold, np.float64), len(leaves[0])
    model.neuron.check_steps(len(threshold))
    smallest = max(1, size >> (_SIZES - 1))
    found = Decisions(np.zeros(count, np.int32), np.zeros(count, np.int32), {})
    running = rows = np.arange(count)  # images, and where in the batch they are
    held, state = _begin(model, circuit, leaves)
    for t in range(len(threshold)):
        while size > smallest and len(rows) <= size // 2:
            size //= 2
            held, state = _take(model, held, state, np.resize(rows, size))
            rows = np.arange(len(rows))
        state, shown = _advance(model, circuit, held, state)
        classes, margins, events = jax.device_get(shown)
        found.classes[running] = classes[rows]
        found.steps[running] = t + 1
        for name, number in events.items():
            if t == 0:
                found.events[name] = np.zeros((len(threshold), count), number.dtype)
            found.events[name][t, running] = number[rows]
        unsettled = ~(margins[rows] >= threshold[t])
        running, rows = running[unsettled], rows[unsettled]
        if len(running) == 0:
            break
    return found


@door
def evaluate_anytime(
    model: Model,
    spiking: Spiking,
    data,
    margins: Margins,
    *,
    batch_size: int = 100,
    progress: bool = True,
) -> Anytime:
    """Simulates a whole data set, each image until its decision is settled.

    Several processes share the data.

    Args:
      model, spiking: what is run, and its converted weights.
      data: `(inputs, labels)`, both `[N, ...]`, or a `Split`; labels are for the
        accuracy only.
      margins: when to stop, from `settle`.
      batch_size: number of images at a time; it shrinks by halves, to an eighth. A last
        partial batch is filled up, and what fills it is not counted.

    Returns:
      The means, as `Anytime`.

    Example:
      >>> data = inputs, np.array([0, 1])
      >>> found = evaluate_anytime(
      ...     two, of_two, data, Margins(np.zeros(2)), progress=False)
      >>> found.stopped.tolist()
      [2, 0]
    """
    _check_classes(model)
    data, steps, names = pair(data), len(margins.threshold), model.network.senders
    count, circuit = length(data), prepared(model, spiking)
    right, stopped = 0, np.zeros(steps, np.int64)
    events = {name: np.zeros(steps, np.int64) for name in names}
    words = f"Simulating up to {steps} steps" if progress else ""
    for rows, (batch, labels) in batches(data, batch_size, words):
        leaves = model.network.leaves(batch)
        found = _decide(model, circuit, leaves, margins, rows)
        right += int((found.classes == labels[:rows]).sum())
        stopped += np.bincount(found.steps - 1, minlength=steps)
        for name, number in found.events.items():
            events[name] += number.sum(1, dtype=np.int64)
    right, stopped, events = together((np.int64(right), stopped, events))
    return Anytime(
        accuracy=float(right) / count,
        steps=float(stopped @ np.arange(1, len(stopped) + 1)) / count,
        stopped=stopped,
        events={name: events[name] / count for name in names},
        images=count,
    )


@partial(jax.jit, static_argnames="model")
def _begin(model: Model, circuit: Circuit, leaves: list):
    return constants(model, circuit, leaves), rest(model, circuit, len(leaves[0]))


@partial(jax.jit, static_argnames="model")
def _take(model: Model, held: dict, state: State, rows: jax.Array):
    """Some images of a batch; what has no axis of images is everyone's."""
    graph = model.network.graph

    def of(node: Node, tree):
        axis = node.batch_axis
        if axis is None:
            return tree
        ahead = graph.ahead[node.name]
        own = node.image_shape[axis] // ahead  # rows that stand together for an image

        def chosen(x):
            if not x.ndim:
                return x
            around = (*x.shape[:axis], ahead, -1, own, *x.shape[axis + 1 :])
            found = jnp.take(x.reshape(around), rows, axis + 1)
            return found.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])

        return jax.tree.map(chosen, tree)

    held = {name: of(graph[name], value) for name, value in held.items()}
    found = dict(state)
    for node in graph.nodes:
        before = state.get(node.name)
        if isinstance(node.role, Pool | Product) and before is not None:
            # What arrived from each, and what was passed on.
            owners = [*map(graph.__getitem__, node.inputs), node]
            found[node.name] = type(before)(*map(of, owners, before))
        elif before is not None:
            found[node.name] = of(node, before)
    pairs = zip(graph.outputs, state["outputs"], strict=True)
    found["outputs"] = tuple(of(graph[name], total) for name, total in pairs)
    return held, found


@jitted()
def _advance(model: Model, circuit: Circuit, held: dict, state: State):
    """One step of a batch: the state, and `(classes, margins, events)`, each `[B]`."""
    state, info = block(model, circuit, held, state)
    (logits,) = outputs_first(model.network, [value[0] for value in info.outputs])
    events = {name: counts.quanta[0] for name, counts in info.traffic.items()}
    return state, (*_leading(logits), events)


def _leading(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The decision, and its margin over the second largest logit, `[...]`."""
    best, classes = jax.lax.top_k(logits, 2)
    return classes[..., 0], best[..., 0] - best[..., 1]


def _check_classes(model: Model) -> None:
    network = model.network
    shapes = [network.graph[name].image_shape[1:] for name in network.graph.outputs]
    if not has_classes(network) or len(shapes[0]) != 1:
        raise ValueError(
            "the margin needs logits [B, classes] as the only output, of two classes "
            f"or more; an image's outputs have the shapes {shapes}"
        )
