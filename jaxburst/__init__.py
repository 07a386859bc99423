"""Convert trained ReLU networks into burst-spiking networks, and simulate them in JAX.

The ten-line program:

    import jaxburst as jb

    data = jb.data.digits()
    layers = jb.zoo.vgg_tiny(classes=10)
    recipe = jb.Recipe(epochs=20, batch_size=64, augment="none")
    variables, history = jb.fit(layers, data.train, recipe)
    neuron = jb.Burst(gamma=5)
    thresholds = jb.calibrate(layers, variables, data.train.inputs[:500], neuron)
    spiking = jb.convert(layers, variables, thresholds)
    model = jb.Model(layers, neuron)
    curves = jb.evaluate(model, spiking, data.test, steps=32)
    print(curves.accuracy)  # after 1, 2, ... 32 time steps
    print(jb.energy.relative(layers, (8, 8, 1), curves.events))  # over the ANN's
"""

from jaxburst import (
    analysis,
    ann,
    anytime,
    augmentation,
    balancing,
    calibration,
    checkpoint,
    conversion,
    data,
    energy,
    layers,
    neuron,
    polishing,
    presets,
    released,
    simulation,
    training,
    tuning,
    zoo,
)
from jaxburst.ann import Network, accuracy
from jaxburst.balancing import balance
from jaxburst.calibration import calibrate, calibrate_mse, correct
from jaxburst.checkpoint import load, save
from jaxburst.conversion import convert, normalise, verify
from jaxburst.direct import direct
from jaxburst.layers import summary, validate
from jaxburst.neuron import Burst, Refining
from jaxburst.polishing import polish
from jaxburst.pytorch import load_pytorch
from jaxburst.released import pretrained
from jaxburst.simulation import Model, evaluate, infer, simulate
from jaxburst.training import Recipe, fit
from jaxburst.tuning import tune

__version__ = "0.1.0"

__all__ = [
    "Burst",
    "Model",
    "Network",
    "Recipe",
    "Refining",
    "accuracy",
    "analysis",
    "ann",
    "anytime",
    "augmentation",
    "balance",
    "balancing",
    "calibrate",
    "calibrate_mse",
    "calibration",
    "checkpoint",
    "conversion",
    "convert",
    "correct",
    "data",
    "direct",
    "energy",
    "evaluate",
    "fit",
    "infer",
    "layers",
    "load",
    "load_pytorch",
    "neuron",
    "normalise",
    "polish",
    "polishing",
    "presets",
    "pretrained",
    "released",
    "save",
    "simulate",
    "simulation",
    "summary",
    "training",
    "tune",
    "tuning",
    "validate",
    "verify",
    "zoo",
]
