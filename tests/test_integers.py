"""A network of whole numbers: what it fires, what it keeps, what it refuses."""

import jax
import numpy as np
import pytest
from nets import IMAGES, case

import jaxburst.io.integers as integers_of
from jaxburst.io.c import to_c
from jaxburst.io.integers import Axis, Integers, to_integers
from jaxburst.methods.corrections import correct
from jaxburst.neurons import Burst, Phase, Refining, SigmaDelta
from jaxburst.run import Model

REFINING, SIGNED = Refining(15, 2, 0.6), Burst(5, signed=True)


def whole(name: str, neuron, steps: int = 4):
    own = case(name)
    model, spiking = own.model(neuron), own.spiking(neuron, "channel")
    return own, model, spiking, to_integers(model, spiking, own.inputs, steps)


@pytest.fixture
def fine(monkeypatch):
    """Numbers so fine that nothing is rounded that matters, and no limit to them."""
    monkeypatch.setattr(integers_of, "LARGEST", 2**15 - 1)
    monkeypatch.setattr(integers_of, "RANGE", 2**16)
    monkeypatch.setattr(integers_of, "SMALL", 2**30)
    monkeypatch.setattr(integers_of, "LIMIT", 2**62)
    monkeypatch.setattr(integers_of, "_BITS", range(36, 6, -1))


FINE = {
    "resnet": REFINING, "preactivation": SIGNED, "inception": REFINING,
    "windows": Burst(2, reset="zero"), "capped": SIGNED, "shared": SigmaDelta(),
}  # fmt: skip


@pytest.mark.parametrize("name", FINE)
def test_fine_numbers_fire_as_floating_point_does(name, fine):
    own, model, spiking, _ = whole(name, FINE[name])
    if name == "shared":
        spiking = correct(model, spiking, own.inputs, 4)
    found = to_integers(model, spiking, own.inputs, 4)
    trace = found.simulate(own.inputs, 4)
    expected = own.run(model, spiking, 4)
    for neuron in model.network.neurons:
        wanted = np.asarray(expected.spikes[neuron])
        assert wanted.any()
        same = trace.spikes[neuron].reshape(wanted.shape) == wanted
        assert same.mean() > 0.995, neuron
        events = np.abs(wanted).reshape(4, IMAGES, -1).sum(-1)
        np.testing.assert_allclose(
            trace.events[neuron], events, atol=0.02 * events.max() + 2
        )
    for one, other in zip(trace.logits, jax.tree.leaves(expected.logits), strict=True):
        other = np.asarray(other)
        error = np.abs(one.reshape(other.shape) - other).max() / np.abs(other).max()
        assert error < 0.15, error  # a spike at the very threshold


NEAR = "vgg", "resnet", "averages", "preactivation", "spellings", "inception", "several"


@pytest.mark.parametrize("name", NEAR)
def test_eight_bits_are_near_the_network(name):
    own, model, spiking, found = whole(name, REFINING)
    for part in found.of("synapse"):
        kernel = part.arrays["kernel"]
        assert kernel.dtype == np.int8 and np.abs(kernel).max() > 63
    expected = jax.tree.leaves(own.run(model, spiking, 4).logits)
    for logits, exact in zip(
        found.simulate(own.inputs, 4).logits, expected, strict=True
    ):
        exact = np.asarray(exact)[-1]
        error = np.abs(logits[-1].reshape(exact.shape) - exact).max()
        assert error < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("neuron", [REFINING, SIGNED, Burst(1)])
def test_shorter_runs_are_parts_of_longer_ones(neuron):
    own, _, _, found = whole("vgg", neuron)
    long, short = found.simulate(own.inputs, 4), found.simulate(own.inputs, 2)
    np.testing.assert_array_equal(long.logits[0][:2], short.logits[0])
    half = jax.tree.map(lambda x: x[:1], own.inputs)
    alone = found.simulate(half, 4)
    for name, spikes in long.spikes.items():
        np.testing.assert_array_equal(spikes[:, :1], alone.spikes[name])


@pytest.mark.parametrize("name", ["vgg", "resnet"])
def test_a_stream_holds_the_network_of_its_last_frame(name):
    own, model, spiking, found = whole(name, Refining(255, 2, 0.0), 3)
    frames = np.stack([own.inputs[[0, 1]], own.inputs[[1, 2]], own.inputs[[2, 0]]])
    frames = np.concatenate([frames, frames[-1:]])
    trace = found.stream(frames)
    alone = found.stream(frames[-1:])
    np.testing.assert_array_equal(trace.logits[0][-1], alone.logits[0][0])
    for name in model.network.neurons:
        assert trace.events[name][:3].all()
        assert not trace.events[name][3].any()  # a still scene
        total = trace.spikes[name][:3].sum(0)
        np.testing.assert_array_equal(total, alone.spikes[name][0])
    ann = np.asarray(own.outputs[0])[[2, 0]]
    error = np.abs(trace.logits[0][-1].reshape(ann.shape) - ann).max()
    assert error < 0.2 * np.abs(ann).max()  # one quantum of every neuron


def test_silent_streams_stay_within_their_silence():
    own, model, _, found = whole("vgg", REFINING, 3)
    frames = np.stack([own.inputs, own.inputs * 0.98, own.inputs * 0.96])
    trace, exact = found.stream(frames), whole("vgg", Refining(15, 2, 0.0), 3)[3]
    silent = sum(e[1:].sum() for e in trace.events.values())
    busy = sum(e[1:].sum() for e in exact.stream(frames).events.values())
    assert 0 < silent < busy


@pytest.mark.parametrize("neuron", [REFINING, SIGNED])
def test_no_sum_exceeds_what_was_promised(neuron):
    _, _, _, found = whole("resnet", neuron)
    rng = np.random.default_rng(0)
    shape = (8, *found.parts[0].shape[1:])
    extreme = rng.choice([-1e9, 1e9], shape)  # are clipped to the range
    run = integers_of._Run(found, found.quantised(extreme), stream=False)
    sent = {}
    for _ in range(4):
        for name, value in run.step().items():
            growth = found.ratio if neuron is REFINING else 1
            sent[name] = sent.get(name, 0) * growth + value
            part = found[name]
            if part.kind != "output":
                assert np.abs(value).max() <= part.count
                assert np.abs(sent[name]).max() <= part.total
        for name, sums in run.sums.items():
            assert np.abs(sums).max() < 2**31, name
    assert all(np.any(value) for value in sent.values())


def test_files_give_the_same_network(tmp_path):
    for name, neuron in (("several", REFINING), ("maxima", SIGNED)):
        own, _, _, found = whole(name, neuron)
        path = found.save(tmp_path / "net.safetensors")
        again = Integers.load(path)
        one, other = (x.simulate(own.inputs, 4) for x in (found, again))
        for a, b in zip(one.logits, other.logits, strict=True):
            np.testing.assert_array_equal(a, b)
        for part, copy in zip(found.parts, again.parts, strict=True):
            assert part.axes == copy.axes and part.total == copy.total
        sources = []
        for k, net in enumerate((found, again)):
            (tmp_path / str(k)).mkdir(exist_ok=True)
            to_c(net, tmp_path / str(k) / "net.c")
            sources.append((tmp_path / str(k) / "net.c").read_text())
        assert sources[0] == sources[1]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"net\.safetensors: .*SHA-256"):
        Integers.load(path)


def test_axes_meet_as_convolutions_do():
    axis = Axis(5, 3, taps=3, stride=2, low=1)
    # Place 1 meets tap 0 at 1 and tap 2 at 0: 1 * 2 + 0 - 1 = 1 = 0 * 2 + 2 - 1.
    assert axis.meets[1].tolist() == [1, -1, 0]
    assert Axis(4, 1, taps=4).meets.tolist() == [
        [0 if tap == i else -1 for tap in range(4)] for i in range(4)
    ]


def test_refusals_name_what_and_what_instead():
    own = case("vgg")
    model, spiking = own.model(SIGNED), own.spiking(SIGNED)

    def refused(match, model=model, inputs=own.inputs, steps=4, spiking=spiking):
        with pytest.raises((ValueError, TypeError), match=match):
            to_integers(model, spiking, inputs, steps)

    refused("gated.*lateral", own.model(SIGNED, "gated"))
    refused("allowance.*signed=True", Model(own.network, Burst(5, allowance=2)))
    refused("digits.*SigmaDelta", own.model(SigmaDelta(digits=2)))
    refused("Phase.*Burst, Refining", own.model(Phase()))
    many = own.model(Burst(2**20, signed=True))
    refused("relu.*2.31.*fewer steps.*smaller gamma", many, steps=2**16)
    words = case("embedding")
    refused(
        "input0: .*vectors of an embedding", words.model(SIGNED), words.inputs,
        spiking=words.spiking(SIGNED),
    )  # fmt: skip

    found = to_integers(model, spiking, own.inputs, 4)
    with pytest.raises(ValueError, match="from 1 to 4.*found 5"):
        found.simulate(own.inputs, 5)
    with pytest.raises(ValueError, match="4 steps.*found 5 frames"):
        found.stream(np.stack([own.inputs] * 5))
    with pytest.raises(ValueError, match=r"input0: .*shape \[B, 8, 8, 2\]"):
        found.simulate(own.inputs[:, :3], 4)
    with pytest.raises(ValueError, match="not finite"):
        found.simulate(own.inputs * np.nan, 4)


def test_the_program_says_where_it_cannot_be_written(tmp_path):
    _, _, _, found = whole("dense", REFINING)
    with pytest.raises(ValueError, match="letters, digits"):
        to_c(found, tmp_path / "my-net.c")
    with pytest.raises(ValueError, match=r"ends in \.c"):
        to_c(found, tmp_path / "net.cpp")
    (tmp_path / "net.c").mkdir()
    with pytest.raises(OSError, match="net.c"):
        to_c(found, tmp_path / "net.c")
