"""ImageNet from its archives to a table of accuracy, on archives of a few images."""

import dataclasses
import io
import json
import runpy
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from test_imagenet_networks import resnet18_state_dict

import jaxburst as jb
from jaxburst import batching, data, zoo

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


# Data.

SYNSETS = ("n01440764", "n03028079", "n15075141")  # classes 0, 497 and 999
PNG = "n02105855_2933.JPEG"  # the one that is not a JPEG, of class 230
TRUTH = {1: 65, 2: 970, 3: 230, 4: 809}  # of the first validation images
ROWS = {"train": 7, "test": 4}


def photograph(rng, size, kind="JPEG") -> bytes:
    """A smooth picture of `size` (width, height)."""
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def pack(files: dict[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


@dataclasses.dataclass
class Tiny:
    """A data_dir with the archives of a tiny ImageNet, and what is in them."""

    root: Path
    files: dict[str, bytes]

    @property
    def manual(self):
        return self.root / "downloads" / "manual"

    def records(self, split):
        """What TFDS reads: `{file name: (pixels, label)}`."""
        import tensorflow_datasets as tfds

        source = tfds.data_source(
            "imagenet2012",
            split=split,
            data_dir=self.root,
            download=False,
            decoders={"image": tfds.decode.SkipDecoding()},
        )
        return {
            row["file_name"].decode(): (pixels(row["image"]), row["label"])
            for row in source
        }


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    train, files = {}, {}
    for synset in SYNSETS:
        names = [f"{synset}_{i}.JPEG" for i in range(2)]
        inside = {name: photograph(rng, (300, 260)) for name in names}
        train[f"{synset}.tar"] = pack(inside)
        files |= inside
    files[PNG] = photograph(rng, (300, 260), "PNG")
    train["n02105855.tar"] = pack({PNG: files[PNG]})
    names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in (3, 1, 4, 2)]
    validation = {name: photograph(rng, (250, 400)) for name in names}
    it = Tiny(tmp_path / "data", files | validation)
    it.manual.mkdir(parents=True)
    (it.manual / "ILSVRC2012_img_train.tar").write_bytes(pack(train))
    (it.manual / "ILSVRC2012_img_val.tar").write_bytes(pack(validation))
    facts = dataclasses.replace(data._STORED["imagenet2012"], **ROWS)
    monkeypatch.setitem(data._STORED, "imagenet2012", facts)
    return it


def test_tfds_reads_what_was_in_the_archives(tiny):
    data.prepare("imagenet2012", tiny.root)
    train, validation = tiny.records("train"), tiny.records("validation")
    assert train.keys() | validation.keys() == tiny.files.keys()
    for name, (found, label) in (train | validation).items():
        expected = pixels(tiny.files[name]).astype(int)
        # The PNG has become a JPEG of high quality, for those who read JPEGs only.
        np.testing.assert_allclose(found, expected, atol=8 if name == PNG else 0)
        if name in validation:
            assert label == TRUTH[int(name[-8:-5])]
        else:
            synsets = dict(zip(SYNSETS, (0, 497, 999), strict=True))
            assert label == (synsets | {PNG[:9]: 230})[name[:9]]
    assert "tensorflow" not in sys.modules


def test_nothing_is_read_before_it_is_used(tiny, monkeypatch):
    dataset = data.load("imagenet2012", tiny.root, validation=2)
    sizes = [len(getattr(dataset, name)) for name in ("train", "validation", "test")]
    assert (sizes, dataset.classes) == ([5, 2, 4], 1000)
    reads = []
    read = data.OnDisk.__array__

    def watched(self, *args, **options):
        reads.append(len(self))
        return read(self, *args, **options)

    monkeypatch.setattr(data.OnDisk, "__array__", watched)
    some = dataset.test[:3]
    assert (some.images.shape, some.images.ndim, reads) == ((3, 224, 224, 3), 4, [])
    inputs, _ = some.pair
    batches = [x.shape for _, x in batching.batches(inputs, 2, "")]
    assert (batches, reads) == ([(2, 224, 224, 3)] * 2, [2, 2])
    whole = np.asarray(dataset.test.images)
    assert whole.dtype == np.uint8 and np.ptp(whole) > 100
    order = np.array([3, 0])
    np.testing.assert_array_equal(dataset.test[order].images, whole[order])
    assert sorted(np.asarray(dataset.test.labels)) == sorted(TRUTH.values())
    expected = (whole / 255 - dataset.test.mean) / dataset.test.std
    np.testing.assert_allclose(dataset.test.inputs, expected, rtol=1e-4, atol=1e-5)


def test_training_wants_images_in_memory(tiny):
    split = data.imagenet(tiny.root).train
    with pytest.raises(TypeError, match="found them on disk"):
        jb.fit(zoo.resnet18_imagenet(1000), split)


def cut(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return data._photograph({"image": file.getvalue()})


def test_the_centre_is_cut_out_of_a_photograph_of_the_right_size():
    image = np.random.default_rng(0).integers(0, 256, (301, 256, 3), dtype=np.uint8)
    np.testing.assert_array_equal(cut(image), image[38:262, 16:240])
    grey = np.repeat(image[..., :1], 3, axis=2)
    np.testing.assert_array_equal(cut(image[..., 0]), grey[38:262, 16:240])


def test_large_photographs_are_smoothed_before_they_are_halved():
    """Half of the size: 1, 3, 3 and 1 eighths of four neighbours, along either side."""
    image = np.random.default_rng(0).integers(0, 256, (512, 600, 3), dtype=np.uint8)
    x = image.astype(float)
    for axis in (0, 1):
        x = np.moveaxis(x, axis, 0)
        inner = [x[1 + i : len(x) - 4 + i : 2] for i in range(4)]
        x = np.moveaxis(np.tensordot([1, 3, 3, 1], inner, 1) / 8, 0, axis)
    # 256 rows and 300 columns, less one at each end of both.
    expected = x[15 : 15 + 224, 37 : 37 + 224]
    np.testing.assert_allclose(cut(image), expected, atol=1.01)


def test_without_archives_it_says_where_to_put_them(tiny):
    (tiny.manual / "ILSVRC2012_img_train.tar").unlink()
    with pytest.raises(FileNotFoundError) as error:
        data.imagenet(tiny.root)
    message = str(error.value)
    assert "no ILSVRC2012_img_train.tar" in message and "img_val" not in message
    assert str(tiny.manual) in message and "image-net.org" in message
    with pytest.raises(FileNotFoundError, match="found nothing.*--data-dir"):
        data.imagenet(tiny.root, download=False)


def test_a_cut_archive_is_refused_and_leaves_nothing_behind(tiny):
    archive = tiny.manual / "ILSVRC2012_img_train.tar"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        data.imagenet(tiny.root)
    archive.write_bytes(whole)
    assert len(data.imagenet(tiny.root).train) == ROWS["train"]


def test_a_damaged_record_names_the_folder(tiny):
    folder = data.prepare("imagenet2012", tiny.root)
    [path] = folder.glob("*-validation.array_record*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot read .*5.1.0.*delete that folder"):
        np.asarray(data.imagenet(tiny.root).test.images)


def test_without_grain_the_extra_is_named(tiny, monkeypatch):
    find = data.importlib.util.find_spec
    monkeypatch.setattr(
        data.importlib.util,
        "find_spec",
        lambda name: None if name == "grain" else find(name),
    )
    with pytest.raises(ImportError, match=r'grain: pip install "jaxburst\[imagenet\]"'):
        data.imagenet(tiny.root)


# The experiment.


@pytest.mark.slow
def test_the_experiment_converts_and_simulates(tiny, monkeypatch, tmp_path, capsys):
    save_file(resnet18_state_dict(np.random.default_rng(0)), tmp_path / "weights")
    few = ("--limit", "3", "--calibration", "2", "--steps", "2", "--at-once", "2")
    paths = ("--torch-weights", "weights", "--data-dir", "data", "--out", "here")
    monkeypatch.setattr(sys, "argv", ["experiments/imagenet.py", *paths, *few])
    monkeypatch.syspath_prepend(EXPERIMENTS)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXPERIMENTS / "imagenet.py"), run_name="__main__")
    record = json.loads((tmp_path / "here/imagenet.json").read_text())
    result = record["results"]["resnet18"]
    assert (result["dataset"], result["test_images"]) == ("imagenet2012", 3)
    assert list(result["runs"]) == ["refining", "burst", "IF"]
    for spikes in result["runs"].values():
        assert len(spikes["accuracy"]) == 2
        assert len(spikes["joules"]) == 2 and spikes["joules"][0] > 0
        assert np.all(np.diff(spikes["joules"]) > 0)
    image = (tmp_path / "here/imagenet.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    assert "resnet18 on imagenet2012" in capsys.readouterr().out
