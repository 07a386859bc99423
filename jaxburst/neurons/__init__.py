"""Kinds of neurons, one file each, and pooling over time."""

from jaxburst.neurons.base import Neuron, Threshold
from jaxburst.neurons.burst import Burst
from jaxburst.neurons.differential import Differential
from jaxburst.neurons.growing import Growing
from jaxburst.neurons.multi_threshold import MultiThreshold
from jaxburst.neurons.phase import Phase
from jaxburst.neurons.pooling import POOLS, Pooled
from jaxburst.neurons.refining import Refining
from jaxburst.neurons.sigma_delta import SigmaDelta
from jaxburst.neurons.sign_descent import SignDescent
from jaxburst.neurons.window import FirstSpike, OneSpike, Parallel, Radix

__all__ = [
    "POOLS",
    "Burst",
    "Differential",
    "FirstSpike",
    "Growing",
    "MultiThreshold",
    "Neuron",
    "OneSpike",
    "Parallel",
    "Phase",
    "Pooled",
    "Radix",
    "Refining",
    "SigmaDelta",
    "SignDescent",
    "Threshold",
]
