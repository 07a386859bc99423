"""What each part of a network costs, beside the conventional network."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxburst.checks import door
from jaxburst.energy.costs import HOROWITZ_FP32, Cost
from jaxburst.energy.counting import Events, depth, size_of
from jaxburst.energy.pricing import (
    COLUMNS,
    ann_joules,
    ann_spent,
    joules,
    parts_of,
    prices,
    spent_by_step,
)
from jaxburst.model import Model
from jaxburst.network import Network
from jaxburst.text import aligned


@door(network="subject", spiking="mapping")
def relative(
    network: Network | Model,
    events,
    *,
    cost: Cost = HOROWITZ_FP32,
    unit: str = "quanta",
    spiking: dict | None = None,
    first_layer: str = "once",
    reuse: str = "no",
) -> np.ndarray:
    """Energy up to each step over the conventional network's.

    Args: as for `joules`, and `reuse` as for `ann_joules`.

    Example:
      >>> # 4 products once; 2 and 3 additions; over 6 products
      >>> spent = relative(network, {"relu0": np.array([2.0, 3.0])})
      >>> [round(float(x), 3) for x in spent]
      [0.732, 0.83]
    """
    spent = joules(
        network, events, cost=cost, unit=unit, spiking=spiking, first_layer=first_layer
    )
    return spent / ann_joules(network, cost=cost, reuse=reuse)


@dataclasses.dataclass(frozen=True)
class Report:
    """What each part of a network costs, in joules per image; as a string, a table
    without the columns in which all is 0.

    Attributes:
      cost: the name of the cost model.
      unit: what events are charged in.
      baseline: the row that `relative` is over.
      rows: one for each number of steps and each conventional network: `name`; of
        spiking ones `steps`, and `latency`, in slots, with the depth of the pipeline;
        the `COLUMNS`; `total`; `step`, what the last step alone cost; `relative`.

    Example:
      >>> labels = np.zeros(2, int)
      >>> curves = jb.evaluate(model, spiking, (inputs, labels), 2, progress=False)
      >>> found = report(model, curves)
      >>> found.cost, found.unit
      ('horowitz_fp32', 'quanta')
    """

    cost: str
    unit: str
    baseline: str
    rows: tuple[dict, ...]

    def __getitem__(self, name: str) -> dict:
        """The row of that name, such as `'T = 3'` or `'full reuse'`."""
        return next(row for row in self.rows if row["name"] == name)

    def __str__(self) -> str:
        paid_for = [h for h in COLUMNS if any(row[h] for row in self.rows)]
        heads = [*paid_for, "total", "step"]
        lines = [["", "T", "latency", *heads, "relative"]]
        for row in self.rows:
            paid = ["" if row[h] is None else f"{row[h] * 1e9:,.1f}" for h in heads]
            times = row["steps"] or "", row["latency"] or ""
            lines.append([row["name"], *times, *paid, f"{row['relative']:.3f}"])
        return (
            f"{self.cost}, charged in {self.unit}; nanojoules per image; relative to "
            f"{self.baseline}\n{aligned(lines)}"
        )


@door(network="subject", spiking="mapping")
def report(
    network: Network | Model,
    events,
    *,
    cost: Cost = HOROWITZ_FP32,
    unit: str = "quanta",
    baseline: str = "no reuse",
    bits: int | None = None,
    rounded=None,
    spiking: dict | None = None,
    first_layer: str = "once",
) -> Report:
    """A table of what is paid for, beside the conventional network's.

    Args:
      network, events, cost, unit, spiking, first_layer: as for `joules`. Counts of
        several images are averaged.
      baseline: the conventional network that `relative` is over: `'no reuse'` or
        `'full reuse'`, alone or after `'4 bits, '` or `'4 bits, zeros skipped, '`.
      bits: of the activations of the quantised network, by default as many as the
        largest number needs that the neurons of a `Model` send, otherwise 8.
      rounded: the `Curves` of that network, run for one step (`rounded` makes it): for
        rows in which zeros are skipped.

    Returns:
      The `Report`; print it.

    Raises:
      ValueError: as `joules`, and for a baseline that is no row.

    Example:
      >>> found = report(network, {"relu0": np.array([2.0, 1.0])})
      >>> f"{found['T = 2']['total']:.3g}", f"{found['no reuse']['total']:.3g}"
      ('2.11e-11', '2.76e-11')
    """
    spent = spent_by_step(network, events, cost, unit, spiking, first_layer)
    spent = spent.reshape(len(spent), -1, len(COLUMNS)).mean(1)
    net, _, needed, slots = parts_of(network)
    bits, late = bits or needed or 8, depth(net)
    found = {}
    for t, total in enumerate(np.cumsum(spent, 0), 1):
        latency, last = slots * (t + late), float(spent[t - 1].sum()) * 1e-12
        found[f"T = {t}"] = (t, latency, total, last)
    kinds = {"": {}, f"{bits} bits, ": {"bits": bits}}
    if rounded is not None:
        kinds[f"{bits} bits, zeros skipped, "] = {"bits": bits, "sent": rounded}
    for kind, options in kinds.items():
        for reuse in ("no", "full"):
            total = ann_spent(net, cost, reuse, spiking=spiking, **options)
            found[f"{kind}{reuse} reuse"] = (None, None, total, None)
    conventional = [name for name, row in found.items() if row[0] is None]
    if baseline not in conventional:
        raise ValueError(f"baseline must be one of {conventional}, found {baseline!r}")
    least, rows = found[baseline][2].sum(), []
    for name, (t, latency, total, last) in found.items():
        paid = dict(zip(COLUMNS, (total * 1e-12).tolist(), strict=True))
        row = {"name": name, "steps": t, "latency": latency} | paid
        row |= {"total": float(total.sum()) * 1e-12, "step": last}
        rows.append(row | {"relative": float(total.sum() / least)})
    return Report(cost.name, unit, baseline, tuple(rows))


@door(network="subject")
def break_even(
    network: Network | Model,
    steps: int,
    *,
    cost: Cost = HOROWITZ_FP32,
    unit: str = "events",
    reuse: str = "no",
    bits: int | None = None,
    sent: Events | None = None,
) -> np.ndarray:
    """How often neurons may fire before spikes cost more than the conventional network.

    Every neuron is taken to send as often, and every pool to pass on as much.

    Args: as for `prices`, where a graded event in `'digits'` has one digit, and for
    `ann_joules`.

    Returns:
      `[T]`, events per neuron and step; times `t`, about the spikes per synapse of a
      whole run. Negative where the network costs more without any.

    Example:
      >>> break_even(network, 2).round(2).tolist()  # 9.2 pJ buy two events of 4.6
      [1.0, 0.5]
    """
    own = prices(network, cost=cost, unit=unit)
    net = parts_of(network)[0]
    dense = ann_joules(net, cost=cost, reuse=reuse, bits=bits, sent=sent) * 1e12
    times = np.arange(1, steps + 1)
    each = sum(
        size_of(net.graph[name]) * (own.event[name] + own.operation[name]).sum()
        for name in own.event
    )
    return (dense - own.once.sum() - times * own.step.sum()) / (times * each)
