"""Training and inference lower for accelerators that are not at hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxburst as jb

PLATFORMS = ("tpu", "cuda", "cpu")
NEURONS = {"burst": jb.Burst(5), "refining": jb.Refining()}


@pytest.fixture(scope="module", params=["vgg9", "resnet20"])
def converted(request):
    module = jb.zoo.NETWORKS[request.param](10)
    example = np.zeros((1, 32, 32, 3), np.float32)
    variables = jax.jit(module.init)(jax.random.key(0), example)
    network = jb.trace(module.apply, variables, example)
    thresholds = dict.fromkeys(network.neurons, np.float32(1))
    return network, jb.convert(network, variables, thresholds)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", NEURONS)
def test_inference_lowers(converted, name, platform):
    network, spiking = converted
    model = jb.Model(network, NEURONS[name])
    images = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32)
    program = jax.jit(
        lambda spiking, images: jb.infer(model, spiking, images, 4, platform=platform)
    )
    shapes = jax.eval_shape(lambda: spiking)
    exported = export.export(program, platforms=[platform])(shapes, images)
    assert exported.platforms == (platform,)
    assert exported.out_avals[0].shape == (8, 10)
    text = exported.mlir_module()
    assert "stablehlo.while" in text
    assert "custom_call" not in text, "nothing that only one platform has"
    convolutions = text.count("stablehlo.convolution")
    kernels = [node.role.kernel for node in network.graph.nodes if node.name in spiking
               and hasattr(node.role, "kernel") and node.role.is_conv]  # fmt: skip
    if platform == "cpu":  # Winograd's algorithm takes the place of most
        assert 0 < convolutions < len(kernels)
    else:
        assert convolutions == len(kernels)
