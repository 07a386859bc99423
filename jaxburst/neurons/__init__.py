"""Kinds of neurons, one file each, and pooling over time."""

from jaxburst.neurons.base import Neuron, Threshold
from jaxburst.neurons.burst import Burst
from jaxburst.neurons.pooling import POOLS, Pooled
from jaxburst.neurons.refining import Refining

__all__ = ["POOLS", "Burst", "Neuron", "Pooled", "Refining", "Threshold"]
