"""Anytime inference: an image stops as soon as its decision is settled.

    margins = settle(model, spiking, images, steps=4)       # images without labels
    result = evaluate_anytime(model, spiking, split, margins)
    print(result.accuracy, result.steps)                    # mean steps per image

The margin of an image is its largest logit minus its second largest. Images that have
stopped leave the batch, which shrinks through a few fixed sizes, each compiled once: it
saves steps and energy always, and time where a step costs more than moving the images.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from jaxburst.conversion import Spiking
from jaxburst.data import Split, batches, check_normalised
from jaxburst.layers import walk
from jaxburst.progress import track
from jaxburst.simulation import (
    Model,
    State,
    build,
    check,
    drive,
    readout,
    rest,
    simulate,
    step,
)

_SIZES = 4  # the batch, a half, a quarter and an eighth: each is a compilation


class Margins(NamedTuple):
    """When to stop: after step `t` if the margin is at least `threshold[t - 1]`.

    Attributes:
      threshold: `[T]`, in units of the logits; infinite where no image should stop. All
        images stop after step `T`, so that the last one does not matter.
    """

    threshold: np.ndarray


class Decisions(NamedTuple):
    """What a batch of images came to.

    Attributes:
      classes: `[B]`, the largest logit of each image when it stopped.
      steps: `[B]`, after how many steps it stopped, 1 .. T.
      events: `{path: [T, B]}`, as in `Trace`; 0 once an image has stopped.
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
      events: `{path: [T]}`, mean events per image at step `t`, over all images: one
        that has stopped counts 0. So `energy.joules(...)[-1]` is the mean energy.
      images: number of images.
    """

    accuracy: float
    steps: float
    stopped: np.ndarray
    events: dict[str, np.ndarray]
    images: int


def settle(
    model: Model,
    spiking: Spiking,
    images: np.ndarray,
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
      model: the network, neuron and pooling.
      spiking: its converted weights.
      images: calibration images `[N, H, W, C]`, normalised; no labels.
      steps: number of time steps `T` after which every image stops.
      agreement: share, 0 .. 1, of the images stopped at any one step whose decision
        must be that of step `T`. It holds on these images. Others agree less, above
        all if the network was trained on these: prefer some that it was not.
      batch_size: number of images at a time.

    Returns:
      The `Margins`; infinite where none qualifies or no image is still running.

    Raises:
      ValueError: for an agreement that is no share, no images, or images or weights
        that do not fit the network.
    """
    if not 0 <= agreement <= 1:
        raise ValueError(f"settle: agreement must lie in 0 .. 1, found {agreement}")
    if len(images) == 0:
        raise ValueError("settle: the calibration set is empty; pass some images")
    _check_classes(model)
    classes, margins = _course(model, spiking, images, steps, batch_size)
    agrees = classes == classes[-1]
    threshold = np.full(steps, np.inf)
    running = np.ones(len(images), bool)
    for t in range(steps):
        threshold[t] = _least(margins[t, running], agrees[t, running], agreement)
        running &= ~(margins[t] >= threshold[t])
    return Margins(threshold)


def _course(model, spiking, images, steps, batch_size):
    """Decisions and margins after each step, `[T, N]`."""
    batch_size = min(batch_size, len(images))
    rows = []
    for start in range(0, len(images), batch_size):
        batch = np.asarray(images[start : start + batch_size])
        padded = batch[np.arange(batch_size) % len(batch)]
        logits = simulate(model, spiking, padded, steps).logits
        rows.append([np.asarray(x)[:, : len(batch)] for x in _leading(logits)])
    return (np.concatenate(parts, axis=1) for parts in zip(*rows, strict=True))


def _least(margins: np.ndarray, agrees: np.ndarray, agreement: float) -> float:
    """The smallest margin above which the share that agrees is large enough."""
    order = np.argsort(-margins)
    margins = margins[order].astype(np.float64)
    shares = np.cumsum(agrees[order]) / np.arange(1, len(order) + 1)
    below = np.append(margins, -margins[-1:])[1:]  # 0 is half way below the last
    separate = (margins > below) | (np.arange(len(order)) == len(order) - 1)
    fits = np.flatnonzero((shares >= agreement) & separate)
    return float(margins[fits[-1]] + below[fits[-1]]) / 2 if len(fits) else np.inf


def decide(
    model: Model, spiking: Spiking, images: jax.Array, margins: Margins
) -> Decisions:
    """Presents one batch of images, each until its decision is settled.

    Args:
      model: the network, neuron and pooling.
      spiking: its converted weights.
      images: `[B, H, W, C]`, normalised.
      margins: when to stop, from `settle`.

    Returns:
      The `Decisions`: what `simulate` shows of each image up to the step it stopped at.

    Raises:
      ValueError: for margins that are not `[T]`, or images or weights that do not fit
        the network.
    """
    check_normalised(images)
    threshold = _thresholds(model, margins)
    check(model, spiking, images.shape, len(threshold))
    circuit = build(model, spiking, images.shape[1:])
    return _decide(model, circuit, images, threshold, len(images))


def _decide(model, circuit, images, threshold, count) -> Decisions:
    """As `decide`, for the first `count` images; the others only fill the batch."""
    size = len(images)
    smallest = max(1, size >> (_SIZES - 1))
    found = Decisions(np.zeros(count, np.int32), np.zeros(count, np.int32), {})
    running = rows = np.arange(count)  # images, and where in the batch they are
    current, state = _begin(model, circuit, images)
    for t in range(len(threshold)):
        while size > smallest and len(rows) <= size // 2:
            size //= 2
            current, state = _take(current, state, np.resize(rows, size))
            rows = np.arange(len(rows))
        state, shown = _advance(model, circuit, current, state)
        classes, margins, events = jax.device_get(shown)
        found.classes[running] = classes[rows]
        found.steps[running] = t + 1
        for path, number in events.items():
            if t == 0:
                found.events[path] = np.zeros((len(threshold), count), number.dtype)
            found.events[path][t, running] = number[rows]
        unsettled = ~(margins[rows] >= threshold[t])
        running, rows = running[unsettled], rows[unsettled]
        if len(running) == 0:
            break
    return found


def evaluate_anytime(
    model: Model,
    spiking: Spiking,
    split: Split,
    margins: Margins,
    *,
    batch_size: int = 100,
    progress: bool = True,
) -> Anytime:
    """Simulates a whole data set, each image until its decision is settled.

    Args:
      model: the network, neuron and pooling.
      spiking: its converted weights.
      split: images and labels; labels are for the accuracy only.
      margins: when to stop, from `settle`.
      batch_size: number of images at a time; it shrinks by halves, to an eighth. A last
        partial batch is padded, and what was padded is not counted.
      progress: whether to show a progress bar.

    Returns:
      The means, as `Anytime`.

    Raises:
      ValueError: for an empty split, margins that are not `[T]`, or images or weights
        that do not fit the network.
    """
    if len(split) == 0:
        raise ValueError("evaluate_anytime: there are no images in this split")
    threshold = _thresholds(model, margins)
    batch_size = min(batch_size, len(split))
    shape = (batch_size, *split.images.shape[1:])
    check(model, spiking, shape, len(threshold))
    circuit = build(model, spiking, shape[1:])
    correct = 0
    stopped = np.zeros(len(threshold), np.int64)
    events: dict[str, np.ndarray] = {}
    parts = batches(split, batch_size)
    if progress:
        count = -(-len(split) // batch_size)
        parts = track(parts, f"Simulating up to {len(threshold)} steps", count)
    for part, inputs in parts:
        found = _decide(model, circuit, inputs, threshold, len(part))
        correct += int((found.classes == part.labels).sum())
        stopped += np.bincount(found.steps - 1, minlength=len(stopped))
        for path, count in found.events.items():
            events[path] = events.get(path, 0) + count.sum(1, dtype=np.int64)
    ordered = [path for path, _ in walk(model.layers) if path in events]
    return Anytime(
        accuracy=correct / len(split),
        steps=float(stopped @ np.arange(1, len(stopped) + 1)) / len(split),
        stopped=stopped,
        events={path: events[path] / len(split) for path in ordered},
        images=len(split),
    )


@partial(jax.jit, static_argnames="model")
def _begin(model: Model, circuit: Spiking, images: jax.Array):
    return drive(model, circuit, images), rest(model, circuit, images.shape)


@jax.jit
def _take(current: jax.Array, state: State, rows: jax.Array):
    """Some images of a batch; the time, which has no axis, is everyone's."""
    return jax.tree.map(lambda x: x[rows] if x.ndim else x, (current, state))


@partial(jax.jit, static_argnames="model")
def _advance(model: Model, circuit: Spiking, current: jax.Array, state: State):
    """One step of a batch: the state, and `(classes, margins, events)`, each `[B]`."""
    state, info = step(model, circuit, current, state)
    return state, (*_leading(readout(model, state)), info.events)


def _leading(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The decision, and its margin over the second largest logit, `[...]`."""
    best, classes = jax.lax.top_k(logits, 2)
    return classes[..., 0], best[..., 0] - best[..., 1]


def _thresholds(model: Model, margins: Margins) -> np.ndarray:
    _check_classes(model)
    threshold = np.asarray(margins.threshold, np.float64)
    if threshold.ndim != 1 or len(threshold) == 0 or np.isnan(threshold).any():
        raise ValueError(
            "margins must hold one threshold per time step, [T], infinite where no "
            f"image should stop; found {threshold.tolist()}"
        )
    return threshold


def _check_classes(model: Model) -> None:
    if model.layers[-1].features < 2:
        raise ValueError(
            "the margin needs two classes or more; the last Dense of this network has "
            "one feature"
        )
