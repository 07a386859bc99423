"""Networks beyond ReLU as refining spikes, beside their activations rounded once.

What foreign.py, pitch.py and transformer.py share.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import common
import numpy as np

import jaxburst as jb
from jaxburst.methods.rounding import rounded


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(common.Experiment):
    """How a network is converted.

    Attributes:
      calibration: how many inputs thresholds are chosen on.
      steps: time steps of refining spikes.
      bits: of the activations that are rounded once.
      levels: of the first step of refining spikes; more cost more, and are closer.
      at_once: inputs at a time; memory grows with it.
      seed: of what is drawn.
    """

    calibration: int = 500
    steps: int = 8
    bits: int = 5
    levels: int = 4
    at_once: int = 50
    seed: int = 0


def right(outputs, targets) -> np.ndarray:
    """Which inputs get the right class."""
    return outputs.argmax(-1) == targets


def compared(
    config: Config, network: jb.Network, variables, calibration, data, metric, says: str
) -> dict:
    """Measures a network, its activations rounded once, and refining spikes.

    Args:
      config: how the network is converted.
      network: the network.
      variables: its trained variables.
      calibration: inputs `[N, ...]` that thresholds are chosen on.
      data: inputs and targets `[M, ...]`; None for the network's own outputs.
      metric: of the first output and targets of a batch, a number for each.
      says: what the metric is.

    Returns:
      A record; `table` prints it.
    """
    inputs, targets = data
    outputs = common.outputs(network, variables, inputs, config.at_once)
    data = inputs, outputs if targets is None else targets

    def course(convert: Callable, steps: int, **settings) -> dict:
        start, size = time.perf_counter(), config.at_once
        task = network, variables, calibration
        model, spiking = convert(*task, batch_size=size, **settings)
        converted = time.perf_counter()
        times, curves = common.scores(model, spiking, data, steps, metric, size)
        traffic = curves.traffic.values()
        return _summed(times) | {
            "energy_over_ann": jb.energy.relative(network, curves.events),
            "events": sum(of.events for of in traffic),
            "quanta": sum(of.quanta for of in traffic),
            "seconds_to_convert": converted - start,
            "seconds_to_simulate": time.perf_counter() - converted,
        }

    preset = partial(jb.presets.refining, levels=config.levels)
    return {
        "metric": says,
        "inputs": len(inputs),
        "macs": sum(jb.energy.macs(network).values()),
        "populations": len(network.neurons),
        "products": len(network.products),
        "network": _summed(np.array([metric(outputs, data[1])], np.float64)),
        "rounded": course(rounded, 1, bits=config.bits) | {"bits": config.bits},
        "refining": course(preset, config.steps),
    }


def _summed(times: np.ndarray) -> dict:
    """Means and their standard errors, one for each time, of `[T, N]`."""
    error = times.std(1) / np.sqrt(times.shape[1])
    return {"mean": times.mean(1), "standard_error": error}


def _parts(record: dict) -> dict[str, dict]:
    """What was compared, by the name that a curve has."""
    config = record["config"]
    name = config.get("network") or config.get("arch")
    return record.get("levels") or {name: record}


def text(record: dict) -> str:
    """A table for each that was compared."""
    parts = _parts(record).items()
    return "\n\n".join(
        table(one) if one is record else f"{name}\n\n{table(one)}"
        for name, one in parts
    )


def table(record: dict) -> str:
    """The metric in percent with its standard error, and energy over the network's."""
    labels = {
        "network": "itself",
        "rounded": f"rounded once to {record['rounded']['bits']} bits",
        "refining": "refining spikes",
    }
    lines = []
    for name, label in labels.items():
        row = record[name]
        for t, mean in enumerate(row["mean"]):
            says = f"{100 * mean:.2f} ± {100 * row['standard_error'][t]:.2f}"
            spent = row.get("energy_over_ann")
            step, energy = (str(t + 1), f"{spent[t]:.2f}") if spent else ("", "")
            lines.append([label, step, says, energy])
    head = ["", "T", f"{record['metric']}, %", "energy over its own"]
    return common.markdown(head, lines, ["---", "--:", "--:", "--:"])


def draw(record: dict, folder: Path) -> None:
    """The metric over time with bars of 95 %, a curve for each; dashed: the network."""
    path = folder / f"{record['experiment']}.png"
    with common.figure(path, figsize=(6.4, 4)) as (_, axis):
        for (name, one), colour in zip(
            _parts(record).items(), jb.plot.COLOURS, strict=False
        ):
            mean = 100 * np.array(one["refining"]["mean"])
            half = 196 * np.array(one["refining"]["standard_error"])
            style = {"color": colour, "marker": "o", "label": name, "capsize": 2}
            axis.errorbar(np.arange(len(mean)) + 1, mean, half, **style)
            axis.axhline(100 * one["network"]["mean"][0], color=colour, ls="--", lw=1)
        axis.set(
            xlabel="time steps",
            ylabel=f"{one['metric']} (%)",
            title="Refining spikes; dashed: the network itself; bars: 95 %",
        )
        axis.legend()
