"""From a trained network to a spiking one in one call, with proven settings.

    model, spiking = presets.refining(network, variables, inputs)
    curves = evaluate(model, spiking, (test, labels), steps=4)

A preset looks at inputs of calibration alone, never at labels.
"""

from __future__ import annotations

from jaxburst.batching import first
from jaxburst.checks import door
from jaxburst.convert import Spiking, convert
from jaxburst.energy import HOROWITZ_FP32, Cost
from jaxburst.graph import Neuron as Population
from jaxburst.methods.allotting import allot
from jaxburst.methods.balancing import balance
from jaxburst.methods.calibration import calibrate, calibrate_mse
from jaxburst.methods.corrections import correct
from jaxburst.model import Model
from jaxburst.network import Network
from jaxburst.neurons import Burst, Refining, SigmaDelta


@door
def paper(network: Network, variables, inputs) -> tuple[Model, Spiking]:
    """Bursts as in Li and Zeng (IJCAI 2022), for tens of time steps.

    Up to five spikes per step, one threshold per layer at the 99.9th percentile over
    five, membranes that start at 0, pooling by lateral inhibition.

    Args:
      network: the network.
      variables: its trained variables.
      inputs: calibration inputs `[N, ...]`, normalised; no labels.

    Returns:
      `(model, spiking)`, for `simulate`, `infer` and `evaluate`.

    Example:
      >>> model, spiking = paper(network, weights, inputs)
      >>> model.neuron.gamma, round(float(spiking["relu0"].theta), 3)
      (5, 0.499)
    """
    neuron = Burst(5)
    thresholds = calibrate(network, variables, inputs, neuron, percentile=99.9)
    return Model(network, neuron), convert(network, variables, thresholds, initial=0.0)


@door
def once(
    network: Network,
    variables,
    inputs,
    *,
    error: float = 0.005,
    batch_size: int = 50,
) -> tuple[Model, Spiking]:
    """Everything said once: the quantised network as graded events, for one time step.

    For hardware that sends graded events, or pays by the signed digit: on a ResNet-20
    no loss was found (+0.09 ± 0.23 points, 10,000 images), with fewer of both than
    refining bursts that lose as little, and nearly twice their quanta
    (`experiments/codes.py`). It has no earlier answer to stop at.
    Thresholds per channel are allotted by harm and cost (`allot`, on two hundred
    images), and means corrected on as many.

    Args:
      network: the network.
      variables: its trained variables.
      inputs: calibration inputs `[N, ...]`, normalised; no labels.
      error: of the outputs by rounding, squared, over their mean square; less costs
        more events and more digits.
      batch_size: number of images at a time; memory grows with it.

    Returns:
      `(model, spiking)`, for `simulate`, `infer` and `evaluate` with `steps=1`.

    Example:
      >>> model, spiking = once(network, weights, inputs)
      >>> model.neuron
      SigmaDelta(gamma=None, digits=None)
    """
    some = first(inputs, 200)
    thresholds = allot(network, variables, some, error=error, batch_size=batch_size)
    model = Model(network, SigmaDelta())
    spiking = convert(network, variables, thresholds)
    return model, correct(model, spiking, some, steps=1)


@door
def refining(
    network: Network,
    variables,
    inputs,
    *,
    levels: int = 4,
    cost: Cost = HOROWITZ_FP32,
    unit: str = "quanta",
    batch_size: int = 100,
    progress: bool = True,
) -> tuple[Model, Spiking]:
    """Refining bursts, for three or four time steps.

    Spikes halve their weight at every step and are at most 15, which adds up to less
    than 30 thresholds. Where a population is no ReLU they have no limit, since
    outliers of such functions lie hundreds of thresholds away, and weigh a quarter at
    every step: that is as close for the same quanta, in half the time. Neurons
    within 0.6 of a quantum stay silent. Thresholds per channel describe the activations
    best with `levels` levels at the first step, and are then balanced between layers
    (`balance`, on one batch). The first step rounds at 0.4 of a threshold; the means of
    the first four steps are corrected on two batches.

    Args:
      network: the network.
      variables: its trained variables.
      inputs: calibration inputs `[N, ...]`, normalised; no labels. A few hundred.
      levels: of the first step; more of them cost more spikes there and are closer.
      cost, unit: what layers are balanced for, see `balance`.
      batch_size: number of images at a time; memory grows with it.
      progress: whether to show progress bars.

    Returns:
      `(model, spiking)`, for `simulate`, `infer` and `evaluate`.

    Example:
      >>> model, spiking = refining(network, weights, inputs, progress=False)
      >>> logits = jb.infer(model, spiking, inputs, 8)
      >>> print(np.abs(logits - network(weights, inputs)).max() < 0.02)
      True
    """
    other = any(node.role.function for node in network.graph.of(Population))
    gamma, ratio = (None, 4) if other else (15, 2)
    neuron = Refining(gamma, ratio, silence=0.6)
    thresholds = calibrate_mse(
        network, variables, inputs, Burst(levels), batch_size=batch_size,
        progress=progress,
    )  # fmt: skip

    some = first(inputs, batch_size)
    thresholds = balance(
        network, variables, thresholds, some, neuron, cost=cost, unit=unit,
        progress=progress,
    )  # fmt: skip
    model = Model(network, neuron)
    spiking = convert(network, variables, thresholds, initial=0.4)
    return model, correct(model, spiking, first(inputs, 2 * batch_size), steps=4)
