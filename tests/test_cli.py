"""The command line, as a newcomer would type it."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

import jaxburst as jb
from jaxburst import progress
from jaxburst.cli import commands as cli
from jaxburst.cli import sources

MODULE = """
import flax.linen as nn
import jax
import numpy as np

class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
        return nn.Dense(2)(x.reshape(x.shape[0], -1))

weights = np.load("weights.npz")

def closure(x):
    return jax.nn.relu(x.reshape(x.shape[0], -1) @ weights["a"]) @ weights["b"]

def function(variables, x):
    return jax.nn.relu(x.reshape(x.shape[0], -1) @ variables["a"]) @ variables["b"]

def broken():
    raise TypeError("no")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a module of one's own, its weights and data."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 40)
    images = rng.normal(size=(40, 4, 4, 1)) * 0.3
    images[labels == 1, :2] += 1
    images[labels == 0, 2:] += 1
    half = np.repeat([[-1.0], [1.0]], 8, 0)
    own = {"a": np.concatenate([half, -half], 1) / 8, "b": np.eye(2)}
    np.savez(tmp_path / "weights.npz", **{k: v.astype("f") for k, v in own.items()})
    np.save(tmp_path / "x.npy", images.astype("f"))
    np.savez(tmp_path / "test.npz", x=images.astype("f"), y=labels[:, None])
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("mine", None)
    return tmp_path


def run(capsys, *words, code=0):
    """What a command printed: on standard output, and on standard error."""
    assert cli.main([str(word) for word in words]) == code
    return capsys.readouterr()


CONVERT = ("convert", "mine:function", "--weights", "weights.npz", "--calibration")
HERE = ("--network", "mine:function", "--weights", "weights.npz")


@pytest.fixture
def net(folder, capsys):
    """A saved conversion."""
    run(capsys, *CONVERT, "x.npy", "--out", "net", "--preset", "paper", "--steps", 8)
    return folder / "net"


def test_convert_evaluate_export_and_look(net, capsys):
    out = run(capsys, "evaluate", "net", *HERE, "--data", "test.npz").out
    assert "accuracy, on 40 images of test.npz; of the trained network 100" in out
    assert out.count("\n") == 11 and "100.00%" in out.splitlines()[-2]
    found = json.loads(
        run(capsys, "evaluate", "net", *HERE, "--data", "x.npy", "--json").out
    )
    assert found["measure"] == "agreement" and found["images"] == 40
    assert [row["step"] for row in found["steps"]] == list(range(1, 9))
    network = sources.Unread("mine:function", "weights.npz").open(
        np.zeros((1, 4, 4, 1), np.float32)
    )
    model, spiking = jb.load(net, network.network)
    images = np.load("x.npy")
    curves = jb.evaluate(
        model, spiking, (images, np.load("test.npz")["y"][:, 0]), 8, progress=False
    )
    spikes = sum(curves.events.values()).cumsum()
    assert spikes[-1] > 5
    np.testing.assert_allclose([row["spikes"] for row in found["steps"]], spikes)

    about = json.loads(run(capsys, "info", "net", "--json").out)
    assert about["kind"] == "saved conversion" and about["steps"] == 8
    assert about["network"] == "mine:function" and not about["source"]
    run(capsys, "export", "net", *HERE, "--to", "artefact", "--out", "net.npz",
        "--platforms", "cpu")  # fmt: skip
    logits = jb.artefact.load("net.npz")(images)
    expected = jb.infer(model, spiking, images, 8)
    np.testing.assert_allclose(logits, expected, atol=1e-6)
    out = run(capsys, "evaluate", "net.npz", "--data", "test.npz").out
    assert "accuracy 100.00% after 8 steps" in out
    assert "jaxburst artefact 1" in run(capsys, "info", "net.npz").out
    run(capsys, "export", "net", *HERE, "--to", "events", "--data", "x.npy",
        "--images", 3, "--out", "spikes.npz")  # fmt: skip
    header, events = jb.events.read("spikes.npz")
    assert header["images"] == 3 and len(events) > 10
    assert "events" in run(capsys, "info", "spikes.npz").out
    run(capsys, "export", "net", *HERE, "--to", "c", "--data", "x.npy", "--out",
        "net.c")  # fmt: skip
    assert "net_infer" in (net.parent / "net.h").read_text()


@pytest.mark.parametrize("kind", ["accuracy", "raster", "graph"])
def test_pictures(net, capsys, kind):
    picture = net.parent / f"{kind}.png"
    run(capsys, "plot", "net", *HERE, "--kind", kind, "--data", "test.npz", "--out",
        picture)  # fmt: skip
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "--out: expected .png" in run(
        capsys, "plot", "net", "--data", "x.npy", "--out", "x.jpeg", code=1
    ).err  # fmt: skip


def test_networks_of_every_kind(folder, capsys):
    """Closures and Linen modules; what they are is shown."""
    out = run(capsys, "info", "mine:closure", "--shape", 4, 4, 1).out
    assert "neuron" in out and "total" in out
    rng = np.random.default_rng(0)
    shapes = {"Conv_0/kernel": (3, 3, 1, 4), "Conv_0/bias": (4,),
              "Dense_0/kernel": (16, 2), "Dense_0/bias": (2,)}  # fmt: skip
    np.savez("flax.npz", **{
        f"params/{name}": rng.normal(size=shape).astype("f")
        for name, shape in shapes.items()
    })  # fmt: skip
    found = json.loads(run(capsys, "info", "mine:Net", "--weights", "flax.npz",
                           "--shape", 4, 4, 1, "--json").out)  # fmt: skip
    assert found["parameters"] == 9 * 4 + 4 + 32 + 2 and len(found["populations"]) == 1
    err = run(capsys, "info", "mine:Net", "--shape", 4, 4, 1, code=1).err
    assert "does not hold its variables; give --weights" in err


def test_tuning(folder, capsys, monkeypatch):
    # Which takes long, and has tests of its own.
    kept = lambda model, spiking, *_, **__: spiking  # noqa: E731
    monkeypatch.setattr(sys.modules["jaxburst.methods.tuning"], "polish", kept)
    out = run(capsys, "tune", "mine:function", "--weights", "weights.npz",
              "--calibration", "x.npy", "--energy", 9, "--steps", 2, "--trials", 1,
              "--out", "tuned").out  # fmt: skip
    assert "energy <= 9: 1 trials" in out and "tuned: saved" in out
    run(capsys, "evaluate", "tuned", *HERE, "--data", "test.npz")


MISTAKES = {
    "no file": (("evaluate", "nothing", "--data", "x.npy"), "nothing: not found"),
    "no network": (("info", "nothing"), "nothing: not found; expected a file .onnx"),
    "no module": (("info", "theirs:net"), "no Python module 'theirs', here or inst"),
    "no function": (("info", "mine:net"), "the module 'mine' has no 'net'"),
    "no shape": (("info", "mine:closure"), "the input is open: give --shape"),
    "not made": (("info", "mine:broken", "--shape", 3), "cannot be made .no."),
    "no size": (
        ("info", "mine:closure", "--shape", 0, 4, 1),
        "--shape: expected a whole number of at least 1, found 0",
    ),
    "no step": (
        ("evaluate", "net", *HERE, "--data", "test.npz", "--steps", 0),
        "steps: expected a whole number of at least 1",
    ),
    "no data": ((*CONVERT, "y.npy", "--out", "net"), "y.npy: not found; expected"),
    "no archive": ((*CONVERT, "mine.py", "--out", "net"), "mine.py: cannot be read"),
    "occupied": (
        (*CONVERT, "x.npy", "--out", "mine.py"),
        "mine.py: is there already and is not a saved network",
    ),
    "a file as a folder": ((*CONVERT, "x.npy", "--out", "x.npy/net"), "x.npy"),
    "pixels": (
        (*CONVERT, "pixels.npy", "--out", "net"),
        "holds pixels 0..255 .uint8., .* give --mean and --std",
    ),
    "no pixels": (
        (*CONVERT, "x.npy", "--out", "net", "--mean", "0.5", "--std", "1"),
        "--mean: normalises pixels 0..255 .uint8., but x.npy holds float32",
    ),
    "transposed": (
        ("evaluate", "net", *HERE, "--data", "transposed.npy"),
        "the axes look transposed",
    ),
    "itself": (("evaluate", "net", "--data", "x.npy"), "give --network mine:function"),
    "budget": (
        ("tune", *CONVERT[1:], "x.npy", "--out", "n"),
        "give one budget, --energy or --agreement",
    ),
    "no images": (
        ("export", "net", "--to", "c", "--out", "net.c"),
        "--data: c needs images",
    ),
    "nir": (
        ("export", "net", *HERE, "--to", "nir", "--out", "net.nir"),
        "NIR has no word for Burst|pip install .jaxburst.nir..",
    ),
}


def test_mistakes_are_one_line_and_come_before_the_work(net, capsys):
    np.save("pixels.npy", np.zeros((3, 4, 4, 1), np.uint8))
    np.save("transposed.npy", np.zeros((3, 1, 4, 4), np.float32))
    before = sorted(path.name for path in net.parent.iterdir())
    for words, expected in MISTAKES.values():
        err = run(capsys, *words, code=1).err
        assert err.startswith("jaxburst: ") and err.count("\n") == 1, err
        assert re.search(expected, err), err
    after = {path.name for path in net.parent.iterdir()}
    assert after - {"__pycache__"} == set(before) - {"__pycache__"}, "nothing is left"


def test_debug_help_and_usage(folder, capsys):
    err = run(capsys, "info", "nothing", "--debug", code=1).err
    assert "Traceback" in err
    out = run(capsys, "convert", "--help").out
    assert "jaxburst convert model.onnx --calibration x.npy --out net" in out
    for command in cli.COMMANDS:
        assert command in run(capsys, "--help").out
    run(capsys, "convert", code=2)


def test_interruption(net, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.checkpoint, "describe", interrupted)
    assert "interrupted" in run(capsys, "info", "net", code=130).err


def test_it_runs_as_a_program_and_names_its_extra(folder):
    hidden = (
        "import sys; sys.modules['tyro'] = None\n"
        "from jaxburst.cli import main; sys.exit(main(['info', 'x']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", hidden], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.strip() == (
        'jaxburst: the command line needs tyro: pip install "jaxburst[cli]"'
    )


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(
    capsys, monkeypatch
):
    monkeypatch.setattr(progress, "EVERY", 0)
    assert list(progress.track([5, 6], "Counting")) == [5, 6]
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["Counting: 0 of 2 after 0 s", "Counting: 1 of 2 after 0 s"]
    monkeypatch.setattr(progress, "EVERY", 20)
    assert list(progress.track(iter("ab"), "Counting")) == ["a", "b"]
    assert not capsys.readouterr().err


def test_data(folder):
    rows = [("", (8, 8, 1), np.dtype("float32"))]
    digits = sources.read_data("digits", rows, part="test", images=5)
    assert len(digits) == 5 and digits.what == "5 test images of digits"
    assert digits.inputs[:2].shape == (2, 8, 8, 1)
    first = sources.read_data(
        "digits", [("", (1, 8, 8), np.dtype("float32"))], part="test", images=5
    )
    moved = np.moveaxis(digits.inputs[:2], -1, 1)
    np.testing.assert_array_equal(first.inputs[:2], moved)
    several = [(name, None, np.dtype("float32")) for name in "pq"]
    np.savez("both.npz", p=np.zeros((2, 3)), q=np.ones((2, 2)), targets=[0.0, 1])
    both = sources.read_data("both.npz", several, part="test")
    assert sorted(both.inputs) == ["p", "q"] and both.labels.tolist() == [0, 1]
    np.savez("one.npz", p=np.zeros((2, 3)), other=np.ones((2, 2)))
    with pytest.raises(ValueError, match="expected the inputs as p or q, found p, oth"):
        sources.read_data("one.npz", several, part="test")
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4, 1)
    np.save("pixels.npy", pixels)
    how = {"part": "test", "mean": (0.5,), "std": (0.5,)}
    found = sources.read_data("pixels.npy", rows, **how).inputs
    np.testing.assert_allclose(found, (pixels / 255 - 0.5) / 0.5, rtol=1e-6)
