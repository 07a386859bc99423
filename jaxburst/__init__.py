"""Conversion of trained networks into burst-spiking ones, as a JAX transformation.

The ten-line program:

    import jaxburst as jb

    data = jb.data.digits()
    net = jb.zoo.vgg_tiny(classes=10)
    recipe = jb.Recipe(epochs=20, batch_size=64, augment="none")
    variables, history = jb.fit(net, data.train, recipe)
    inputs = data.train.inputs[:500]
    network = jb.trace(net.apply, variables, inputs[:1])
    neuron = jb.Burst(gamma=5)
    thresholds = jb.calibrate(network, variables, inputs, neuron)
    spiking = jb.convert(network, variables, thresholds)
    curves = jb.evaluate(jb.Model(network, neuron), spiking, data.test, steps=16)
    print(curves.accuracy)  # after 1, 2, ... 16 time steps
    print(jb.energy.relative(network, curves))  # over the ANN's
"""

from jaxburst import data, energy, methods, neurons, plot, released, training, zoo
from jaxburst.convert import convert, verify
from jaxburst.evaluation import accuracy, compiled, evaluate
from jaxburst.io import artefact, events
from jaxburst.io.artefact import export
from jaxburst.io.c import to_c
from jaxburst.io.checkpoint import load, save
from jaxburst.io.integers import Integers, to_integers
from jaxburst.io.state_dict import load_pytorch
from jaxburst.methods import analysis, anytime, calibration, presets
from jaxburst.methods.calibration import calibrate
from jaxburst.methods.direct import direct
from jaxburst.methods.tuning import tune
from jaxburst.model import Model
from jaxburst.network import Network, Refused
from jaxburst.neurons import Burst, Refining
from jaxburst.released import pretrained
from jaxburst.run import infer, simulate
from jaxburst.streams import stream
from jaxburst.tracing import trace
from jaxburst.training import Recipe, fit

__version__ = "0.2.0"

__all__ = [
    "Burst",
    "Integers",
    "Model",
    "Network",
    "Recipe",
    "Refining",
    "Refused",
    "accuracy",
    "analysis",
    "anytime",
    "artefact",
    "calibrate",
    "calibration",
    "compiled",
    "convert",
    "data",
    "direct",
    "energy",
    "evaluate",
    "events",
    "export",
    "fit",
    "infer",
    "load",
    "load_pytorch",
    "methods",
    "neurons",
    "plot",
    "presets",
    "pretrained",
    "released",
    "save",
    "simulate",
    "stream",
    "to_c",
    "to_integers",
    "trace",
    "training",
    "tune",
    "verify",
    "zoo",
]

_FRONT_ENDS = {
    "from_nir": "jaxburst.io.nir",
    "from_onnx": "jaxburst.io.onnx",
    "from_torch": "jaxburst.io.torch",
    "to_nir": "jaxburst.io.nir",
}


def __getattr__(name: str):
    """Front ends and exporters whose packages are extras."""
    if name in _FRONT_ENDS:
        from importlib import import_module

        try:
            return getattr(import_module(_FRONT_ENDS[name]), name)
        except ImportError as error:
            lacks = str(error)

        def missing(*_, **__):
            raise ImportError(lacks)

        return missing
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
