"""ImageNet from its archives to a table of accuracy, on archives of a few images."""

import dataclasses
import io
import json
import sys
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import jaxburst as jb
from jaxburst import data, zoo
from jaxburst.layers import Conv, Dense, trace_shapes, walk

SYNSETS = ("n01440764", "n03028079", "n15075141")  # classes 0, 497 and 999
ROWS = {"train": 6, "test": 4}


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


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """`(data_dir, {file name: content})` with both archives, where they belong."""
    rng = np.random.default_rng(0)
    train, contents = {}, {}
    for synset in SYNSETS:
        names = [f"{synset}_{i}.JPEG" for i in range(2)]
        inside = {name: photograph(rng, (300, 260)) for name in names}
        train[f"{synset}.tar"] = pack(inside)
        contents |= inside
    names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in (3, 1, 4, 2)]
    validation = {name: photograph(rng, (250, 400)) for name in names}
    manual = tmp_path / "data" / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "ILSVRC2012_img_train.tar").write_bytes(pack(train))
    (manual / "ILSVRC2012_img_val.tar").write_bytes(pack(validation))
    facts = dataclasses.replace(data._STORED["imagenet2012"], **ROWS)
    monkeypatch.setitem(data._STORED, "imagenet2012", facts)
    return tmp_path / "data", contents | validation


def test_x(archives):
    d, c = archives
    ds = data.imagenet(d)
    print(
        ds,
        ds.test.images.shape,
        np.asarray(ds.train.labels),
        np.asarray(ds.test.labels),
    )
    print(np.asarray(ds.train.images).shape, "tensorflow" in sys.modules)
    import os

    for f in ds.train.images.folder.iterdir():
        print(f)
