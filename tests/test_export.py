"""Training and inference lower for accelerators that are not at hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import Mesh

from jaxburst import training
from jaxburst.ann import Network
from jaxburst.conversion import convert
from jaxburst.layers import Relu, walk
from jaxburst.neuron import Burst, Refining
from jaxburst.simulation import Model, infer
from jaxburst.zoo import resnet20, vgg16

PLATFORMS = ("tpu", "cuda", "cpu")
NETWORKS = {"vgg16": vgg16(10), "resnet20": resnet20(10)}


def shapes(layers):
    image = jnp.zeros((1, 32, 32, 3))
    return jax.eval_shape(Network(layers).init, jax.random.key(0), image)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("neuron", [Burst(5), Refining()], ids=["burst", "refining"])
@pytest.mark.parametrize("name", NETWORKS)
def test_inference_lowers(name, neuron, platform):
    layers = NETWORKS[name]
    # Without Winograd's algorithm, which this machine would choose for itself.
    model = Model(layers, neuron, exact=True)
    theta = jax.ShapeDtypeStruct((), jnp.float32)
    relus = [path for path, layer in walk(layers) if isinstance(layer, Relu)]
    thresholds = {path: theta for path in relus}
    spiking = jax.eval_shape(
        lambda variables, found: convert(layers, variables, found),
        *(shapes(layers), thresholds),
    )
    images = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32)
    program = jax.jit(lambda spiking, images: infer(model, spiking, images, 4))
    exported = export.export(program, platforms=[platform])(spiking, images)
    assert exported.platforms == (platform,)
    assert exported.out_avals[0].shape == (8, 10)
    text = exported.mlir_module()
    assert "stablehlo.convolution" in text and "stablehlo.while" in text
    assert "custom_call" not in text, "nothing that only one platform has"


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_training_step_lowers(platform):
    layers = NETWORKS["resnet20"]
    recipe = training.Recipe(epochs=1, batch_size=8, precision="bfloat16")
    shape = (16, 32, 32, 3)
    state = jax.eval_shape(lambda: training._initial(layers, recipe, shape))
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    exported = export.export(training._step, platforms=[platform])(
        state,
        jax.ShapeDtypeStruct((8,), jnp.int32),
        jax.ShapeDtypeStruct(shape, jnp.uint8),
        jax.ShapeDtypeStruct((16,), jnp.int32),
        layers=layers,
        recipe=recipe,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        mesh=mesh,
    )
    assert exported.platforms == (platform,)
    assert "stablehlo.convolution" in exported.mlir_module()
