"""From a trained network to a spiking one in one call, with proven settings.

model, spiking = presets.refining(layers, variables, images)
curves = evaluate(model, spiking, split, steps=4)
"""

from __future__ import annotations

import warnings

import numpy as np

from jaxburst.balancing import balance
from jaxburst.calibration import calibrate, calibrate_mse, correct
from jaxburst.conversion import Spiking, convert
from jaxburst.layers import Layers
from jaxburst.neuron import Burst, Refining
from jaxburst.simulation import Model


def paper(layers: Layers, variables: dict, images: np.ndarray) -> tuple[Model, Spiking]:
    """Bursts as in Li and Zeng (IJCAI 2022), for tens of time steps.

    Up to five spikes per step, one threshold per layer at the 99.9th percentile over
    five, membranes that start at 0, pooling by lateral inhibition.

    Args:
      layers: the network.
      variables: its trained `{'params', 'batch_stats'}`.
      images: calibration images `[N, H, W, C]`, normalised; no labels.

    Returns:
      `(model, spiking)`, for `simulate`, `infer` and `evaluate`.
    """
    neuron = Burst(5)
    thresholds = calibrate(layers, variables, images, neuron, percentile=99.9)
    return Model(layers, neuron), convert(layers, variables, thresholds, initial=0.0)


def refining(
    layers: Layers,
    variables: dict,
    images: np.ndarray,
    *,
    levels: int = 4,
    batch_size: int = 100,
) -> tuple[Model, Spiking]:
    """Refining bursts, for three or four time steps.

    Spikes halve their weight at every step and are at most 15; neurons within 0.6 of a
    quantum stay silent. Thresholds per channel describe the activations best with
    `levels` levels at the first step, and are then balanced between layers (`balance`,
    on one batch). The first step rounds at 0.4 of a threshold; the means of the first
    four steps are corrected on two batches.

    Args:
      layers: the network.
      variables: its trained `{'params', 'batch_stats'}`.
      images: calibration images `[N, H, W, C]`, normalised; no labels. A few hundred.
      levels: of the first step; more of them cost more spikes there and are closer.
      batch_size: number of images at a time; memory grows with it.

    Returns:
      `(model, spiking)`, for `simulate`, `infer` and `evaluate`.
    """
    neuron = Refining(gamma=15, ratio=2, silence=0.6)
    with warnings.catch_warnings():
        # A channel that never fires in calibration is common and harmless here.
        warnings.filterwarnings("ignore", message="channels with the threshold 0")
        thresholds = calibrate_mse(
            layers, variables, images, Burst(levels), batch_size=batch_size
        )
    thresholds = balance(layers, variables, thresholds, images[:batch_size], neuron)
    model = Model(layers, neuron)
    spiking = convert(layers, variables, thresholds, initial=0.4)
    return model, correct(model, spiking, images[: 2 * batch_size], steps=4)
