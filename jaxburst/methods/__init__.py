"""From a trained network to a good spiking one, and what it did: one file each."""

from jaxburst.methods import presets
from jaxburst.methods.balancing import balance
from jaxburst.methods.calibration import calibrate, calibrate_mse
from jaxburst.methods.corrections import correct
from jaxburst.methods.direct import direct

__all__ = [
    "balance",
    "calibrate",
    "calibrate_mse",
    "correct",
    "direct",
    "presets",
]
