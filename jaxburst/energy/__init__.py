"""Synaptic operations and joules, spiking and conventional, of any traced network.

    print(report(model, curves, cost=LEMAIRE, unit="events"))

A synaptic operation is one event reaching one synapse, see `reach`. Events are counted
where they enter a synapse: after max pooling, and before average pooling, which merges
into the synapse it feeds. Wires and biases count nothing.

A spike is a whole number, and a code is charged in the unit that its hardware has:

* `'quanta'`: unary spikes; a burst of `k` is `k` of them, each an accumulate and an
  access to memory. The paper's bursts pay these.
* `'events'`: graded events, whose number multiplies the weight: memory once for each.
* `'digits'`: graded events, too, but the datapath shifts and adds: an accumulate for
  each signed binary digit of the number, memory once for each event.

What is constant over time is weighed once, as multiply-accumulates; what comes from
another synapse with no neuron between them is a charge, weighed so at every step. A
product of two signals is a synapse whose weights are what the other side has sent so
far. The function of a population that is no ReLU is evaluated once for each update of
its neurons, at the multiply-accumulates of `costs.FUNCTIONS`.

The conventional network counts the same taps, so operations = mean events per place x
multiply-accumulates wherever every place reaches as many synapses.
"""

from jaxburst.energy.costs import (
    HOROWITZ_FP32,
    HOROWITZ_INT8,
    LEMAIRE,
    NEUROMC,
    PRESETS,
    SENECA,
    Cost,
    Memory,
)
from jaxburst.energy.counting import cost_per_event, depth, fan_out, macs, operations
from jaxburst.energy.pricing import (
    COLUMNS,
    Prices,
    ann_joules,
    by_sender,
    joules,
    prices,
)
from jaxburst.energy.reaching import Reach, reach
from jaxburst.energy.table import Report, break_even, relative, report

UNITS = ("quanta", "events", "digits")

__all__ = [
    "COLUMNS", "HOROWITZ_FP32", "HOROWITZ_INT8", "LEMAIRE", "NEUROMC", "PRESETS",
    "SENECA", "UNITS", "Cost", "Memory", "Prices", "Reach", "Report", "ann_joules",
    "break_even", "by_sender", "cost_per_event", "depth", "fan_out", "joules", "macs",
    "operations", "prices", "reach", "relative", "report",
]  # fmt: skip
