"""A file of events holds every spike that `simulate` shows, and no other."""

import json

import numpy as np
import pytest
from nets import case

import jaxburst as jb

NEURONS = {"burst": jb.Burst(5, signed=True), "refining": jb.Refining()}


@pytest.mark.parametrize("name", NEURONS)
def test_events_are_the_spikes(tmp_path, name):
    neuron, network = NEURONS[name], case("maxima")
    model, spiking = network.model(neuron), network.spiking(neuron)
    expected = network.run(model, spiking, 4).spikes
    path = tmp_path / "spikes.npz"
    jb.events.write(path, model, spiking, network.inputs, 4, batch_size=2)
    with np.load(path) as file:  # as anybody would read it
        header, events = json.loads(str(file["header"])), file["events"]
    assert header["format"] == "jaxburst events 1" and header["images"] == 3
    assert (events["count"] < 0).any(), "some are taken back"
    assert (np.diff(events["image"].astype(int)) >= 0).all()
    for i, layer in enumerate(header["layers"]):
        own = events[events["layer"] == i]
        found = np.zeros((4, 3, np.prod(layer["shape"])))
        at = own["step"].astype(int) - 1, own["image"], own["neuron"]
        np.add.at(found, at, own["count"])
        assert len(own) == np.count_nonzero(found) > 0
        spikes = expected[layer["name"]]
        np.testing.assert_array_equal(found.reshape(spikes.shape), spikes)


def test_memory_is_that_of_a_batch(tmp_path, monkeypatch):
    """However many images there are, rows of one batch are held at a time."""
    network = case("maxima")
    model, spiking = network.model(jb.Burst(5)), network.spiking(jb.Burst(5))
    inputs = np.concatenate([network.inputs] * 4)
    seen, rows = [], jb.events._rows

    def watched(*arguments):
        seen.append(len(rows(*arguments)))
        return rows(*arguments)

    monkeypatch.setattr(jb.events, "_rows", watched)
    names = network.network.neurons[:1]
    path = tmp_path / "spikes.npz"
    jb.events.write(path, model, spiking, inputs, 2, names=names[0], batch_size=3)
    header, events = jb.events.read(path)
    assert len(seen) == 4 and sum(seen) == len(events) > max(seen)
    assert [layer["name"] for layer in header["layers"]] == list(names)
    assert sorted(tmp_path.iterdir()) == [path], "nothing else is left"


def test_what_is_refused(tmp_path):
    network = case("maxima")
    model, spiking = network.model(), network.spiking(jb.Burst(5))
    path = tmp_path / "spikes.npz"
    with pytest.raises(ValueError, match="names: expected some of .* found .'nobody'"):
        jb.events.write(path, model, spiking, network.inputs, 2, names="nobody")
    path.write_text("years of work")
    with pytest.raises(FileExistsError, match="is not a file of events"):
        jb.events.write(path, model, spiking, network.inputs, 2)
    with pytest.raises(ValueError, match="cannot be read"):
        jb.events.read(path)
    with pytest.raises(FileNotFoundError, match="expected a file of events"):
        jb.events.read(tmp_path / "none.npz")
