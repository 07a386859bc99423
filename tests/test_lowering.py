"""Training and inference lower for accelerators that are not at hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import Mesh

import jaxburst as jb
from jaxburst.graph import Synapse
from jaxburst.kernels.training import accelerate
from jaxburst.training import descent, task

PLATFORMS = ("tpu", "cuda", "cpu")
NEURONS = {"burst": jb.Burst(5), "refining": jb.Refining()}


@pytest.fixture(scope="module", params=["vgg16", "resnet20"])
def converted(request):
    module = jb.zoo.NETWORKS[request.param](10)
    example = np.zeros((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), example)
    variables = jax.tree.map(lambda x: np.full(x.shape, 0.1, x.dtype), shapes)
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
    graph = network.graph
    wide = [  # what is smaller than its kernel is one product anywhere
        node
        for node in graph.of(Synapse)
        if node.role.is_conv and graph[node.inputs[0]].image_shape[1] > 2
    ]
    if platform == "cpu":  # Winograd's algorithm takes the place of most
        assert 0 < convolutions < len(wide)
    else:
        assert convolutions == len(wide)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name, kernels", [("vgg16", 10), ("resnet20", 19)])
def test_a_training_step_lowers(name, kernels, platform, monkeypatch):
    # The step asks its devices what they are: say what it is lowered for.
    monkeypatch.setattr(descent, "accelerate", lambda f, _: accelerate(f, platform))
    precision = "float32" if platform == "cpu" else "bfloat16"
    example = task.Example((1, 32, 32, 3), "float32")
    run = {
        "module": task.Static(jb.zoo.NETWORKS[name](10)),
        "recipe": jb.Recipe(epochs=1, batch_size=8, precision=precision),
        "optimiser": None,
    }
    state = jax.eval_shape(lambda: descent.initial(**run, example=example, size=16))
    exported = export.export(descent.step, platforms=[platform])(
        state,
        jax.ShapeDtypeStruct((8,), jnp.int32),
        jax.ShapeDtypeStruct((16, 32, 32, 3), jnp.uint8),
        jax.ShapeDtypeStruct((16,), jnp.int32),
        **run,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        mesh=Mesh(np.array(jax.devices()[:1]), ("data",)),
    )
    assert exported.platforms == (platform,)
    leaves = jax.tree.leaves(state)
    assert [x.shape for x in exported.out_avals[:-2]] == [x.shape for x in leaves]
    text = exported.mlir_module()
    # Of kernels that are no larger than their map: forwards, and backwards for the
    # kernel and for what it received, unless that is the image.
    found = text.count("stablehlo.convolution")
    most = 3 * kernels - 1
    assert 0 < found < most if platform == "cpu" else found == most
    assert "custom_call" not in text.replace("custom_call @Sharding", "")
