"""Whole data sets: accuracy and events at every time step, and compiled inference."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxburst.batching import batches, even_size, length, sweep, together
from jaxburst.checks import door, refuse
from jaxburst.circuit import prepared
from jaxburst.convert import Spiking
from jaxburst.devices import data_parallel, per_device, share
from jaxburst.model import Model
from jaxburst.network import Network
from jaxburst.run import compiler_options, last_of, plan, trace_of
from jaxburst.traffic import Traffic

Metric = Callable[[Any, Any], Any]


class Curves(NamedTuple):
    """Means over a data set, for every time step.

    Attributes:
      accuracy: `[T]`, mean of the metric over the images when read out after `t`
        steps: by default the share of them that are right.
      traffic: `{name: Traffic}`, `[T]` each, mean counts per image of every population
        and pool at step `t` by itself.
      images: number of images.

    Example:
      >>> sent = jb.traffic.Traffic(np.array([4.0]), np.array([2.0]), np.array([3.0]))
      >>> Curves(np.array([0.9]), {"relu0": sent}, images=100).events["relu0"].tolist()
      [4.0]
      >>> Curves(np.array([0.9]), {"relu0": sent}, images=100)
         T   metric      quanta      events      digits   (100 inputs)
         1   0.9000         4.0         2.0         3.0
    """

    accuracy: np.ndarray
    traffic: dict[str, Traffic]
    images: int

    @property
    def events(self) -> dict[str, np.ndarray]:
        """`{name: [T]}`, quanta: a burst of k as k and a negative spike as one."""
        return {name: counts.quanta for name, counts in self.traffic.items()}

    def __repr__(self) -> str:
        """A table over time: the metric, and what has been sent up to there, by all
        populations and pools, for an input."""
        sent = [np.sum(unit, 0) for unit in zip(*self.traffic.values(), strict=True)]
        units = "".join(f"{unit:>12}" for unit in Traffic._fields[: len(sent)])
        lines = [f"   T   metric{units}   ({self.images:,} inputs)"]
        for t, value in enumerate(self.accuracy):
            counts = (f"{unit[: t + 1].sum():>12,.1f}" for unit in sent)
            lines.append(f"{t + 1:>4} {value:>8.4f}{''.join(counts)}")
        return "\n".join(lines)


def top1(outputs, targets) -> np.ndarray:
    """Which images are right: the largest of their logits is at the label's place.

    Args: logits `[B, classes]` and labels `[B]`. Returns: `[B]`, True or False.

    Example:
      >>> top1(np.array([[1.0, 3.0], [2.0, 0.0]]), np.array([1, 1])).tolist()
      [True, False]
    """
    return np.asarray(outputs).argmax(-1) == np.asarray(targets)


@door
def evaluate(
    model: Model,
    spiking: Spiking,
    data,
    steps: int,
    *,
    metric: Metric | None = None,
    batch_size: int = 100,
    schedule: str = "auto",
    progress: bool = True,
) -> Curves:
    """Simulates a whole data set; one compilation serves all batches.

    All local devices share every batch, and several processes the data. Of images
    `OnDisk`, those of one batch are in memory at a time.

    Args:
      model, spiking: what is run, and its converted weights.
      data: `(inputs, targets)`, both `[N, ...]`, or a `Split`.
      steps: number of time steps `T`.
      metric: function of outputs and targets of a batch, NumPy both, that returns a
        number for each image, `[B]`; by default `top1`.
      batch_size: number of images at a time, rounded up to what the devices share
        evenly.
      schedule: the order of the work, see `run.plan`.

    Returns:
      The `Curves`.

    Example:
      >>> curves = evaluate(two, of_two, (inputs, np.array([0, 1])), 3, progress=False)
      >>> curves.accuracy.tolist(), curves.events["relu0"].tolist()
      ([0.5, 0.5, 0.5], [3.5, 3.0, 3.5])
    """
    (inputs, targets), metric = pair(data), metric or top1
    count, names = length(inputs), model.network.senders
    each = per_device(even_size(count, batch_size))
    order = plan(model.network, each, steps, schedule)
    total = np.zeros(steps)
    sums = {name: np.zeros((3, steps), np.int64) for name in names}
    parts = sweep(
        _course(model, steps, schedule), prepared(model, spiking), inputs, batch_size,
        description=f"Simulating {steps} steps, {order}" if progress else "",
        options=compiler_options(model.network),
    )  # fmt: skip
    # Targets stay on the host: they may be texts.
    for (rows, (outputs, traffic)), (_, wanted) in zip(
        parts, batches(targets, batch_size), strict=True
    ):
        wanted = _rows(wanted, rows)
        for t in range(steps):
            at = model.network.outputs([value[:rows, t] for value in outputs])
            scores = _each(metric(at, wanted), rows, f", after {t + 1} steps")
            total[t] += scores.sum()
        for name, counts in traffic.items():
            sums[name] += [one[:rows].sum(0, dtype=np.int64) for one in counts]
    total, sums = together((total, sums))
    means = {name: Traffic(*sums[name] / count) for name in names}
    return Curves(total / count, means, count)


@lru_cache
def _course(model: Model, steps: int, schedule: str) -> Callable:
    """Outputs and traffic of a batch, the images in front."""

    def course(circuit, batch):
        leaves = model.network.leaves(batch)
        trace = trace_of(model, circuit, leaves, steps, schedule)
        traffic = jax.tree.map(lambda count: count.swapaxes(0, 1), trace.traffic)
        return [value.swapaxes(0, 1) for value in trace.logits], traffic

    return course


def _rows(targets, rows: int):
    return jax.tree.map(lambda x: x[:rows], targets)


def _each(found, rows: int, when: str) -> np.ndarray:
    """What a metric returned: a finite number for each image."""
    found = np.asarray(found)
    if found.dtype.kind not in "biufV":
        refuse("metric", "a number for each image", found)
    found = found.astype(np.float64)
    if found.shape != (rows,):
        raise ValueError(
            "metric: expected one number for each image, of shape "
            f"{(rows,)}, found {found.shape}"
        )
    if not np.isfinite(found).all():
        raise ValueError(f"metric: a number is not finite{when}")
    return found


@door
def accuracy(
    network: Network,
    variables,
    data,
    *,
    metric: Metric | None = None,
    batch_size: int = 250,
) -> float:
    """The mean of a metric over a data set, of the trained network itself.

    Args: as for `evaluate`.

    Example:
      >>> of = {"hidden": np.eye(2), "out": np.eye(2)}
      >>> accuracy(two.network, of, (inputs, np.array([0, 1])))  # both answer 0
      0.5
    """
    (inputs, targets), metric, total = pair(data), metric or top1, 0.0
    parts = sweep(_answers(network), variables, inputs, batch_size)
    for (rows, outputs), (_, wanted) in zip(
        parts, batches(targets, batch_size), strict=True
    ):
        at = network.outputs([value[:rows] for value in outputs])
        total += float(_each(metric(at, _rows(wanted, rows)), rows, "").sum())
    return float(together(np.float64(total))) / length(inputs)


@lru_cache
def _answers(network: Network) -> Callable:
    """Outputs of a batch."""

    def run(variables, batch):
        return jax.tree.leaves(network(variables, batch))

    return run


@door
def compiled(
    model: Model, spiking: Spiking, steps: int, *, schedule: str = "auto"
) -> Callable:
    """Inference with its weights prepared once: a function of inputs alone.

    Its weights stay on the devices in the form that is fast there, and all local
    devices share a batch that they can share evenly. It compiles once for each size of
    batch.

    Args: as for `simulate`.

    Returns:
      `f(inputs)`, the outputs after `steps` steps: logits `[B, classes]`.

    Example:
      >>> compiled(model, spiking, steps=4)(inputs).tolist()
      [[0.5], [2.75]]
    """
    circuit = prepared(model, spiking)
    programs: dict[int, tuple] = {}

    def part(circuit, leaves):
        return last_of(model, circuit, leaves, steps, schedule)

    def answer(inputs):
        leaves = model.network.leaves(inputs)
        count = leaves[0].shape[0]
        if count not in programs:
            shard, replicate = share(count)
            run = jax.jit(
                data_parallel(part, count),
                compiler_options=compiler_options(model.network),
            )
            programs[count] = shard, replicate(circuit), run
        shard, weights, run = programs[count]
        return model.network.outputs(run(weights, shard(leaves)))

    return answer


def pair(data) -> tuple[Any, Any]:
    """`(inputs, targets)` of what was given as data, them or a `Split`."""
    return data.pair if hasattr(data, "pair") else data


def check_targets(network: Network, targets, count: int, metric) -> None:
    """Refuses labels that cannot be those of the images."""
    for leaf in jax.tree.leaves(targets):
        if len(leaf) != count:
            raise ValueError(
                f"labels: expected {count}, one for each image, found {len(leaf)}"
            )
    if metric is not None:
        return
    outputs = network.graph.outputs
    if len(outputs) != 1 or len(network.graph[outputs[0]].shape) != 2:
        raise ValueError(
            "metric: accuracy needs logits [B, classes] as the only output; pass a "
            "metric, a function of outputs and targets that returns [B] numbers"
        )
    classes = network.graph[outputs[0]].image_shape[1]
    labels = np.asarray(targets)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            "labels: expected whole numbers [N], the class of each image, found "
            f"{labels.dtype} {list(labels.shape)}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels: expected 0 .. {classes - 1}, as the network has {classes} "
            f"outputs, found {labels.min()} .. {labels.max()}"
        )
