"""Datasets: what is read is what was published, split and shuffled once and for all."""

import dataclasses
import http.server
import io
import json
import subprocess
import sys
import tarfile
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxburst import data

# A miniature of each archive: the files and the order of their labels.
LAYOUT = {
    "cifar10": dict(
        prefix="cifar-10-batches-bin/",
        archive="cifar-10-binary.tar.gz",
        train=[f"data_batch_{i}.bin" for i in range(1, 6)],
        test=["test_batch.bin"],
        label_names={"batches.meta.txt": 10},
        coarse=False,
    ),
    "cifar100": dict(
        prefix="cifar-100-binary/",
        archive="cifar-100-binary.tar.gz",
        train=["train.bin"],
        test=["test.bin"],
        label_names={"coarse_label_names.txt": 20, "fine_label_names.txt": 100},
        coarse=True,
    ),
}
ROWS = {"train": 20, "test": 10}


def random_split(rng, size, classes):
    images = rng.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8)
    return images, rng.integers(0, classes, size, dtype=np.int32)


def rows_of(images, labels, coarse):
    """Rows of the published files: (coarse label,) label, then the planes R, G, B."""
    columns = [labels[:, None].astype(np.uint8)]
    if coarse:
        columns.insert(0, np.full_like(columns[0], 7))
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([*columns, planes], axis=1)


def pack(name, path, splits):
    """Writes the archive of `splits`, {'train': (images, labels), 'test': ...}."""
    layout = LAYOUT[name]
    files = {
        file: "\n".join(f"class{i}" for i in range(count)).encode() + b"\n"
        for file, count in layout["label_names"].items()
    }
    for split, (images, labels) in splits.items():
        rows = rows_of(images, labels, layout["coarse"])
        parts = np.split(rows, len(layout[split]))
        files |= {f: p.tobytes() for f, p in zip(layout[split], parts, strict=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for file, content in files.items():
            member = tarfile.TarInfo(layout["prefix"] + file)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


class Fake:
    """A small CIFAR whose checksum and numbers of rows pass for the published ones."""

    def __init__(self, name, root, monkeypatch):
        self.name, self.root, self.monkeypatch = name, root, monkeypatch
        self.classes = 100 if name == "cifar100" else 10
        self.archive = root / "downloads" / "manual" / LAYOUT[name]["archive"]
        rng = np.random.default_rng(0)
        self.splits = {s: random_split(rng, n, self.classes) for s, n in ROWS.items()}
        facts = dataclasses.replace(data._STORED[name], **ROWS)
        monkeypatch.setitem(data._STORED, name, facts)

    def bring_archive(self):
        pack(self.name, self.archive, self.splits)
        self.publish()

    def publish(self):
        from tensorflow_datasets.core.download import checksums

        info = checksums.compute_url_info(self.archive)
        number = self.name.removeprefix("cifar")
        url = f"https://www.cs.toronto.edu/~kriz/cifar-{number}-binary.tar.gz"
        self.monkeypatch.setattr(checksums, "get_all_url_infos", lambda: {url: info})

    def load(self, validation=6, **options):
        return data.load(self.name, self.root, validation=validation, **options)

    @property
    def directory(self):
        return data._directory(self.name, self.root)


@pytest.fixture(params=["cifar10", "cifar100"])
def either(request, tmp_path, monkeypatch):
    return Fake(request.param, tmp_path, monkeypatch)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    return Fake("cifar10", tmp_path, monkeypatch)


@pytest.fixture
def prepared(fake):
    fake.bring_archive()
    data.prepare(fake.name, fake.root)
    return fake


def contents(*splits):
    """The pairs (pixels, label) of splits, sorted: equal for equal sets of images."""
    return sorted(
        (image.tobytes(), int(label))
        for images, labels in splits
        for image, label in zip(images, labels, strict=True)
    )


def pair(split):
    return split.images, split.labels


# Reading and preparing CIFAR.


def test_what_was_in_the_archive_is_what_is_read(either):
    either.bring_archive()
    dataset = either.load()
    assert contents(pair(dataset.test)) == contents(either.splits["test"])
    assert contents(pair(dataset.train), pair(dataset.validation)) == contents(
        either.splits["train"]
    )
    assert (dataset.name, dataset.classes) == (either.name, either.classes)
    assert dataset.train.images.dtype == np.uint8
    assert dataset.train.labels.dtype == np.int32
    assert dataset.train.mean == data._STORED[either.name].mean
    assert "tensorflow" not in sys.modules


def test_tfds_itself_reads_what_was_prepared(prepared):
    import tensorflow_datasets as tfds

    source = tfds.data_source(
        "cifar10", split="train", data_dir=prepared.root, download=False
    )
    images, labels = zip(*((row["image"], row["label"]) for row in source), strict=True)
    assert contents((images, labels)) == contents(prepared.splits["train"])
    first = [row["image"] for row in source if row["id"] == b"train_00000"]
    np.testing.assert_array_equal(first, prepared.splits["train"][0][:1])


def test_a_prepared_dataset_is_left_alone_and_needs_no_archive(prepared):
    before = {p: p.stat().st_mtime_ns for p in prepared.directory.iterdir()}
    prepared.archive.unlink()
    assert data.prepare(prepared.name, prepared.root) == prepared.directory
    prepared.load()
    assert {p: p.stat().st_mtime_ns for p in prepared.directory.iterdir()} == before


def test_order_does_not_depend_on_the_files(prepared, tmp_path, monkeypatch):
    mine = prepared.load()
    theirs = Fake("cifar10", tmp_path / "theirs", monkeypatch)
    images, labels = theirs.splits["train"]
    order = np.random.default_rng(1).permutation(len(labels))
    theirs.splits["train"] = images[order], labels[order]
    theirs.bring_archive()
    other = theirs.load()
    for split in ("train", "validation", "test"):
        for field in ("images", "labels"):
            np.testing.assert_array_equal(
                getattr(getattr(mine, split), field),
                getattr(getattr(other, split), field),
            )


def test_a_damaged_archive_is_refused_and_a_good_one_then_accepted(fake):
    fake.bring_archive()
    good = fake.archive.read_bytes()
    fake.archive.write_bytes(good[:-9] + b"damaged!!")
    with pytest.raises(ValueError, match="damaged, or is not the archive") as error:
        fake.load()
    assert str(fake.archive) in str(error.value)
    assert not fake.directory.exists()
    fake.archive.write_bytes(good)
    fake.load()


def test_leftovers_of_an_interrupted_run_do_no_harm(fake):
    fake.bring_archive()
    left = fake.directory.with_name(f"incomplete.ABC123_{fake.directory.name}")
    left.mkdir(parents=True)
    (left / "cifar10-train.array_record-00000-of-00001").write_bytes(b"half")
    fake.archive.with_suffix(".1.part").write_bytes(b"half")
    assert len(fake.load().train) == 14


def test_offline_fails_at_once_and_says_what_to_do(fake, monkeypatch):
    import requests

    def no_network(*_, **__):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "get", no_network)
    start = time.monotonic()
    with pytest.raises(ConnectionError) as error:
        fake.load()
    assert time.monotonic() - start < 5
    message = str(error.value)
    assert "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz" in message
    assert str(fake.archive) in message and "--data-dir" in message
    fake.bring_archive()  # where the message says
    fake.load()


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(404 if self.path == "/missing" else 200)
        self.send_header("Content-Length", "10" if self.path == "/cut" else "5")
        self.end_headers()
        self.wfile.write(b"12345")

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_download_appears_whole(server, tmp_path):
    data._fetch("cifar10", server + "/whole", tmp_path / "new" / "file")
    assert (tmp_path / "new" / "file").read_bytes() == b"12345"


@pytest.mark.parametrize("path", ["/cut", "/missing"])
def test_a_download_appears_whole_or_not_at_all(server, tmp_path, path):
    with pytest.raises(ConnectionError, match=path):
        data._fetch("cifar10", server + path, tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_nothing_prepared_and_no_download(fake):
    with pytest.raises(FileNotFoundError, match="found nothing.*--data-dir") as error:
        fake.load(download=False)
    assert str(fake.directory) in str(error.value)


def test_files_of_another_format_are_refused(prepared):
    path = prepared.directory / "dataset_info.json"
    facts = json.loads(path.read_text()) | {"fileFormat": "tfrecord"}
    path.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="expected array_record .* found tfrecord"):
        prepared.load()


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_an_incomplete_folder_is_refused(prepared, file):
    (prepared.directory / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"incomplete.*{file}.*delete"):
        prepared.load()


def test_a_wrong_number_of_images_is_refused(prepared, monkeypatch):
    facts = dataclasses.replace(data._STORED["cifar10"], train=50_000)
    monkeypatch.setitem(data._STORED, "cifar10", facts)
    with pytest.raises(ValueError, match="50000.*found.*20.*delete"):
        prepared.load()


def test_a_damaged_file_is_refused(prepared):
    [path] = prepared.directory.glob("*-test.array_record*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot read .* delete that folder"):
        prepared.load()


def test_importing_is_light():
    code = (
        "import sys, jaxburst.data\n"
        "heavy = {'grain', 'tensorflow', 'tensorflow_datasets', 'sklearn'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("call", [data.digits, data.cifar10])
def test_a_missing_package_names_the_extra(call, monkeypatch):
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "jaxburst\[data\]"'):
        call()


# Splits.


def test_validation_is_the_beginning_of_a_larger_one(prepared):
    whole, large, small = (prepared.load(validation=n) for n in (0, 6, 2))
    assert (len(whole.train), len(whole.validation)) == (20, 0)
    assert (len(large.train), len(large.validation)) == (14, 6)
    np.testing.assert_array_equal(large.validation[:2].images, small.validation.images)
    assert not set(contents(pair(large.train))) & set(contents(pair(large.validation)))


@pytest.mark.parametrize("validation", [-1, 20])
def test_validation_must_leave_images_to_train_on(prepared, validation):
    with pytest.raises(ValueError, match=f"validation.*found {validation}"):
        prepared.load(validation=validation)


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    source = load_digits()
    dataset = data.digits()
    splits = dataset.train, dataset.validation, dataset.test
    assert [len(split) for split in splits] == [1257, 180, 360]
    images = np.rint(source.images / 16 * 255).astype(np.uint8)[..., None]
    # The same images, each once: the splits are disjoint and leave nothing out.
    assert contents(*map(pair, splits)) == contents((images, source.target))
    assert dataset.train.images.shape == (1257, 8, 8, 1)
    assert (dataset.train.images.min(), dataset.train.images.max()) == (0, 255)


def test_every_split_of_digits_holds_the_classes_in_proportion():
    dataset = data.digits()
    splits = dataset.train, dataset.validation, dataset.test
    counts = np.stack([np.bincount(split.labels) for split in splits])
    shares = np.array([[len(split)] for split in splits]) / 1797
    assert np.abs(counts - shares * counts.sum(0)).max() < 2


def test_digits_never_change():
    small, again, large = data.digits(), data.digits(), data.digits(validation=500)
    np.testing.assert_array_equal(small.train.images, again.train.images)
    np.testing.assert_array_equal(small.test.images, large.test.images)
    np.testing.assert_array_equal(
        small.validation.images, large.validation[:180].images
    )


def test_digits_are_normalised_by_their_training_images():
    inputs = data.digits().train.inputs
    assert inputs.dtype == np.float32
    np.testing.assert_allclose([inputs.mean(), inputs.std()], [0, 1], atol=1e-4)


def test_a_split_is_indexed_like_an_array():
    split = data.digits().test
    some = split[np.array([3, 1])]
    np.testing.assert_array_equal(some.images, split.images[[3, 1]])
    np.testing.assert_array_equal(some.labels, split.labels[[3, 1]])
    assert len(split[:10]) == 10 and len(split[split.labels == 0]) == 36
    assert len(split[[]]) == 0 and len(split[[-1]]) == 1
    for index, kind, message in (
        (3, TypeError, "one image is split"),
        ([1.5], TypeError, "a 1-d array of indices"),
        (["a"], TypeError, "a 1-d array of indices"),
        ([0, 360], IndexError, "below 360, the number of images, found 0 .. 360"),
        ([-361], IndexError, "found -361"),
        ([True], IndexError, "a mask of 360 images, found 1"),
    ):
        with pytest.raises(kind, match=message):
            split[index]


PIXEL = np.zeros((2, 3, 3, 1), np.uint8)


@pytest.mark.parametrize(
    "change",
    [
        {"images": "images"},
        {"images": PIXEL.astype(str)},
        {"images": PIXEL * 1j},
        {"images": PIXEL * np.nan},
        {"images": PIXEL[:1]},
        {"images": np.uint8(1)},
        {"labels": [0, 1]},
        {"labels": np.array(["a", "b"])},
        {"labels": np.array([0, np.nan])},
        {"mean": (0.5, 0.5)},
        {"mean": (0.5,)},
        {"mean": (127.0,), "std": (1.0,)},
        {"mean": (np.nan,), "std": (0.5,)},
        {"mean": (0.5,), "std": (0.0,)},
        {"mean": "a", "std": "b"},
        {"mean": 0.5, "std": 0.5},
        {"images": PIXEL * 1.0, "mean": (0.5,), "std": (0.5,)},
    ],
)
def test_a_split_is_checked_when_it_is_made(change):
    good = {"images": PIXEL, "labels": np.arange(2)}
    assert data.Split(**good).mean == ()
    with pytest.raises((TypeError, ValueError), match="^Split: |^mean, std: "):
        data.Split(**good | change)


@pytest.mark.parametrize(
    "change",
    [
        {"name": 3},
        {"classes": 0},
        {"classes": 1.5},
        {"train": (PIXEL, np.arange(2))},
        {"test": data.Split(PIXEL[:, :2], np.arange(2))},
        {"test": data.Split(PIXEL * 1.0, np.arange(2))},
        {"validation": data.Split(PIXEL, np.arange(1, 3))},
        {"validation": data.Split(PIXEL, np.arange(2) - 1)},
        {"validation": data.Split(PIXEL, np.arange(2) * 0.5)},
    ],
)
def test_a_dataset_is_checked_when_it_is_made(change):
    split = data.Split(PIXEL, np.arange(2))
    good = dict(name="two", train=split, validation=split[:0], test=split, classes=2)
    assert len(data.Dataset(**good).validation) == 0
    with pytest.raises((TypeError, ValueError), match=f"^Dataset: {[*change][0]}"):
        data.Dataset(**good | change)


def test_with_normalisation_changes_the_constants_only():
    dataset = data.digits()
    other = dataset.with_normalisation([0.5], np.array([0.25]))
    for split in (other.train, other.validation, other.test):
        assert (split.mean, split.std) == ((0.5,), (0.25,))
    assert other.test.images is dataset.test.images
    expected = (dataset.test.images.astype(np.float32) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(other.test.inputs, expected, rtol=1e-6)


def test_load_lists_the_names_it_knows():
    with pytest.raises(
        ValueError, match="'mnist'.*digits, .*cifar10, cifar100, imagenet2012"
    ):
        data.load("mnist")
    with pytest.raises(
        ValueError, match="cifar10, cifar100, imagenet2012, found 'digits'"
    ):
        data.prepare("digits", "data")
    assert len(data.load("digits", validation=7).validation) == 7


# Normalisation.

PIXELS = np.array([[0, 51, 255], [255, 102, 0]], np.uint8).reshape(1, 1, 2, 3)
MEAN, STD = (0.0, 0.2, 0.5), (0.5, 0.2, 0.25)
# (pixel / 255 - mean) / std, by hand
NORMALISED = np.array([[0, 0, 2], [2, 1, -2]], np.float32).reshape(1, 1, 2, 3)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_normalise_by_hand(array):
    out = data.normalise(array(PIXELS), MEAN, STD)
    assert out.dtype == np.float32 and isinstance(out, type(array(PIXELS)))
    np.testing.assert_allclose(out, NORMALISED, atol=1e-6)
    one = data.normalise(array(PIXELS)[0], MEAN, STD)
    np.testing.assert_array_equal(one, out[0])


def test_normalise_under_jit():
    out = jax.jit(lambda images: data.normalise(images, MEAN, STD))(PIXELS)
    np.testing.assert_allclose(out, NORMALISED, atol=1e-6)


def test_normalise_refuses_what_it_would_get_wrong():
    with pytest.raises(TypeError, match="expected uint8.*found float32"):
        data.normalise(NORMALISED, MEAN, STD)
    with pytest.raises(ValueError, match="each channel.*needs a mean"):
        data.normalise(PIXELS, (0.5,), (0.5,))
    with pytest.raises(ValueError, match="a std in 0 < x <= 1"):
        data.normalise(PIXELS, MEAN, (0.5, 0.0, 0.5))
    with pytest.raises(ValueError, match="units of pixel/255"):
        data.normalise(PIXELS, (127.0, 127.0, 127.0), (60.0, 60.0, 60.0))


# The order of training.


def epoch_of(seed, epoch, batch_size, size):
    steps = size // batch_size
    return np.concatenate(
        [
            data.batch_indices(seed, epoch * steps + i, batch_size, size)
            for i in range(steps)
        ]
    )


def test_an_epoch_is_a_permutation():
    for epoch in (0, 1, 7):
        np.testing.assert_array_equal(np.sort(epoch_of(0, epoch, 5, 20)), range(20))


def test_the_remainder_of_an_epoch_is_dropped():
    indices = epoch_of(0, 0, 6, 20)
    assert len(set(indices)) == len(indices) == 18
    # ... and is another one in another epoch, so that every image has its turn.
    assert set(np.concatenate([epoch_of(0, e, 6, 20) for e in range(9)])) == set(
        range(20)
    )


def test_epochs_and_seeds_differ():
    orders = [epoch_of(s, e, 50, 100).tobytes() for s in range(4) for e in range(4)]
    assert len(set(orders)) == 16


def test_batches_are_a_pure_function_of_seed_and_step():
    indices = data.batch_indices(1, 1000, 4, 10)
    np.random.default_rng(0).random()  # whatever happens in between
    np.testing.assert_array_equal(indices, data.batch_indices(1, 1000, 4, 10))
    assert indices.dtype == np.int32 and indices.shape == (4,)


def test_batches_never_change():
    # Else a training resumed under another release would see other images.
    assert data.batch_indices(0, 0, 4, 10).tolist() == [0, 2, 9, 1]
    assert data.batch_indices(7, 5, 4, 10).tolist() == [0, 1, 5, 3]


@pytest.mark.parametrize("batch_size", [0, 11])
def test_a_batch_must_fit(batch_size):
    with pytest.raises(ValueError, match=f"batch_size.*found {batch_size}"):
        data.batch_indices(0, 0, batch_size, 10)


def test_steps_count_from_zero():
    with pytest.raises(ValueError, match="step: .* found -1"):
        data.batch_indices(0, -1, 4, 10)
