"""Images and labels: digits, Fashion-MNIST, and CIFAR and ImageNet through TFDS.

    cifar = data.load("cifar100", "data")       # downloads and prepares at first
    rows = data.batch_indices(seed, step, 128, len(cifar.train))
    batch = cifar.train[rows]
    inputs = data.normalise(batch.images, batch.mean, batch.std)

TensorFlow is never needed: tensorflow-datasets reads its array_record files without it,
and `prepare` writes them without it. `N` counts images, `B` those of a batch; images
are uint8 `[N, H, W, C]`. Digits and CIFAR are held in memory; ImageNet stays on disk,
and what is asked for is decoded by grain.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxburst import idx
from jaxburst.checks import door, finite, instance, refuse, whole
from jaxburst.io.files import replacing
from jaxburst.progress import track

_DIGITS_SEED = 0
_DIGITS_TEST = 360
_ANEW = "delete that folder and run again: it will be prepared anew"


@dataclasses.dataclass(frozen=True, eq=False)
class OnDisk:
    """An array that is read when it is used, one row from each record.

    Indexing it by a slice, an array of indices or a mask chooses rows and reads none;
    `np.asarray` reads them, on as many threads as there are CPU cores.

    Attributes:
      folder: where the records are, for error messages.
      records: a sequence of records, as TFDS and array_record give.
      rows: which of them, in which order. int `[N]`.
      read: makes one row `[...]` of a record.
      row_shape: the shape of a row.
      dtype: its type.

    Example:
      >>> jb.data.imagenet("data").test.images[10:20].shape  # doctest: +SKIP
    """

    folder: str | os.PathLike
    records: Sequence
    rows: np.ndarray
    read: Callable[[Any], Any]
    row_shape: tuple[int, ...]
    dtype: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """`(N, ...)`."""
        return (len(self.rows), *self.row_shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index) -> OnDisk:
        return dataclasses.replace(self, rows=self.rows[index])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        grain = _grain()
        threads = os.cpu_count() or 1
        options = grain.ReadOptions(
            num_threads=threads, prefetch_buffer_size=2 * threads
        )
        source = grain.MapDataset.source(self.rows)
        read = source.map(lambda row: self.read(self.records[int(row)]))
        values = np.empty(self.shape, self.dtype)
        with _readable(self.folder):
            for i, value in enumerate(read.to_iter_dataset(options)):
                values[i] = value
        return values if dtype is None else values.astype(dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Labelled images, and the constants that normalise them; or other labelled data.

    Attributes:
      images: pixels 0..255, uint8 `[N, H, W, C]`, in memory or `OnDisk`; or
        floating-point numbers of any shape `[N, ...]`, which are taken as they are.
      labels: classes, int32 `[N]`, likewise; or other targets `[N, ...]`.
      mean: mean of each channel of pixels, in units of pixel/255.
      std: standard deviation of each channel, in the same unit.

    Raises:
      TypeError, ValueError: these are no numbers, or not finite; there is not one label
        for each image, or not one constant for each channel; or floating-point numbers
        came with constants to normalise them.

    Example:
      >>> white = np.full((2, 1, 1, 1), 255, np.uint8)
      >>> split = Split(white, np.array([3, 4]), mean=(0.5,), std=(0.25,))
      >>> split[1:].inputs.item(), split[1:].labels.item()  # (1 - 0.5) / 0.25
      (2.0, 4)
    """

    images: np.ndarray | OnDisk
    labels: np.ndarray | OnDisk
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self):
        for name in ("images", "labels"):
            value = getattr(self, name)
            if not hasattr(value, "dtype") or not hasattr(value, "ndim"):
                instance(f"Split: {name}", value, (), "an array")
            if np.dtype(value.dtype).kind not in "biufV":
                refuse(f"Split: {name}", "numbers", str(value.dtype))
            if not isinstance(value, OnDisk):
                finite(f"Split: {name}", value, "leave it out, or normalise again")
        images, mean, std = self.images, _floats(self.mean), _floats(self.std)
        if not images.ndim or not self.labels.ndim or len(images) != len(self):
            raise ValueError(
                "Split: expected a label for every image, found images "
                f"{images.shape} and labels {self.labels.shape}"
            )
        if images.dtype != np.uint8:
            if any(mean) or any(x != 1 for x in std):
                raise ValueError(
                    f"Split: {images.dtype} data are taken as they are, but mean "
                    f"{self.mean} and std {self.std} came with them; apply these to "
                    "the data, and leave them out"
                )
        elif not (
            len(mean) == len(std) in (0, images.shape[-1])
            and _are_of_pixels(np.array(mean), np.array(std))
        ):
            raise ValueError(
                "Split: expected a mean in 0 .. 1 and a std in 0 < x <= 1 for each "
                f"channel of {images.shape}, in units of pixel/255, found {self.mean} "
                f"and {self.std}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index) -> Split:
        """The images that a slice, an array of indices or a mask `[N]` selects.

        Raises:
          IndexError: for an index outside, or a mask of another length.
        """
        if not isinstance(index, slice):
            index, size = np.asarray(index), len(self)
            if not index.size:
                index = index.astype(np.int64)  # an empty list is one of floats
            if index.ndim != 1 or index.dtype.kind not in "bui":
                raise TypeError(
                    "Split: expected a slice, a 1-d array of indices or a mask, found "
                    f"{index.dtype} {index.shape}; one image is split[i : i + 1]"
                )
            if index.dtype.kind == "b":
                if len(index) != size:
                    raise IndexError(
                        f"Split: expected a mask of {size} images, found {len(index)}"
                    )
            elif not ((-size <= index) & (index < size)).all():
                raise IndexError(
                    f"Split: expected indices below {size}, the number of images, "
                    f"found {index.min()} .. {index.max()}"
                )
        return dataclasses.replace(
            self, images=self.images[index], labels=self.labels[index]
        )

    @property
    def inputs(self) -> np.ndarray:
        """What the network is given: float32 `[N, H, W, C]`, 4 × `images.nbytes`."""
        images = np.asarray(self.images)
        if images.dtype != np.uint8:
            return images
        return normalise(images, self.mean, self.std)

    @property
    def pair(self) -> tuple[Inputs, np.ndarray | OnDisk]:
        """`(inputs, labels)`, of which inputs are made when they are indexed."""
        return Inputs(self), self.labels


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """The inputs of a split, normalised row by row when they are asked for.

    Example:
      >>> inputs, labels = digits().test.pair
      >>> len(inputs), inputs[:3].shape
      (360, (3, 8, 8, 1))
    """

    split: Split

    def __post_init__(self):
        instance("Inputs: split", self.split, Split, "a Split")

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index) -> np.ndarray:
        return self.split[index].inputs


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits.

    Attributes:
      name: `digits`, `cifar10`, `cifar100` or `imagenet2012`.
      train: images to train on.
      validation: images held out of the training set, to choose by. May be empty.
      test: images to report on.
      classes: number of classes; labels are 0 .. classes - 1.

    Raises:
      TypeError, ValueError: these are no splits of such labels, or their images differ
        in shape or type.

    Example:
      >>> dataset = digits()
      >>> len(dataset.train), len(dataset.validation), len(dataset.test)
      (1257, 180, 360)
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int

    def __post_init__(self):
        instance("Dataset: name", self.name, str, "a string")
        whole("Dataset: classes", self.classes, 1)
        shape, dtype = getattr(self.train, "images", np.empty(0)).shape[1:], None
        for name in ("train", "validation", "test"):
            split = instance(f"Dataset: {name}", getattr(self, name), Split, "a Split")
            images, labels = split.images, split.labels
            dtype = dtype or images.dtype
            if (images.shape[1:], images.dtype) != (shape, dtype):
                raise ValueError(
                    f"Dataset: {name}: expected images {dtype} {shape}, as those to "
                    f"train on, found {images.dtype} {images.shape[1:]}"
                )
            if np.dtype(labels.dtype).kind not in "ui" or labels.ndim != 1:
                refuse(f"Dataset: {name}", "whole numbers [N] as labels", labels)
            if isinstance(labels, OnDisk) or not len(labels):
                continue
            low, high = labels.min(), labels.max()
            if low < 0 or high >= self.classes:
                raise ValueError(
                    f"Dataset: {name}: expected labels in 0 .. {self.classes - 1}, "
                    f"found {low} .. {high}"
                )

    def with_normalisation(self, mean, std) -> Dataset:
        """The same images with the constants of, say, a network trained elsewhere.

        Args:
          mean: mean of each channel, in units of pixel/255.
          std: standard deviation of each channel, in the same unit.
        """
        constants = {"mean": _floats(mean), "std": _floats(std)}
        splits = {
            name: dataclasses.replace(getattr(self, name), **constants)
            for name in ("train", "validation", "test")
        }
        return dataclasses.replace(self, **splits)


@door
def normalise(images, mean, std):
    """Rescales pixels: `(images / 255 - mean) / std`.

    Args:
      images: pixels 0..255, NumPy or JAX. uint8 `[..., C]`.
      mean: one number per channel, in units of pixel/255.
      std: one positive number per channel, in the same unit.

    Returns:
      float32 `[..., C]`, NumPy from NumPy and JAX from JAX.

    Raises:
      TypeError: the images are not uint8.
      ValueError: there is not one `mean` and one positive `std` per channel.

    Example:
      >>> normalise(np.array([[0, 255]], np.uint8), (0.5, 0.5), (0.5, 0.25)).tolist()
      [[-1.0, 2.0]]
    """
    if images.dtype != np.uint8:
        raise TypeError(
            f"normalise: expected uint8 pixels 0..255, found {images.dtype}; "
            "images that are normalised already must not be normalised again"
        )
    mean = np.asarray(mean, np.float32)
    std = np.asarray(std, np.float32)
    channels = images.shape[-1:]
    if not mean.shape == std.shape == channels or not _are_of_pixels(mean, std):
        raise ValueError(
            f"normalise: of images {images.shape} each channel, along the last axis, "
            "needs a mean in 0 .. 1 and a std in 0 < x <= 1, in units of "
            f"pixel/255; found mean {mean.tolist()}, std {std.tolist()}"
        )
    along_channels = (1,) * (images.ndim - 1) + channels
    pixels = images.astype(np.float32) / np.float32(255)
    return (pixels - mean.reshape(along_channels)) / std.reshape(along_channels)


@door
def load(
    name: str, data_dir="data", *, validation: int | None = None, download: bool = True
) -> Dataset:
    """Loads a dataset by name: `digits`, `fashion_mnist`, `cifar10`, `cifar100` or
    `imagenet2012`.

    Args:
      name: which dataset.
      data_dir: folder of the prepared datasets. Not used by `digits`.
      validation: images held out of the training set; None for the usual number.
      download: whether a missing dataset may be downloaded, or made from archives
        that are there. Not used by `digits`.

    Raises:
      ValueError: the name is unknown. See `digits`, `cifar10`, `cifar100`, `imagenet`
        for others.

    Example:
      >>> load("digits").classes
      10
    """
    held_out = {} if validation is None else {"validation": validation}
    if name == "digits":
        return digits(**held_out)
    if name == "fashion_mnist":
        return fashion_mnist(data_dir, **held_out)
    stored = {"cifar10": cifar10, "cifar100": cifar100, "imagenet2012": imagenet}
    if name in stored:
        return stored[name](data_dir, download=download, **held_out)
    known = ", ".join(["digits", "fashion_mnist", *stored])
    raise ValueError(f"unknown dataset {name!r}: expected one of {known}")


@door
def digits(*, validation: int = 180) -> Dataset:
    """Loads scikit-learn's 1,797 handwritten digits, 8×8 pixels; needs no download.

    The 360 test images are always the same, and so is the order in which images are
    held out: a smaller validation split is the beginning of a larger one. Every split
    holds the ten classes in proportion. Grey levels 0..16 are stretched to 0..255.

    Args:
      validation: images held out of the 1,437 for training.

    Raises:
      ImportError: scikit-learn is missing.
      ValueError: `validation` leaves nothing to train on.

    Example:
      >>> digits().test.images.shape, digits(validation=10).validation.labels.shape
      ((360, 8, 8, 1), (10,))
    """
    _require("sklearn")
    from sklearn.datasets import load_digits

    source: Any = load_digits()
    images = np.rint(source.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = source.target.astype(np.int32)
    order = _stratified_order(labels)
    test, rest = order[:_DIGITS_TEST], order[_DIGITS_TEST:]
    _check_validation("digits", validation, len(rest))
    held_out, kept = rest[:validation], rest[validation:]
    pixels = images[kept] / 255
    constants = _floats([pixels.mean()]), _floats([pixels.std()])
    train, held_out, test = (
        Split(images[rows], labels[rows], *constants) for rows in (kept, held_out, test)
    )
    return Dataset("digits", train, held_out, test, classes=10)


@door
def fashion_mnist(data_dir="data", *, validation: int = 5000) -> Dataset:
    """Loads Fashion-MNIST: 60,000 training and 10,000 test images, 28×28×1, 10 classes.

    Read from what TFDS prepared in `<data_dir>/fashion_mnist`, or from the four idx
    files `train-images-idx3-ubyte.gz`, ... in `<data_dir>`, `<data_dir>/fashion-mnist`
    or `<data_dir>/downloads/manual`. Images come in the order of their content, as
    CIFAR's do.

    Args:
      data_dir: the folder.
      validation: images held out of the 60,000; 0 trains on all of them.

    Raises:
      FileNotFoundError: there is neither; says where to put the files.
      ValueError: what is there cannot be used, or `validation` leaves no training set.

    Example:
      >>> fashion_mnist("data").test.images.shape  # doctest: +SKIP

    References:
      Xiao, Rasul and Vollgraf, arXiv 1708.07747 (the data: MIT licence).
    """
    facts, root = _STORED["fashion_mnist"], Path(data_dir).expanduser()
    _check_validation("fashion_mnist", validation, facts.train)
    if (root / "fashion_mnist").is_dir():
        return _load("fashion_mnist", data_dir, validation, False, _read)
    splits = []
    for prefix, count in (("train", facts.train), ("t10k", facts.test)):
        images = _idx(root, f"{prefix}-images-idx3-ubyte", (count, 28, 28))[..., None]
        labels = _idx(root, f"{prefix}-labels-idx1-ubyte", (count,)).astype(np.int32)
        order = _content_order(images, labels)
        splits.append(Split(images[order], labels[order], facts.mean, facts.std))
    train, test = splits
    parts = train[validation:], train[:validation], test
    return Dataset("fashion_mnist", *parts, facts.classes)


def _idx(root: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One of the four files, wherever it is."""
    folders = (root, root / "fashion-mnist", root / "downloads" / "manual")
    for folder in folders:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                found = idx.read(path)
                if found.shape != shape:
                    raise ValueError(f"{path}: expected {shape}, found {found.shape}")
                return found
    raise FileNotFoundError(
        f"fashion_mnist: expected {name}.gz in one of "
        f"{', '.join(map(str, folders))}, found it in none; put the four idx files of "
        "Fashion-MNIST there (Debian: dataset-fashion-mnist, in /usr/share/datasets), "
        "or pass the data_dir (--data-dir) that holds them"
    )


@door
def cifar10(
    data_dir="data", *, validation: int = 5000, download: bool = True
) -> Dataset:
    """Loads CIFAR-10: 50,000 training and 10,000 test images, 32×32×3, 10 classes.

    Images come in an order that is random but fixed by their pixels, hence the same
    whoever prepared the files; the first `validation` training images are held out.
    All are read into memory, 184 MB, in some ten seconds.

    Args:
      data_dir: folder of the prepared datasets, as TFDS lays them out.
      validation: images held out of the 50,000; 0 trains on all of them.
      download: whether to `prepare` the dataset when it is not there.

    Raises:
      ConnectionError: the download failed; says where to put the archive by hand.
      FileNotFoundError: nothing (whole) is prepared there, and nothing was downloaded.
      ImportError: a package of `jaxburst[data]` is missing.
      ValueError: what is there cannot be used, or `validation` leaves no training set.

    Example:
      >>> cifar10("data").train.images.shape  # doctest: +SKIP
    """
    return _load("cifar10", data_dir, validation, download, _read)


@door
def cifar100(
    data_dir="data", *, validation: int = 5000, download: bool = True
) -> Dataset:
    """Loads CIFAR-100, the 100 fine classes. Everything else is as in `cifar10`.

    Example:
      >>> cifar100("data").classes  # doctest: +SKIP
    """
    return _load("cifar100", data_dir, validation, download, _read)


@door
def imagenet(data_dir="data", *, validation: int = 0, download: bool = True) -> Dataset:
    """ImageNet: 1,281,167 training and 50,000 test images, 224×224×3, 1000 classes.

    The published validation images are the `test` split. All images stay on disk, in
    the order, random but fixed, in which TFDS writes them. One that is asked for is
    decoded, its shorter side resized to 256 pixels (bilinear, antialiased), and the
    224×224 pixels at its centre are cut out, as torchvision does for the networks it
    publishes; `mean` and `std` are torchvision's.

    Args:
      data_dir: folder of the prepared datasets, as TFDS lays them out.
      validation: images held out of the training set. A network that was trained
        elsewhere has seen all of them.
      download: whether to `prepare` the dataset, from archives that are there, when it
        is not.

    Raises:
      FileNotFoundError: nothing (whole) is prepared there, and there are no archives;
        says where to put them.
      ImportError: a package of `jaxburst[imagenet]` is missing.
      ValueError: what is there cannot be used, or `validation` leaves no training set.

    Example:
      >>> imagenet("data").test.inputs.shape  # doctest: +SKIP
    """
    _grain()  # not only when the first images are read
    return _load("imagenet2012", data_dir, validation, download, _on_disk)


@door
def prepare(name: str, data_dir) -> Path:
    """Writes CIFAR or ImageNet as TFDS would, without TensorFlow.

    Archives are looked for in `<data_dir>/downloads/manual/`. That of CIFAR is
    downloaded if it is not there, and checked against the SHA-256 that TFDS publishes.
    Those of ImageNet, `ILSVRC2012_img_train.tar` and `ILSVRC2012_img_val.tar`, have to
    be put there: image-net.org gives them to those who register. They are 145 GB, and
    so is what is made of them. What is prepared already is left alone.

    Args:
      name: `cifar10`, `cifar100` or `imagenet2012`.
      data_dir: folder of the prepared datasets.

    Returns:
      The folder of this dataset, `<data_dir>/<name>/<version>`.

    Raises:
      As `cifar10` and `imagenet`.

    Example:
      >>> prepare("cifar10", "data")  # doctest: +SKIP
    """
    known = [one for one in _STORED if one != "fashion_mnist"]
    if name not in known:
        raise ValueError(f"prepare: expected one of {', '.join(known)}, found {name!r}")
    directory = _directory(name, data_dir)
    if not directory.exists():
        write = _write_imagenet if name == "imagenet2012" else _write_cifar
        write(name, directory.parents[1])
    _open(name, data_dir)
    return directory


@door
def batch_indices(seed: int, step: int, batch_size: int, size: int) -> np.ndarray:
    """Which images make the batch of a training step: a pure function, hence resumable.

    Every epoch of `size // batch_size` steps goes through a new permutation of the
    images; the remainder that fills no batch is dropped.

    Args:
      seed: chooses the sequence of permutations.
      step: number of the step since training began, from 0.
      batch_size: images per batch.
      size: images in the training set.

    Returns:
      int32 `[batch_size]`, distinct, in `0 .. size - 1`.

    Raises:
      ValueError: the step is negative, or no batch can be filled.

    Example:
      >>> epoch = np.concatenate([batch_indices(0, step, 2, 6) for step in range(3)])
      >>> sorted(epoch.tolist())
      [0, 1, 2, 3, 4, 5]
    """
    if not 1 <= batch_size <= size:
        raise ValueError(
            f"batch_indices: batch_size must be in 1 .. {size}, the number of images; "
            f"found {batch_size}"
        )
    if step < 0:
        raise ValueError(f"batch_indices: steps count from 0, found step {step}")
    epoch, position = divmod(int(step), size // batch_size)
    start = position * batch_size
    order = _permutation(seed, epoch, size)
    return order[start : start + batch_size].astype(np.int32)


# Random choices.


def _permutation(seed: int, stream: int, size: int) -> np.ndarray:
    # NumPy promises that raw Philox streams never change; `permutation` may.
    raw = np.random.Philox(key=[int(seed), int(stream)]).random_raw(size)
    return np.argsort(raw)


def _stratified_order(labels: np.ndarray) -> np.ndarray:
    """A fixed order in which every beginning holds the classes in proportion."""
    order = _permutation(_DIGITS_SEED, 0, len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.argsort(place, kind="stable")


def _check_validation(name: str, validation: int, size: int) -> None:
    if not 0 <= validation < size:
        raise ValueError(
            f"{name}: validation must be in 0 .. {size - 1}, to leave some of the "
            f"{size} images to train on; found {validation}"
        )


# Datasets on disk.


@dataclasses.dataclass(frozen=True)
class _Stored:
    """What was published: constants, numbers of images, and where to test."""

    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: int = 50_000
    test: int = 10_000
    test_split: str = "test"


_STORED = {
    "cifar10": _Stored(10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": _Stored(100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "fashion_mnist": _Stored(10, (0.2860,), (0.3530,), train=60_000),
    "imagenet2012": _Stored(
        *(1000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        *(1_281_167, 50_000, "validation"),  # the test split has no labels
    ),
}


def _load(name: str, data_dir, validation: int, download: bool, read) -> Dataset:
    facts = _STORED[name]
    _check_validation(name, validation, facts.train)
    if download:
        prepare(name, data_dir)
    builder = _open(name, data_dir)
    splits = []
    for split in ("train", facts.test_split):
        images, labels = read(builder, split)
        splits.append(Split(images, labels, facts.mean, facts.std))
    train, test = splits
    return Dataset(name, train[validation:], train[:validation], test, facts.classes)


@contextlib.contextmanager
def _readable(folder):
    """Says what to do where array_record or Pillow cannot read what is in a folder."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        raise ValueError(f"cannot read {folder} ({error}); {_ANEW}") from error


def _open(name: str, data_dir) -> Any:
    """The TFDS reader of a prepared dataset, or an error that says what is wrong."""
    directory = _directory(name, data_dir)
    if not directory.exists():
        raise FileNotFoundError(
            f"{name}: expected a prepared dataset in {directory}, found nothing; "
            "pass the data_dir (--data-dir) that holds it, or allow the download"
        )
    for file in ("dataset_info.json", "features.json"):
        if not (directory / file).exists():
            raise FileNotFoundError(
                f"{name}: {directory} is incomplete, it has no {file}; {_ANEW}"
            )
    builder = _tfds().builder_from_directory(directory)
    found = builder.info.file_format.value
    if found != "array_record":
        raise ValueError(
            f"{name}: expected array_record files in {directory}, found {found}, which "
            "cannot be read without TensorFlow; pass another data_dir (--data-dir)"
        )
    rows = {split: info.num_examples for split, info in builder.info.splits.items()}
    facts = _STORED[name]
    expected = {"train": facts.train, facts.test_split: facts.test}
    classes = builder.info.features["label"].num_classes
    if classes not in (None, facts.classes):
        raise ValueError(
            f"{name}: expected {facts.classes} classes in {directory}, found "
            f"{classes}; these are the files of another dataset"
        )
    if rows | expected != rows:
        raise ValueError(
            f"{name}: expected images {expected} in {directory}, found {rows}; {_ANEW}"
        )
    return builder


def _records(builder, split: str):
    """The records of a split, with the images as they were encoded."""
    # TFDS would decode with OpenCV if that is installed, else warn about Pillow.
    raw = {"image": _tfds().decode.SkipDecoding()}
    return builder.as_data_source(split=split, decoders=raw)


def _read(builder, split: str) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels of a split in memory, in the order of their content."""
    from PIL import Image

    formats = ("PNG", "WEBP")
    source = _records(builder, split)
    size = len(source)
    images = np.empty((size, *builder.info.features["image"].shape), np.uint8)
    labels = np.empty(size, np.int32)
    chunks = range(0, size, 1000)
    for start in track(chunks, f"Reading {builder.name} {split}", len(chunks)):
        stop = min(start + 1000, size)
        with _readable(builder.data_path):
            records = source.__getitems__(range(start, stop))
        for i, record in enumerate(records, start):
            # Naming the formats spares Pillow the search among all it knows.
            with Image.open(io.BytesIO(record["image"]), formats=formats) as image:
                images[i] = np.asarray(image).reshape(images.shape[1:])
            labels[i] = record["label"]
    order = _content_order(images, labels)
    return images[order], labels[order]


def _on_disk(builder, split: str) -> tuple[OnDisk, OnDisk]:
    """Images and labels of a split of ImageNet."""
    records = _records(builder, split)
    rows, folder = np.arange(len(records)), builder.data_path
    return (
        OnDisk(folder, records, rows, _photograph, (224, 224, 3), np.uint8),
        OnDisk(folder, records, rows, _label, (), np.int32),
    )


def _label(record: dict) -> int:
    return record["label"]


def _photograph(record: dict) -> np.ndarray:
    """The centre of a photograph as torchvision cuts it, uint8 `[224, 224, 3]`."""
    from PIL import Image

    with Image.open(io.BytesIO(record["image"]), formats=("JPEG", "PNG")) as file:
        image = file.convert("RGB")
    short = min(image.size)
    size = [int(256 * side / short) for side in image.size]
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (round((side - 224) / 2) for side in size)
    return np.asarray(image.crop((left, top, left + 224, top + 224)))


def _content_order(images, labels) -> np.ndarray:
    # As good as a seeded permutation, and the same for every copy of the dataset: no
    # image that a network was trained on can turn up in the validation split of another
    # copy. Rows and names of the files do differ between copies.
    digests = (hashlib.blake2b(image.tobytes(), digest_size=8) for image in images)
    keys = np.array([int.from_bytes(d.digest(), "big") for d in digests], np.uint64)
    return np.lexsort((labels, keys))


def _write_cifar(name: str, data_dir: Path) -> None:
    """Makes the dataset from its archive, fetched if it is not there."""
    tfds = _tfds()
    from tensorflow_datasets.core.download.download_manager import (
        NonMatchingChecksumError,
    )

    manual = data_dir / "downloads" / "manual"
    builder = _cifar_builder(name)(data_dir=data_dir, file_format="array_record")
    url = builder._cifar_info.url
    archive = manual / url.rpartition("/")[2]
    if not archive.exists():
        _fetch(name, url, archive)
    # TFDS uses, and checks, what it finds in manual_dir; so it never downloads itself
    # (offline, it would try for minutes).
    config = tfds.download.DownloadConfig(
        manual_dir=manual, force_checksums_validation=True
    )
    try:
        builder.download_and_prepare(download_config=config, file_format="array_record")
    except NonMatchingChecksumError as error:
        raise ValueError(
            f"{name}: {archive} is damaged, or is not the archive that {url} names; "
            f"delete it and try again.\n{error}"
        ) from error


def _fetch(name: str, url: str, archive: Path, timeout: float = 10) -> None:
    """Downloads a file, which appears only when it is complete."""
    import requests

    block = 1 << 20
    try:
        with requests.get(url, stream=True, timeout=timeout) as response:
            response.raise_for_status()
            size = int(response.headers.get("Content-Length", 0))
            blocks = response.iter_content(block)
            with replacing(archive) as file:
                for content in track(blocks, f"Downloading {name}", size / block):
                    file.write(content)
    except requests.RequestException as error:
        raise ConnectionError(
            f"{name}: could not download {url} ({error}). Without a network, fetch it "
            f"elsewhere and put it at {archive.resolve()}, or pass the data_dir "
            "(--data-dir) that holds the prepared dataset"
        ) from error


def _cifar_builder(name: str) -> Any:
    """TFDS's own CIFAR builder, where it unpacks and encodes without TensorFlow."""
    from PIL import Image

    stock = _stock_builder(name)

    class Builder(stock, skip_registration=True):  # pyright: ignore
        name = stock.name
        pkg_dir_path = None

        def _split_generators(self, downloads):
            info = self._cifar_info
            with tarfile.open(downloads.download(info.url)) as tar:
                files = {m.name: _content(tar, m) for m in tar if m.isfile()}
            for key, file in zip(info.label_keys, info.label_files, strict=True):
                names = files[info.prefix + file].decode().split()
                self.info.features[key].names = names
            train, test = (
                b"".join(files[info.prefix + file] for file in group)
                for group in (info.train_files, info.test_files)
            )
            return {
                "train": self._generate_examples("train_", train),
                "test": self._generate_examples("test_", test),
            }

        def _generate_examples(self, prefix, content):
            keys = self._cifar_info.label_keys
            rows = np.frombuffer(content, np.uint8).reshape(-1, len(keys) + 3072)
            for i, row in enumerate(rows):
                labels = dict(zip(keys, row, strict=False))
                pixels = row[len(keys) :].reshape(3, 32, 32).transpose(1, 2, 0)
                # As a Pillow image, because TFDS encodes arrays with TensorFlow.
                image = Image.fromarray(pixels)
                yield i, {**labels, "id": f"{prefix}{i:05d}", "image": image}

    return Builder


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""


def _write_imagenet(name: str, data_dir: Path) -> None:
    """Makes the dataset from the archives that were put there."""
    tfds = _tfds()
    manual = data_dir / "downloads" / "manual"
    archives = {
        split: manual / f"ILSVRC2012_img_{part}.tar"
        for split, part in (("train", "train"), ("validation", "val"))
    }
    missing = [path.name for path in archives.values() if not path.exists()]
    if missing:
        raise FileNotFoundError(
            f"{name}: expected a prepared dataset in {data_dir.resolve() / name}, or "
            f"its archives to make it of; there is no {' and no '.join(missing)} in "
            f"{manual.resolve()}. Register at https://image-net.org/download-images, "
            "download them and put them there, or pass the data_dir (--data-dir) that "
            "holds the prepared dataset"
        )
    builder = _imagenet_builder(archives)(data_dir=data_dir, file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=manual)
    try:
        builder.download_and_prepare(download_config=config, file_format="array_record")
    except tarfile.TarError as error:
        raise ValueError(
            f"{name}: an archive in {manual} is damaged ({error}); download it again"
        ) from error


def _imagenet_builder(archives: dict[str, Path]) -> Any:
    """TFDS's own ImageNet builder, where it reads and encodes without TensorFlow."""
    from PIL import Image
    from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder

    odd = {
        *imagenet2012_dataset_builder.CMYK_IMAGES,
        *imagenet2012_dataset_builder.PNG_IMAGES,
    }
    stock = _stock_builder("imagenet2012")

    class Builder(stock, skip_registration=True):  # pyright: ignore
        name = stock.name
        pkg_dir_path = stock.pkg_dir_path

        def _split_generators(self, downloads):
            known = Path(self.pkg_dir_path, "validation_labels.txt").read_text().split()
            with tarfile.open(archives["validation"]) as tar:
                names = sorted(tar.getnames())
            labels = {"validation": dict(zip(names, known, strict=False))}
            return {
                split: self._generate_examples(_members(path), labels.get(split))
                for split, path in archives.items()
            }

        def _fix_image(self, image_fname, image):
            if image_fname not in odd:
                return image
            # Like TFDS, for those who read JPEGs with three channels only.
            fixed = io.BytesIO()
            Image.open(image).convert("RGB").save(fixed, "JPEG", quality=100)
            fixed.seek(0)
            return fixed

    return Builder


def _members(archive: Path) -> Iterator[tuple[str, Any]]:
    """`(name, file)` of what is in a tar archive, one after the other."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile():
                yield member.name, tar.extractfile(member)


def _stock_builder(name: str) -> Any:
    return _tfds().builder_cls(name)


def _directory(name: str, data_dir) -> Path:
    """Where TFDS puts this dataset."""
    return Path(data_dir).expanduser() / name / str(_stock_builder(name).VERSION)


def _tfds() -> Any:
    # TFDS names none of the others when it misses them.
    _require("tensorflow_datasets", "array_record", "importlib_resources", "PIL")
    import tensorflow_datasets

    return tensorflow_datasets


def _grain() -> Any:
    _require("grain", extra="imagenet")
    import grain

    return grain


def _require(*packages: str, extra: str = "data") -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f'jaxburst.data needs {", ".join(missing)}: pip install "jaxburst[{extra}]"'
        )


def _are_of_pixels(mean: np.ndarray, std: np.ndarray) -> bool:
    """Whether they are in units of pixel/255."""
    return bool(((mean >= 0) & (mean <= 1) & (std > 0) & (std <= 1)).all())


def _floats(values) -> tuple[float, ...]:
    """Constants, one for each channel."""
    found = np.asarray(values)
    if found.ndim != 1 or found.size and found.dtype.kind not in "iuf":
        refuse("mean, std", "a number for each channel", values)
    return tuple(found.astype(float).tolist())
