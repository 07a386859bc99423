"""From a trained network to a good spiking one, and what it did: one file each."""

from jaxburst.methods import analysis, anytime, calibration, presets
from jaxburst.methods.allotting import allot
from jaxburst.methods.balancing import balance
from jaxburst.methods.calibration import calibrate, calibrate_mse
from jaxburst.methods.corrections import correct
from jaxburst.methods.direct import direct
from jaxburst.methods.polishing import polish
from jaxburst.methods.rounding import quantise, rounded
from jaxburst.methods.shifting import shifted
from jaxburst.methods.silencing import silenced
from jaxburst.methods.tuning import tune
from jaxburst.normalise import normalise

__all__ = [
    "allot",
    "analysis",
    "anytime",
    "balance",
    "calibrate",
    "calibrate_mse",
    "calibration",
    "correct",
    "direct",
    "normalise",
    "polish",
    "presets",
    "quantise",
    "rounded",
    "shifted",
    "silenced",
    "tune",
]
