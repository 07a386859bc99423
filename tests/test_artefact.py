"""An artefact is the network, wherever it runs and however many images it is given."""

import io
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from nets import case

import jaxburst as jb
from jaxburst.io import artefact

NEURONS = {"burst": jb.Burst(5), "refining": jb.Refining()}
STEPS = 3


def more(inputs):
    """Five images, of three."""
    return jax.tree.map(lambda x: np.concatenate([x, x])[:5], inputs)


@pytest.fixture(scope="module", params=NEURONS)
def written(request, tmp_path_factory):
    """`(path, model, spiking, inputs)` of a network that pools and adds."""
    neuron = NEURONS[request.param]
    network = case("preactivation")
    model, spiking = network.model(neuron), network.spiking(neuron)
    path = tmp_path_factory.mktemp(request.param) / "network.npz"
    inputs = network.inputs[:1]
    jb.export(model, spiking, inputs, path, steps=STEPS, platforms="cpu")
    return path, model, spiking, more(network.inputs)


def test_it_answers_as_infer_does_for_any_number_of_images(written):
    path, model, spiking, inputs = written
    found = jb.artefact.load(path)
    for count in (5, 2):
        expected = jb.infer(model, spiking, inputs[:count], STEPS)
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(found(inputs[:count]), expected, rtol=0, atol=1e-6)


def test_one_step_at_a_time(written):
    path, model, spiking, inputs = written
    found, state = jb.artefact.load(path), None
    expected = jb.simulate(model, spiking, inputs, STEPS).logits
    assert np.abs(np.diff(expected, axis=0)).max() > 1e-3, "spikes come later, too"
    for logits in expected:
        state, outputs = found.step(state, inputs)
        np.testing.assert_allclose(outputs, logits, rtol=0, atol=1e-6)


ALONE = """
import sys
for name in ("jaxburst", "flax", "optax", "chex", "safetensors", "rich", "orbax"):
    sys.modules[name] = None
exec(open("program.py").read())
"""


def test_ten_lines_run_it_without_jaxburst(written, tmp_path):
    path, model, spiking, inputs = written
    assert len(artefact.PROGRAM.splitlines()) <= 10
    (tmp_path / "program.py").write_text(artefact.PROGRAM)
    np.save(tmp_path / "images.npy", inputs)
    command = [sys.executable, "-c", ALONE, path, "images.npy"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    expected = np.asarray(jb.infer(model, spiking, inputs, STEPS)).argmax(-1)
    assert run.stdout.split() == str(expected).split()


def test_several_inputs_and_outputs_keep_their_structure(tmp_path):
    network = case("several")
    model, spiking = network.model(jb.Burst(5)), network.spiking(jb.Burst(5))
    inputs, path = more(network.inputs), tmp_path / "network.npz"
    jb.export(model, spiking, network.inputs, path, steps=STEPS, platforms=["cpu"])
    found = jb.artefact.load(path)
    expected = jb.infer(model, spiking, inputs, STEPS)
    assert jax.tree.structure(found(inputs)) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
                 found(inputs), expected)  # fmt: skip
    names = [row["name"] for row in found.header["inputs"]]
    assert names == ["image", "numbers"]
    with pytest.raises(ValueError, match="expected .'image', 'numbers'., found"):
        found({"image": inputs["image"]})
    with pytest.raises(ValueError, match="as many images in each"):
        found({"image": inputs["image"], "numbers": inputs["numbers"][:2]})
    with pytest.raises(ValueError, match=r"numbers: expected the shape \[B, 5\]"):
        found({"image": inputs["image"], "numbers": inputs["numbers"][:, :2]})


def test_kernels_are_those_of_the_platform(tmp_path):
    """On a CPU Winograd's algorithm; elsewhere the convolutions of the network."""
    module = jb.zoo.resnet20(10)
    example = np.zeros((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), example)
    variables = jax.tree.map(lambda x: np.full(x.shape, 0.01, x.dtype), shapes)
    network = jb.trace(module.apply, variables, example)
    spiking = jb.convert(network, variables, dict.fromkeys(network.neurons, 1.0))
    path, platforms = tmp_path / "network.npz", ("tpu", "cpu")
    model = jb.Model(network, jb.Burst(5))
    jb.export(model, spiking, example, path, steps=2, platforms=platforms)
    found = jb.artefact.load(path)
    counts = {}
    for name in ("infer", "step"):
        for platform in platforms:
            text = found.program(name, platform).mlir_module()
            checks = text.count("@shape_assertion")  # of the number of images
            assert text.count("custom_call") == checks, "what one platform alone has"
            kinds = ("convolution", "dot_general")
            counts[name, platform] = [text.count(f"stablehlo.{kind}") for kind in kinds]
        assert counts[name, "tpu"] == [19, 1]
        assert counts[name, "cpu"] != [19, 1]
    assert "stablehlo.convolution" not in found.program("prepare", "tpu").mlir_module()


# What is refused.


def entries(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def changed(path, change):
    """The content of a file with another header."""
    found = entries(path)
    header = json.loads(str(found["header"]))
    change(header)
    content = io.BytesIO()
    np.savez(content, **found | {"header": np.array(json.dumps(header))})
    return content.getvalue()


def other_weights(path):
    found = entries(path)
    name = next(n for n in found if n.startswith("weights/") and found[n].size > 1)
    found[name] = found[name] + 1
    content = io.BytesIO()
    np.savez(content, **found)
    return content.getvalue()


DAMAGE = {
    "cut short": (lambda p: p.read_bytes()[:-100], "cannot be read"),
    "empty": (lambda p: b"", "cannot be read"),
    "text": (lambda p: b"no archive at all", "cannot be read"),
    "weights": (other_weights, "its SHA-256 is"),
    "steps": (lambda p: changed(p, lambda h: h.update(steps=9)), "its SHA-256 is"),
    "hash": (lambda p: changed(p, lambda h: h.pop("sha256")), "'sha256'"),
    "kind": (lambda p: changed(p, lambda h: h.update(format="x 1")), "it is 'x 1'"),
    "newer": (
        lambda p: changed(
            p, lambda h: h.update(format="jaxburst artefact 2", jaxburst="9.1")
        ),
        "written by jaxburst 9.1 in version 2 .* update jaxburst",
    ),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_one_clear_error(written, tmp_path, how):
    damage, words = DAMAGE[how]
    path = tmp_path / "network.npz"
    path.write_bytes(damage(written[0]))
    with pytest.raises(ValueError, match=words) as caught:
        jb.artefact.load(path)
    assert str(path) in str(caught.value)


def test_other_platforms_and_missing_files(written, tmp_path, monkeypatch):
    monkeypatch.setattr(artefact.lowering, "default_export_platform", lambda: "tpu")
    with pytest.raises(ValueError, match="exported for cpu; this is tpu"):
        jb.artefact.load(written[0])
    with pytest.raises(FileNotFoundError, match="not found; expected an artefact"):
        jb.artefact.load(tmp_path / "none.npz")


def test_places_are_looked_at_before_the_work(written, tmp_path, monkeypatch):
    path, model, spiking, inputs = written
    monkeypatch.setattr(artefact, "_lowered", lambda *_: pytest.fail("worked"))
    other = tmp_path / "thesis.npz"
    other.write_bytes(b"years of work")
    (tmp_path / "file").write_text("")
    for place, kind in [
        (other, FileExistsError),
        (tmp_path, FileExistsError),
        (tmp_path / "file/network.npz", OSError),
    ]:
        with pytest.raises(kind, match=str(place.parent)):
            jb.export(model, spiking, inputs, place, steps=2)
    assert other.read_bytes() == b"years of work"
    with pytest.raises(ValueError, match="platforms: expected some of cpu, .* vax"):
        jb.export(model, spiking, inputs, path, steps=2, platforms=("cpu", "vax"))


def test_inputs_that_do_not_fit(written):
    path, _, _, inputs = written
    found = jb.artefact.load(path)
    with pytest.raises(ValueError, match=r"expected the shape \[B, .*, found"):
        found(inputs[0])
    with pytest.raises(TypeError, match="expected float32, found uint8"):
        found(inputs.astype(np.uint8))
    with pytest.raises(ValueError, match="expected one array, found 2"):
        found((inputs, inputs))
