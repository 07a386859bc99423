"""What foreign.py and transformer.py share: refining spikes beside one rounding."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from common import figure, markdown

import jaxburst as jb
from jaxburst.methods.rounding import rounded


def compared(
    network: jb.Network,
    variables,
    calibration: np.ndarray,
    data: tuple[np.ndarray, np.ndarray | None],
    metric: Callable,
    says: str,
    *,
    steps: int,
    bits: int,
    at_once: int,
    levels: int = 4,
) -> dict:
    """Measures a network, its activations rounded once, and refining spikes.

    Args:
      network: the network.
      variables: its trained variables.
      calibration: inputs `[N, ...]` that thresholds are chosen on.
      data: inputs and targets `[M, ...]`; None for the network's own outputs.
      metric: of the first output and targets of a batch, a number for each.
      says: what the metric is.
      steps: time steps of refining spikes.
      bits: of the activations that are rounded once.
      at_once: inputs at a time.
      levels: of the first step of refining spikes.

    Returns:
      A record; `table` prints it.
    """
    inputs, targets = data
    own = jax.jit(network.__call__)
    outputs = [
        np.asarray(jax.tree.leaves(own(variables, part))[0])
        for part in np.array_split(inputs, -(-len(inputs) // at_once))
    ]
    outputs = np.concatenate(outputs)
    targets = outputs if targets is None else targets

    def numbers(found, wanted) -> np.ndarray:
        first = np.asarray(jax.tree.leaves(found)[0])
        return np.asarray(metric(first, wanted), np.float64)

    record = {
        "metric": says,
        "inputs": len(inputs),
        "macs": sum(jb.energy.macs(network).values()),
        "populations": len(network.neurons),
        "products": len(network.products),
        "network": _summed([numbers(outputs, targets)]),
    }
    for name, taken in (("rounded", 1), ("refining", steps)):
        start = time.perf_counter()
        convert, settings = jb.presets.refining, {"levels": levels}
        if name == "rounded":
            convert, settings = rounded, {"bits": bits}
        model, spiking = convert(
            *(network, variables, calibration), batch_size=at_once, **settings
        )
        converted, each = time.perf_counter(), []

        def kept(found, wanted, each=each):
            each.append(numbers(found, wanted))
            return each[-1]

        curves = jb.evaluate(
            *(model, spiking, (inputs, targets), taken), metric=kept, batch_size=at_once
        )
        # The metric is asked once for each step of a batch.
        times = [np.concatenate(each[t::taken]) for t in range(taken)]
        traffic = curves.traffic.values()
        record[name] = _summed(times) | {
            "energy_over_ann": jb.energy.relative(network, curves.events),
            "events": sum(of.events for of in traffic),
            "quanta": sum(of.quanta for of in traffic),
            "seconds_to_convert": converted - start,
            "seconds_to_simulate": time.perf_counter() - converted,
        }
    record["rounded"]["bits"] = bits
    return record


def _summed(times: list[np.ndarray]) -> dict:
    """Means and their standard errors, one for each time."""
    return {
        "mean": [float(x.mean()) for x in times],
        "standard_error": [float(x.std() / np.sqrt(len(x))) for x in times],
    }


def table(record: dict) -> str:
    """The metric in percent with its standard error, and energy over the network's."""
    lines = []
    for name in ("network", "rounded", "refining"):
        row = record[name]
        label = {"network": "itself", "refining": "refining spikes"}.get(name)
        label = label or f"rounded once to {row['bits']} bits"
        for t, (mean, error) in enumerate(
            zip(row["mean"], row["standard_error"], strict=True)
        ):
            cells = [label, "", f"{100 * mean:.2f} ± {100 * error:.2f}", ""]
            if name != "network":
                cells[1::2] = str(t + 1), f"{row['energy_over_ann'][t]:.2f}"
            lines.append(cells)
    head = ["", "T", f"{record['metric']}, %", "energy over its own"]
    return markdown(head, lines, ["---", "--:", "--:", "--:"])


def draw(records: dict[str, dict], path: Path) -> None:
    """The metric over time with bars of 95 %, a curve for each; dashed: the network."""
    with figure(path, figsize=(6.4, 4)) as (_, axis):
        for (name, record), colour in zip(
            records.items(), jb.plot.COLOURS, strict=False
        ):
            mean, error = (
                100 * np.array(record["refining"][k])
                for k in ("mean", "standard_error")
            )
            times = np.arange(1, len(mean) + 1)
            style = {"color": colour, "marker": "o", "label": name, "capsize": 2}
            axis.errorbar(times, mean, 1.96 * error, **style)
            own = 100 * record["network"]["mean"][0]
            axis.axhline(own, color=colour, ls="--", lw=1)
        axis.set(xlabel="time steps", ylabel=f"{record['metric']} (%)")
        axis.set_title("Refining spikes; dashed: the network itself; bars: 95 %")
        axis.legend(frameon=False)
