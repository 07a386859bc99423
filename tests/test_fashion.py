"""Fashion-MNIST: idx files as they are published, and images that are not easy."""

import dataclasses
import gzip
from pathlib import Path

import numpy as np
import pytest

import jaxburst as jb
from jaxburst import data, idx

SOME = Path(__file__).parent / "data" / "fashion_mnist.npz"


def written(path: Path, array: np.ndarray) -> Path:
    """An idx file as the format says, gzipped if the name ends so."""
    header = bytes([0, 0, 8, array.ndim])
    header += b"".join(size.to_bytes(4, "big") for size in array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.fixture
def some():
    with np.load(SOME) as archive:
        return archive["images"], archive["labels"]


@pytest.mark.parametrize("name", ["images.gz", "images"])
def test_an_idx_file_is_read_as_it_was_written(tmp_path, name, some):
    images, _ = some
    assert (idx.read(written(tmp_path / name, images[:20])) == images[:20]).all()


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "begins with 0 0 8"),
        (bytes([0, 0, 13, 1, 0, 0, 0, 1, 1]), r"found \[0, 0, 13\]"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 3, 1, 2]), "expected 3 bytes .* found 2"),
        (bytes([0, 0, 8, 2, 255, 255, 255, 255, 255, 255, 255, 255]), "found 0"),
    ],
)
def test_what_is_no_idx_file_is_refused(tmp_path, content, words):
    path = tmp_path / "labels"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        idx.read(path)
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(bytes(1000))[:-9])
    with pytest.raises(ValueError, match="no whole gzip file"):
        idx.read(path)


def test_the_four_files_make_a_dataset(tmp_path, some, monkeypatch):
    images, labels = some
    facts = dataclasses.replace(data._STORED["fashion_mnist"], train=60, test=20)
    monkeypatch.setitem(data._STORED, "fashion_mnist", facts)
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        jb.data.load("fashion_mnist", tmp_path, validation=10)
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for prefix, rows in (("train", slice(0, 60)), ("t10k", slice(60, 80))):
        written(folder / f"{prefix}-images-idx3-ubyte.gz", images[rows])
        written(folder / f"{prefix}-labels-idx1-ubyte.gz", labels[rows])
    found = jb.data.load("fashion_mnist", tmp_path, validation=10)
    assert (len(found.train), len(found.validation), len(found.test)) == (50, 10, 20)
    assert found.test.images.shape == (20, 28, 28, 1)
    ours = {
        (x.tobytes(), int(y)) for x, y in zip(images[60:80], labels[60:80], strict=True)
    }
    theirs = {
        (x.tobytes(), int(y))
        for x, y in zip(found.test.images, found.test.labels, strict=True)
    }
    assert ours == theirs
    written(folder / "t10k-labels-idx1-ubyte.gz", labels[:19])
    with pytest.raises(ValueError, match=r"expected \(20,\), found \(19,\)"):
        jb.data.load("fashion_mnist", tmp_path, validation=10)


@pytest.mark.slow
def test_refining_spikes_keep_the_accuracy_of_the_released_network(some):
    images, labels = (x[:500] for x in some)
    module, variables = jb.pretrained("vgg7-fashion_mnist")
    notes = jb.released.notes("vgg7-fashion_mnist")
    inputs = data.normalise(images[..., None], notes["mean"], notes["std"])
    network = jb.trace(module.apply, variables, inputs[:1])
    ann = jb.accuracy(network, variables, (inputs, labels))
    # Four standard errors of 500 images.
    assert ann == pytest.approx(notes["test_accuracy"], abs=0.047)
    model, spiking = jb.presets.refining(network, variables, inputs[:100])
    curves = jb.evaluate(model, spiking, (inputs, labels), steps=4)
    assert curves.accuracy[3] >= ann - 0.01
    assert curves.events["relu0"][0] > 100
