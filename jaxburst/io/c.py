"""An event-driven C program of a network of whole numbers.

    to_c(to_integers(model, spiking, images), "digits.c")   # and digits.h
    cc -std=c11 -O2 digits.c main.c

One C11 file and its header, without dependencies and without allocation: all memory is
static. Work is done where an event arrives. A population sends the places at which it
fired, a set, and whole numbers for the channels there; a synapse adds the rows of its
kernel for these channels to the sums that they reach, and marks their places for the
next population. Layers of one shape share their functions, which bear the name of the
first.

    infer(image, steps)    an image, from rest
    step(frame)            the next frame of a stream, the state carried on

with the file's name in front, `digits_infer`. It fires the spikes of
`Integers.simulate` and of `Integers.stream`, every one. It counts what it does:
synaptic operations as `jaxburst.energy` does, multiply-accumulates of what is constant,
weights read, and sums read and written. (An event that wires lead to one place along
several ways, as by two average pools that overlap, is one event there.)

Each function below writes the C of one kind of part.
"""

from __future__ import annotations

import math
import os
import re

import numpy as np

from jaxburst.checks import door
from jaxburst.io.files import as_path, write
from jaxburst.io.integers import RANGE, Axis, Integers, Link, Part

SHORT = 258
"""So many spikes times 127 fit a sum of 16 bits."""

_NOWHERE = -(2**30)

FEWEST = 8
"""Numbers of a vector; with less, single ones are faster."""


@door
def to_c(integers: Integers, path: str | os.PathLike) -> None:
    """Writes the C program of a network of whole numbers, and its header beside it.

    Images are given to it as `Integers.quantised` gives them; outputs are whole
    numbers, with their unit in the header.

    Args:
      integers: from `to_integers`.
      path: of the C file; functions and arrays have its name in front.

    Raises:
      ValueError: if the file's name is none of C.
      OSError: if it cannot be written.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> import jax, jaxburst as jb
      >>> weights, x = (np.eye(2), np.ones((2, 1))), np.array([[0.5, 1.0]], np.float32)
      >>> network = jb.trace(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], weights, x)
      >>> spiking = jb.convert(network, weights, {"relu0": 0.5})
      >>> whole = jb.to_integers(jb.Model(network, jb.Refining()), spiking, x)
      >>> folder = Path(tempfile.mkdtemp())
      >>> to_c(whole, folder / "net.c")
      >>> "int net_infer(const int16_t *input0, int32_t steps);" in (
      ...     folder / "net.h"
      ... ).read_text()
      True
    """
    path = as_path(path)
    if path.suffix != ".c" or not re.fullmatch(r"[A-Za-z]\w*", path.stem):
        raise ValueError(
            f"{path}: expected a name of letters, digits and _ that ends in .c, as its "
            "functions are called after it"
        )
    program = _Program(integers, path.stem)
    write(path, program.source())
    write(path.with_suffix(".h"), program.header())


def _type(bound: int) -> str:
    """The shortest that holds whole numbers up to a bound, of either sign."""
    return next(f"int{bits}_t" for bits in (8, 16, 32) if bound < 2 ** (bits - 1))


def _text(values: np.ndarray) -> str:
    """The content of an array."""
    flat = np.asarray(values).reshape(-1)
    if flat.dtype == np.int8:
        octal = [f"\\{value:03o}" for value in range(256)]
        codes = flat.view(np.uint8).tolist()
        rows = [codes[i : i + 24] for i in range(0, len(codes), 24)]
        return "\n".join(
            '"' + "".join(octal[code] for code in row) + '"' for row in rows
        )
    rows = [flat[i : i + 16].tolist() for i in range(0, len(flat), 16)]
    return "{" + ",\n".join(", ".join(map(str, row)) for row in rows) + "}"


_HEAD = """\
#include "NAME.h"
#include <string.h>

/* Sets of places, a bit for each. */
static inline void mark(uint32_t *set, uint32_t p) { set[p / 32] |= 1u << p % 32; }

/* Up to 32 places side by side, whose bits lie in two words. */
static inline void mark_row(uint32_t *set, uint32_t p, uint64_t bits) {
  bits <<= p % 32;
  set[p / 32] |= (uint32_t)bits;
  set[p / 32 + 1] |= (uint32_t)(bits >> 32);
}

#ifdef __GNUC__
#define LOWEST(bits) (uint32_t)__builtin_ctz(bits)
#else
static inline uint32_t LOWEST(uint32_t bits) {
  uint32_t n = 0;
  while (!(bits >> n & 1)) n++;
  return n;
}
#endif
/* Every place p of a set, in order. */
#define EVERY(set, words) \\
  for (uint32_t w = 0, p; w < words; w++) \\
    for (uint32_t b = set[w]; b && (p = 32 * w + LOWEST(b), 1); b &= b - 1)

static int32_t now;      /* steps so far */
static int32_t grown;    /* how many quanta one of the first step is */
static int streaming;
static int holding;      /* while what is constant is computed */
NAME_counters NAME_counted[NAME_SYNAPSES];

/* The events of one place: channels and whole numbers. */
static uint16_t channel[WIDEST + 1];
static int32_t value[WIDEST + 1];

#if defined(__AVX2__) || defined(__ARM_NEON)
#define WIDE
#endif
#define SPREAD(many, few, p) \\
  (memcpy(&few, p, sizeof few), __builtin_convertvector(few, many))
#ifdef __AVX512BW__ /* one instruction, of which GCC 12 makes five */
#include <immintrin.h>
#define SPREAD16(many, few, p) \\
  ((void)few, (many)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(p))))
#define SPREAD32(many, few, p) \\
  ((void)few, (many)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(p))))
#else
#define SPREAD16 SPREAD
#define SPREAD32 SPREAD
#endif
"""

# Adds rows of a kernel to sums of 16 or 32 bits, and these to the membranes. Compilers
# keep arrays in memory; where there are vectors, they are asked for by name.
_ADD = """
static inline void add_KEY(int32_t *restrict a, const int8_t *restrict k,
    const int32_t *restrict scale, uint32_t first, uint32_t last) {
#if VECTORS
  typedef TYPE many __attribute__((vector_size(LANES * sizeof(TYPE))));
  typedef int8_t few __attribute__((vector_size(LANES)));
  for (uint32_t b = 0; b < OUTS; b += BLOCK) {
    many BEGIN;
    for (uint32_t e = first; e < last; e++) {
      const int8_t *restrict r = k + (uint32_t)channel[e] * STRIDE + b;
      const TYPE n = (TYPE)value[e];
      few w;
      EACHEVENT
    }
    TYPE sum[BLOCK];
    EACHSUM
  }
#else
  SINGLE
#endif
}
"""

_SINGLE = """for (uint32_t o = 0; o < OUTS; o++) {
    int32_t sum = 0;
    for (uint32_t e = first; e < last; e++)
      sum += value[e] * k[(uint32_t)channel[e] * STRIDE + o];
    a[o] += scale[o] * sum;
  }"""

_GROUPED = """
static inline void add_INDEX(int32_t *restrict a, const int8_t *restrict k,
    const int32_t *restrict scale, uint32_t first, uint32_t last) {
  for (uint32_t e = first; e < last; e++) {
    const uint32_t g = channel[e] / ROWS * EACH;
    const int8_t *restrict r = k + channel[e] % ROWS * OUTS + g;
    for (uint32_t o = 0; o < EACH; o++) a[g + o] += scale[g + o] * (value[e] * r[o]);
  }
}
"""

_SYNAPSE = """
/* NOTE */
static void synapse_INDEX(GIVEN) {
  NAME_counters *const counted = &NAME_counted[@COUNTER@];
  HOLD
  OVER {
    const XTYPE *restrict x = X + p * INS;
    uint32_t m = 0, taps = 0;
    for (uint32_t c = 0; c < INS; c++) {
      channel[m] = (uint16_t)c;
      value[m] = x[c];
      m += x[c] != 0;
    }
    if (!m) continue;
    int32_t quanta = 0;
    for (uint32_t c = 0; c < INS; c++) quanta += x[c] < 0 ? -x[c] : x[c];
    for (uint32_t first = 0, last; first < m; first = last) {
      CHUNK
      taps = 0;
      LOOPS
      counted->sums += taps * OUTS;
    }
    counted->weights += (uint64_t)m * taps * EACH;
    TALLY
  }
  CLEAR
}
"""

_CHUNK = """last = quanta <= SHORT ? m : first;
      for (int32_t load = 0; last < m; last++) {
        load += value[last] < 0 ? -value[last] : value[last];
        if (load > SHORT) break;
      }"""

_NEURON = """
/* NOTE */
static void neurons_INDEX(int all, GIVEN) {
  EVERY(q_INDEX) memset(n_INDEX + p * WIDTH, 0, WIDTH * sizeof *n_INDEX);
  FORGET(q_INDEX);
  if (all) {
    FIRST
    for (uint32_t p = 0; p < COUNT; p++) {
      FIRE
    }
  }
  TOUCHED
}
"""

_FIRE = """int32_t *restrict v = v_INDEX + p * WIDTH;
  NTYPE *restrict out = n_INDEX + p * WIDTH;
  PREPARE
  int32_t spikes[WIDTH], fired = 0;
  for (uint32_t c = 0; c < WIDTH; c++) {
    BODY
    spikes[c] = n;
    fired |= n;
  }
  if (!fired QUIET) continue; /* what is there already stands */
  for (uint32_t c = 0; c < WIDTH; c++) {
    out[c] = (NTYPE)spikes[c];
    SENT
  }
  if (fired) mark(q_INDEX, p);"""

_TOUCHED = """else {
    const int first = 0, stream = 1;
    EVERY(t_INDEX) {
      FIRE
    }
  }
  FORGET(t_INDEX);"""

_REFINE = """const int32_t wide = v[c]ROWS;
    int32_t w = wide > 0 ? wide : 0;
    CAP
    int32_t target = (w + START) >> bits;
    target = target > top ? top : target;
    int32_t n = target - known[c];
    const int32_t gap = w - known[c] * (1 << bits);
    n = gap <= close && gap >= -close ? 0 : n;
    n = n > most ? most : n < -most ? -most : n;"""

_BURST = """const int32_t u = v[c]HELDBIASROWS;
    int32_t n = u >> bits;
    LOW
    n = n > MOST ? MOST : n;
    CAP
    v[c] = RESET;"""

_POOL = """
/* NOTE */
static void pool_INDEX(int all, GIVEN) {
  EVERY(q_INDEX) memset(n_INDEX + p * WIDTH, 0, WIDTH * sizeof *n_INDEX);
  FORGET(q_INDEX);
  if (all)
    for (uint32_t o = 0; o < OUTPLACES; o++) mark(q_INDEX, o);
  else
    EVERY(t_INDEX) {
      LOOPS
    }
  FORGET(t_INDEX);
  EVERY(q_INDEX) {
    int32_t best[WIDTH];
    for (uint32_t c = 0; c < WIDTH; c++) best[c] = INT32_MIN;
    BACK
    for (uint32_t c = 0; c < WIDTH; c++) {
      const int32_t now = BEST;
      n_INDEX[p * WIDTH + c] = (NTYPE)(now - s_INDEX[p * WIDTH + c]);
      s_INDEX[p * WIDTH + c] = now;
    }
  }
}
"""

_LINK = """
/* NOTE */
static void link_INDEX(GIVEN) {
  HOLD
  EVERY(SET) {
    for (uint32_t c = 0; c < WIDTH; c++) {
      const int32_t n = X[p * WIDTH + c];
      if (!n) continue;
      MOVE
    }
  }
}
"""

_LINK_ROWS = """
/* NOTE */
static void link_INDEX(GIVEN) {
  HOLD
  EVERY(SET) {
    const int32_t to = TABLE[p];
    if (to < 0) continue;
    for (uint32_t c = 0; c < WIDTH; c++)
      sums[to + (int32_t)c] += FACTOR * X[p * WIDTH + c];
    MARK
  }
}
"""


class _Program:
    """The parts of a program, and what they share."""

    def __init__(self, net: Integers, name: str):
        self.net, self.name = net, name
        self.index = {part.name: i for i, part in enumerate(net.parts)}
        self.synapses = [part.name for part in net.of("synapse")]
        self.constants: dict[tuple, str] = {}
        self.arrays: dict[str, tuple[str, int]] = {}
        self.shared: dict[str, str] = {}  # functions, by what they are but for arrays
        self.calls: dict[str, str] = {}
        self.declared: list[str] = []
        self.functions: list[str] = []
        self.adds: set[str] = set()
        self.clears: list[str] = []  # at reset
        self.flash = self.ram = 0
        self.out = {part.name: self.leaving(part) for part in net.parts}
        for part in net.parts:
            getattr(self, part.kind)(part)
            for i in self.out[part.name]:
                self.link(i, net.links[i])
        self.functions = [self.share(text) for text in self.functions]

    # Names of arrays, and what a part is to the others.

    def leaving(self, part: Part) -> list[int]:
        """The links from a part that need a function: all but those read in place."""
        found = []
        for i, link in enumerate(self.net.links):
            if link.source == part.name and not self.alias(link):
                found.append(i)
        return found if not self.direct(part) else []

    def alias(self, link: Link) -> bool:
        """Whether a synapse reads its only sender's whole numbers where they are."""
        target, source = self.net[link.target], self.net[link.source]
        alone = len(self.net.arriving(link.target)) == 1 and link.matrix is None
        return alone and target.kind == "synapse" and source.kind != "synapse"

    def direct(self, part: Part) -> Link | None:
        """The link along which a synapse adds to the sums of another part at once."""
        links = [link for link in self.net.links if link.source == part.name]
        if part.kind != "synapse" or len(links) != 1 or links[0].matrix is not None:
            return None
        return links[0] if self.width(self.net[links[0].target]) == part.width else None

    def width(self, part: Part) -> int:
        """Channels of a place of what a part receives."""
        if part.kind in ("pool", "charge"):
            return part.width
        return part.received[-1] if part.received else 1

    def places(self, part: Part, received: int = 0) -> int:
        if received and part.kind != "input":
            return math.prod(part.received) // self.width(part)
        return part.size // part.width

    def sums(self, part: Part) -> str:
        """The array that a part's input is added to."""
        return ("x_" if part.kind == "synapse" else "v_") + str(self.index[part.name])

    def held(self, part: Part) -> bool:
        """Whether a part with a state receives something constant at every step."""
        if self.net.refining or part.kind in ("input", "synapse"):
            return False
        sources = {link.source for link in self.net.arriving(part.name)}
        return part.dynamic and bool(sources & self.net.constant)

    def marks(self, part: Part) -> bool:
        """Whether it must be told where something arrived."""
        if part.kind in ("synapse", "pool", "charge"):
            return True
        return part.kind == "neuron" and self.net.refining

    def hold(self, part: Part) -> str:
        """The beginning of a function that adds to a part's sums."""
        name = self.sums(part)
        if self.held(part):
            name = f"holding ? h_{self.index[part.name]} : {name}"
        return f"int32_t *const sums = {name};"

    # Declarations.

    def array(self, kind: str, name: str, size: int, *, clear: bool = True) -> str:
        self.declared.append(f"static {kind} {name}[{size}];")
        self.arrays[name] = kind, size
        self.ram += size * int(re.findall(r"\d+", kind)[0]) // 8
        if clear:
            self.clears.append(f"memset({name}, 0, sizeof {name});")
        return name

    def set(self, name: str, places: int) -> None:
        self.array("uint32_t", name, -(-places // 32) + 1)

    def constant(self, values: np.ndarray, kind: str | None = None) -> str:
        """A constant array; equal ones are one."""
        values = np.asarray(values)
        if values.dtype != np.int8:
            bound = int(np.abs(values).max(initial=0))
            kind = kind or _type(bound)
            values = values.astype(kind.removesuffix("_t"))
        else:
            kind = "int8_t"
        key = kind, values.shape, values.tobytes()
        if key not in self.constants:
            name = f"k_{len(self.constants)}"
            self.constants[key] = name
            end = 1 if kind == "int8_t" else 0  # that a string has
            size = values.size + end
            text = _text(values) if values.size else "{0}"
            self.declared.append(f"static const {kind} {name}[{size}] =\n{text};")
            self.arrays[name] = f"const {kind}", size
            self.flash += values.nbytes
        return self.constants[key]

    # Parts.

    def input(self, part: Part) -> None:
        i = self.index[part.name]
        grown = self.net.finest if self.net.refining else 1
        self.array(_type(2 * RANGE * grown), f"n_{i}", part.size)
        self.array("int16_t", f"last_{i}", part.size)
        self.set(f"q_{i}", self.places(part))

    def loops(
        self, axes: tuple[Axis, ...], body: str, run: str = "", block: str = ""
    ) -> str:
        """Loops over the taps that meet a place `p`.

        Args:
          axes: those of the places.
          body: done for each; in it $o is the place that is met, $ther the tap along
            all axes but the last, $k the tap along that, $tap both.
          run: done instead where all taps along the last axis meet something: $o is
            the first of the places, which are side by side.
          block: done instead where all taps along the last two axes do: $o is the
            first place of the last row, which is met by the first taps.
        """
        text, rest, names = "", "p", []
        for a, axis in reversed(list(enumerate(axes))):
            text += f"const uint32_t i{a} = {rest} % {axis.size};\n"
            rest = f"{rest} / {axis.size}"
        place, tap, other = "0", "0", "0"
        for a, axis in enumerate(axes):
            other = tap
            if axis.taps == 1 and axis == Axis(axis.size, axis.size):
                text += f"const uint32_t o{a} = i{a};\n"
            else:
                if block and a == len(axes) - 2:
                    first, inside = axes[-1].begin(f"i{a + 1}")
                    row = f"({place} * {axis.out} + i{a} + {axis.low})"
                    begin = f"({row} * {axes[-1].out} + {first})"
                    text += f"if ({axis.begin(f'i{a}')[1]} && {inside}) {{\n"
                    text += block.replace("$o", begin).replace("$ther", tap)
                    text += "} else\n"
                if run and a == len(axes) - 1:
                    first, inside = axis.begin(f"i{a}")
                    begin = f"({place} * {axis.out} + {first})"
                    text += f"if ({inside}) {{\n"
                    text += run.replace("$o", begin).replace("$ther", tap) + "} else\n"
                table = self.constant(axis.meets)
                text += f"for (uint32_t k{a} = 0; k{a} < {axis.taps}; k{a}++) {{\n"
                names.append(a)
                text += (
                    f"const int32_t m{a} = {table}[i{a} * {axis.taps} + k{a}];\n"
                    f"if (m{a} < 0) continue;\n"
                    f"const uint32_t o{a} = (uint32_t)m{a};\n"
                )
                tap = f"({tap} * {axis.taps} + k{a})" if tap != "0" else f"k{a}"
            place = f"({place} * {axis.out} + o{a})" if place != "0" else f"o{a}"
        last = f"k{len(axes) - 1}"
        for word, what in ("$ther", other), ("$tap", tap), ("$k", last), ("$o", place):
            body = body.replace(word, what)
        text += body
        return text + "}\n" * len(names)

    def synapse(self, part: Part) -> None:
        i, kernel = self.index[part.name], part.arrays["kernel"]
        rows, outs = kernel.shape[1], kernel.shape[2]
        links = self.net.arriving(part.name)
        places, ins = part.received
        own = len(links) != 1 or not self.alias(links[0])
        if own:
            x, kind, bound = self.sums(part), "int32_t", SHORT + 1
            self.array("int32_t", x, places * ins)
            self.set(f"t_{i}", places)
            over, tally = f"EVERY(t_{i})", ""
        else:
            source = self.net[links[0].source]
            j = self.index[source.name]
            x, bound = f"n_{j}", source.count
            if source.kind == "input":
                bound = 2 * RANGE * (self.net.finest if self.net.refining else 1)
            kind = _type(bound)
            if source.width == ins:
                over = f"EVERY(q_{j})"
            else:
                over = f"for (uint32_t p = 0; p < {places}; p++)"
            each = outs // part.groups
            tally = f"counted->operations += (uint64_t)quanta * taps * {each};"
            if source.kind == "charge" or source.name in self.net.constant:
                tally = f"counted->macs += (uint64_t)m * taps * {each};"
        direct = self.direct(part)
        if direct:
            target = self.net[direct.target]
            hold, t = self.hold(target), self.index[target.name]
            marked = f"t_{t}" if self.marks(target) else ""
        else:
            self.array("int32_t", f"y_{i}", part.size)
            self.set(f"q_{i}", self.places(part))
            hold, marked = f"int32_t *const sums = y_{i};", f"q_{i}"
        marking = f"mark({marked}, $o);" if marked else ""
        short = bound <= SHORT and part.groups == 1
        axis, run, block = part.axes[-1], "", ""
        multiplier = part.arrays["multiplier"]
        if part.groups == 1 and axis.neighbours:
            # Rows of neighbouring taps side by side, as the places are that they reach.
            taps = axis.taps
            kernel = kernel.reshape(-1, taps, rows, outs)[:, ::-1].swapaxes(1, 2)
            wide, table = taps * outs, self.constant(kernel)
            scale = self.constant(np.tile(multiplier, taps), "int32_t")
            at = f"{table} + ($ther) * {rows * wide}"
            mark = f"mark_row({marked}, $o, {2**taps - 1:#x});\n" if marked else ""
            if taps > 32:
                mark = f"for (uint32_t k = 0; k < {taps}; k++) "
                mark = (mark + marking.replace("$o", "$o + k")) * bool(marked)
            to = f"(sums + (size_t)($o) * {outs}, {at}, {scale}, first, last);\n"
            run = f"{self.adder(wide, wide, short)}{to}{mark}taps += {taps};\n"
            before = part.axes[-2] if len(part.axes) > 1 else Axis(1, 1)
            if before.neighbours:
                many, step = before.taps, axis.out * outs
                apart = step, rows * wide
                add = self.adder(wide, wide, short, many, apart)
                mark = mark and (
                    f"for (uint32_t t = 0; t < {many}; t++)\n"
                    + mark.replace("$o", f"$o - t * {axis.out}")
                )
                to = to.replace("($ther)", f"($ther) * {many}")
                block = f"{add}{to}{mark}taps += {many * taps};\n"
            add, at = (
                self.adder(outs, wide, short),
                f"{at} + ({taps - 1} - $k) * {outs}",
            )
        else:
            scale = self.constant(multiplier, "int32_t")
            at = f"{self.constant(kernel)} + ($tap) * {rows * outs}"
            add = f"add_{i}"
            if part.groups == 1:
                add = self.adder(outs, outs, short)
            else:
                each = outs // part.groups
                self.emit(_GROUPED, INDEX=i, ROWS=rows, OUTS=outs, EACH=each)
        body = (
            f"{add}(sums + (size_t)($o) * {outs}, {at}, {scale}, first, last);\n"
            f"{marking}\ntaps++;\n"
        )
        clear = ""
        if own:
            clear = f"{over} memset({x} + p * {ins}, 0, {ins} * sizeof *{x});\n"
            clear += f"  FORGET(t_{i});"
        text = _SYNAPSE.replace("LOOPS", self.loops(part.axes, body, run, block))
        chunk = _CHUNK.replace("SHORT", str(SHORT)) if short else "last = m;"
        if "quanta" not in chunk + tally:
            a = text.index("    int32_t quanta"), text.index("    for (uint32_t first")
            text = text[: a[0]] + text[a[1] :]
        self.emit(
            text, NOTE=part.name, HOLD=hold, OVER=over, XTYPE=kind,
            CHUNK=chunk, TALLY=tally, CLEAR=clear, EACH=outs // part.groups, INDEX=i,
            COUNTER=self.synapses.index(part.name), INS=ins, X=x, OUTS=outs,
        )  # fmt: skip

    def adder(
        self, outs: int, stride: int, short: bool, rows: int = 1, apart=(0, 0)
    ) -> str:
        """A function that adds the first of the weights in each row of a kernel.

        Args:
          outs: how many weights.
          stride: of the rows of a tap.
          short: whether 16 bits hold the sums.
          rows: how many taps are taken at once, for which vectors must be many.
          apart: how far their sums lie apart, downwards, and their kernels.
        """
        bits = 16 if short else 32
        key = f"{outs}_{stride}_{bits}" + f"_{rows}_{apart[0]}_{apart[1]}" * (rows > 1)
        if key in self.adds:
            return f"add_{key}"
        lanes = math.gcd(outs, 512 // bits)
        count = max(n for n in range(1, 5) if outs // lanes % n == 0)
        spread = f"SPREAD{lanes}" if bits == 16 and lanes > 8 else "SPREAD"
        single, vectors, events, sums = _SINGLE, "defined(WIDE)", "", ""
        if rows > 1:
            below = self.adder(outs, stride, short)
            single = (
                f"for (int32_t t = 0; t < {rows}; t++)\n    {below}(a - t * "
                f"{apart[0]}, k + t * {apart[1]}, scale, first, last);"
            )
            vectors = "defined(__AVX512BW__)"
        for t in range(rows):
            for n in range(count):
                at = f"r + {t * apart[1] + n * lanes}"
                events += f"s{t}_{n} += n * {spread}(many, w, {at});\n"
                sums += f"memcpy(sum + {n * lanes}, &s{t}_{n}, sizeof s{t}_{n});\n"
            to = f"(a - {t * apart[0]})[b + o]"
            sums += "for (uint32_t o = 0; o < BLOCK; o++) "
            sums += f"{to} += scale[b + o] * sum[o];\n"
        self.adds.add(key)
        self.emit(
            _ADD, KEY=key, OUTS=outs, STRIDE=stride, LANES=lanes, SINGLE=single,
            VECTORS=vectors if lanes >= FEWEST else "0", TYPE=f"int{bits}_t",
            BLOCK=lanes * count, EACHEVENT=events, EACHSUM=sums,
            BEGIN=", ".join(f"s{t}_{n} = {{0}}" for t in range(rows)
                            for n in range(count)),
        )  # fmt: skip
        return f"add_{key}"

    def emit(self, template: str, **words) -> None:
        """Adds a function: a template in which words stand for what they are here."""
        words["NAME"] = self.name
        longest = "|".join(sorted(words, key=len, reverse=True))
        pattern = re.compile(rf"(?<![A-Z])({longest})(?![A-Z])")
        text = template
        for _ in range(4):
            text = pattern.sub(lambda found: str(words[found[1]]), text)
        self.functions.append(text)

    def share(self, text: str) -> str:
        """A function for all layers of its shape, or nothing if there is one already.

        Its arrays become parameters, and so do numbers between @. Processors have
        little room for code.
        """
        if "GIVEN" not in text:
            return text
        name, start = re.findall(r"static void (\w+)\((.*)GIVEN", text)[0]
        passed: dict[str, str] = {}  # what is passed, and the parameter
        numbers: list[str] = []

        def array(found) -> str:
            word = found[0]
            if word not in self.arrays:
                return word
            return passed.setdefault(word, f"a{len(passed)}")

        def number(found) -> str:
            numbers.append(found[1])
            return f"b{len(numbers) - 1}"

        text = re.sub(r"\b[a-z]+_\d+\b", array, self.sized(text))
        text = re.sub(r"@(-?\d+)@", number, text)
        given = [f"{self.arrays[x][0]} *restrict {a}" for x, a in passed.items()]
        given += [f"int32_t b{i}" for i in range(len(numbers))]
        text = text.replace("GIVEN", ", ".join(given))
        own = text[text.index("static void") :].replace(name, "NAME")
        known = self.shared.setdefault(own, name)
        arguments = start.replace("int all", "ALL") + ", ".join([*passed, *numbers])
        self.calls[name] = f"{known}({arguments});\n"
        return text if known == name else ""

    def sized(self, text: str) -> str:
        """Writes the sizes of sets where these are gone through or forgotten."""

        def every(found) -> str:
            return f"EVERY({found[1]}, {self.arrays[found[1]][1] - 1})"

        def forget(found) -> str:
            return f"memset({found[1]}, 0, {4 * self.arrays[found[1]][1]})"

        text = re.sub(r"EVERY\((\w+)\)", every, text)
        return re.sub(r"FORGET\((\w+)\)", forget, text)

    def state(self, part: Part) -> None:
        """The sums of a part, and what they begin with."""
        i, size = self.index[part.name], math.prod(part.received)
        self.array("int32_t", f"v_{i}", size, clear=False)
        if self.held(part):
            self.array("int32_t", f"h_{i}", size)
        start = "start" if part.kind == "neuron" and not self.net.refining else "bias"
        values = part.arrays[start]
        if start == "bias" and not self.net.refining and part.dynamic:
            values = np.zeros((1, 1), np.int64)
        which = f"v_{i}[i] = 0;"
        if values.any():
            table, width = self.constant(values, "int32_t"), values.size
            times = " * grown" if start == "bias" else ""
            which = f"v_{i}[i] = {table}[i % {width}]{times};"
        self.clears.append(f"for (uint32_t i = 0; i < {size}; i++) {which}")

    def added(self, part: Part, name: str, index: str = "c", times: str = "") -> str:
        """What a constant array of a part adds, at channel `c` of place `p`."""
        values = part.arrays.get(name)
        if values is None or not values.any():
            return ""
        table, width = self.constant(values, "int32_t"), values.shape[-1]
        at = index if values.size == width else f"p * {width} + {index}"
        return f" + {table}[{at}]{times}"

    def neuron(self, part: Part) -> None:
        net, i, width = self.net, self.index[part.name], part.shape[-1]
        self.state(part)
        kind = _type(part.count)
        self.array(kind, f"n_{i}", part.size)
        self.set(f"q_{i}", self.places(part))
        prepare = [f"const int32_t bits = @{part.bits}@;"]
        words = {"CAP": "", "SENT": "", "QUIET": "", "TOUCHED": "", "FIRST": ""}
        rows = part.arrays.get("rows")
        words["ROWS"] = ""
        if rows is not None and rows.any():
            table, size = self.constant(rows, "int32_t"), rows[0].size
            at = "" if size == width else f" + p * {width}"
            limit = f"now < {len(rows)} ? now : {len(rows)}"
            if net.refining:
                limit = f"stream ? {len(rows)} : {limit}"
            prepare.append(f"const int32_t row = {limit};")
            prepare.append(f"const int32_t *rows = {table} + (row - 1) * {size}{at};")
            words["ROWS"] = " + rows[c]"
            if not net.refining:
                prepare.append(f"const int32_t corrected = now <= {len(rows)};")
                words["ROWS"] = " + rows[c] * corrected"
        counts = net.refining or net.settings.get("signed") or "cap" in part.arrays
        if counts:
            stype = "u" * (part.total < 2**16) + _type(part.total // 2)
            self.array(stype, f"s_{i}", part.size)
            prepare.append(f"{stype} *restrict s = s_{i} + p * {width};")
            words["SENT"] = f"s[c] = ({stype})(s[c] + spikes[c]);"
        cap = part.arrays.get("cap")
        limit = f"{self.constant(cap, 'int32_t')}[c]" if cap is not None else ""
        if net.refining:
            body, start = _REFINE, part.arrays["start"]
            words["QUIET"] = "&& growth == 1" if net.ratio > 1 else ""
            self.set(f"t_{i}", self.places(part))
            if cap is not None:
                words["CAP"] = f"w = w > {limit} * grown ? {limit} * grown : w;"
            half = 1 << part.bits >> 1
            silence = int(net.settings["silence"] * (1 << part.bits))
            most = part.gamma or "INT32_MAX"
            prepare += [
                f"const int32_t growth = first || stream ? 1 : {net.ratio};",
                f"const int32_t close = first ? -1 : @{silence}@;",
                f"const int32_t most = stream ? INT32_MAX : {most};",
                f"const int32_t top = stream ? @{part.total}@ : INT32_MAX;",
                f"int32_t known[{width}]; /* of one type: wider vectors below */",
                f"for (uint32_t c = 0; c < {width}; c++) known[c] = s[c] * growth;",
            ]
            words["SENT"] = words["SENT"].replace("s[c] +", "known[c] +")
            words["FIRST"] = "const int first = now == 1, stream = streaming;"
            words["TOUCHED"] = _TOUCHED
            if (start == start.flat[0]).all():
                begin = int(start.flat[0])
                prepare.append(
                    f"const int32_t start = first && !stream ? @{begin}@ : @{half}@;"
                )
                words["START"] = "start"
            else:
                table = self.constant(start, "int32_t")
                at = "c" if start.size == width else f"p * {width} + c"
                words["START"] = f"(first && !stream ? {table}[{at}] : @{half}@)"
        else:
            body = _BURST
            words["MOST"] = str(part.gamma or part.total)
            words["HELD"] = f" + h_{i}[p * {width} + c]" if self.held(part) else ""
            words["BIAS"] = self.added(part, "bias")
            words["LOW"] = "n = n < 0 ? 0 : n;"
            if net.settings["signed"]:
                words["LOW"] = (
                    f"const int32_t low = s[c] < {words['MOST']} ? -s[c] : "
                    f"-{words['MOST']};\n    n = n < low ? low : n;"
                )
            if cap is not None:
                words["CAP"] = (
                    f"const int32_t left = ((now * {limit}) >> bits) - s[c];\n"
                    "    n = n > left ? left : n;"
                )
            words["RESET"] = "u - n * (1 << bits)"
            if net.settings["reset"] == "zero":
                words["RESET"] = "n > 0 ? 0 : u"
        for word in ("HELD", "BIAS", "ROWS"):
            body = body.replace(word, str(words.pop(word, "")))
        self.emit(
            _NEURON, FIRE=_FIRE.replace("BODY", body), INDEX=i, NOTE=part.name,
            WIDTH=width, NTYPE=kind, PREPARE="\n  ".join(prepare),
            COUNT=self.places(part), **words,
        )  # fmt: skip

    def pool(self, part: Part) -> None:
        i, width = self.index[part.name], part.width
        self.state(part)
        kind = _type(part.count)
        self.array(kind, f"n_{i}", part.size)
        self.array("int32_t", f"s_{i}", part.size)
        self.set(f"q_{i}", self.places(part))
        self.set(f"t_{i}", self.places(part, 1))
        axes = part.axes[:-1] if width > 1 or part.axes[-1].size == 1 else part.axes
        axes = axes or (Axis(1, 1),)
        best = (
            f"const int32_t *restrict v = v_{i} + $o * {width};\n"
            f"for (uint32_t c = 0; c < {width}; c++) "
            "best[c] = v[c] > best[c] ? v[c] : best[c];\n"
        )
        back = self.loops(tuple(axis.back for axis in axes), best)
        text = _POOL.replace("BACK", back)
        text = text.replace("LOOPS", self.loops(axes, f"mark(q_{i}, $o);\n"))
        half, bits = 1 << part.bits >> 1, part.bits
        self.emit(
            text, INDEX=i, NOTE=part.name, WIDTH=width, NTYPE=kind,
            OUTPLACES=self.places(part), BEST=f"(best[c] + @{half}@) >> @{bits}@",
        )  # fmt: skip

    charge = pool  # of one place, divided

    def output(self, part: Part) -> None:
        self.state(part)

    def link(self, number: int, link: Link) -> None:
        """What one part sends to another through wires, event by event."""
        source, target = self.net[link.source], self.net[link.target]
        j = self.index[source.name]
        x = f"y_{j}" if source.kind == "synapse" else f"n_{j}"
        wide, width = self.width(target), source.width
        count, synapse = "", target
        if target.kind == "charge":  # what is weighed behind it
            synapse = self.net[self.net.leaving(target.name)[0].target]
        if synapse.kind == "synapse":
            outs = synapse.arrays["kernel"].shape[2] // synapse.groups
            reach = self.reach(synapse)
            number_of = "(uint64_t)(n < 0 ? -n : n)"
            what = f"operations += {number_of} * "
            charges = source.kind in ("input", "synapse", "charge")
            if charges or source.name in self.net.constant:
                what = "macs += (uint64_t)"
            counter = self.synapses.index(synapse.name)
            count = (
                f"{self.name}_counted[@{counter}@].{what}{reach}(to / {wide}) * {outs};"
            )
        marking = ""
        if self.marks(target):
            marking = f"mark(t_{self.index[target.name]}, to / {wide});"
        matrix, template, words = link.matrix, _LINK, {}
        split = self.split(matrix, source.size // width, width)
        if split and not count and self.side_by_side(*split[:2], wide):
            rows, columns, factor = split
            template = _LINK_ROWS
            start = np.where(rows < 0, -1, rows + columns[0])
            words = {"TABLE": self.constant(start, "int32_t")}
            words["FACTOR"] = self.factor(factor)
            words["MARK"] = marking.replace("to /", "(uint32_t)to /")
            move = ""
        elif matrix is None:
            move = f"const uint32_t to = p * {width} + c;\nsums[to] += n;\n"
            move += f"{marking}\n{count}"
        else:
            then = f"{marking}\n{count}"
            move = self.moved(split, then) if split else self.table(matrix, width, then)
        self.emit(
            template, INDEX=number, NOTE=f"{source.name} to {target.name}", MOVE=move,
            HOLD=self.hold(target), SET=f"q_{j}",
            WIDTH=width, X=x, **words,
        )  # fmt: skip

    def split(self, matrix, places: int, width: int):
        """`(A, B, factors of channels)` where place and channel go to `A[p] + B[c]`.

        None if one goes to several places, or not to a sum, or with another factor.
        """
        if matrix is None:
            return None
        back = matrix.T.tocsr()
        counts = np.diff(back.indptr)
        if counts.max() > 1:
            return None
        to, factor = np.full(places * width, -1), np.zeros(places * width, np.int64)
        to[counts == 1], factor[counts == 1] = back.indices, back.data
        to, factor = to.reshape(places, width), factor.reshape(places, width)
        p, c = np.argwhere(to >= 0)[0]
        rows = to[:, c]
        columns = np.where(to[p] >= 0, to[p] - to[p, c], _NOWHERE)
        nowhere = (rows[:, None] < 0) | (columns == _NOWHERE)
        fits = np.where(nowhere, -1, rows[:, None] + columns)
        each = np.array([column[column != 0][:1].sum() for column in factor.T])
        same = (np.where(to >= 0, each, 0) == factor).all()
        return (rows, columns, each) if same and (fits == to).all() else None

    def side_by_side(self, rows, columns, wide: int) -> bool:
        """Whether all channels of a place go to those of one place, in their order."""
        first = rows[rows >= 0] + columns[0]
        last = first + len(columns) - 1
        plain = (columns - columns[0] == np.arange(len(columns))).all()
        return bool(plain and (first // wide == last // wide).all())

    def factor(self, each) -> str:
        if (each == each[0]).all():
            return f"@{int(each[0])}@"
        return f"{self.constant(each, 'int32_t')}[c]"

    def moved(self, split, then: str) -> str:
        rows, columns, each = split
        return (
            f"const int32_t row = {self.constant(rows, 'int32_t')}[p];\n"
            f"const int32_t column = {self.constant(columns, 'int32_t')}[c];\n"
            f"if (row < 0 || column == {_NOWHERE}) continue;\n"
            "const uint32_t to = (uint32_t)(row + column);\n"
            f"sums[to] += {self.factor(each)} * n;\n{then}"
        )

    def table(self, matrix, width: int, then: str) -> str:
        """Where each place and channel goes, one by one."""
        back = matrix.T.tocsr()
        start = self.constant(back.indptr, "int32_t")
        to = self.constant(back.indices, "int32_t")
        factor = self.constant(back.data, "int32_t")
        return (
            f"const uint32_t s = p * {width} + c;\n"
            f"for (int32_t k = {start}[s]; k < {start}[s + 1]; k++) {{\n"
            f"const uint32_t to = (uint32_t){to}[k];\n"
            f"sums[to] += {factor}[k] * n;\n{then}\n}}"
        )

    def reach(self, part: Part) -> str:
        """A function: how many taps of a synapse a place meets."""
        name = f"reach_{self.index[part.name]}"
        if name not in self.constants.values():
            body = self.loops(part.axes, "found++; (void)($o);\n")
            self.functions.append(
                f"\nstatic uint32_t {name}(uint32_t p) {{\nuint32_t found = 0;\n"
                f"{body}return found;\n}}\n"
            )
            self.constants[(name,)] = name
        return name

    # The whole.

    def run(self, part: Part, constant: bool) -> str:
        """What a part does in a step, or while what is constant is computed."""
        net, i, text = self.net, self.index[part.name], ""
        if constant and part.name not in net.constant:
            return ""
        if not constant and not (part.dynamic or part.kind == "output"):
            return ""
        if part.kind == "synapse":
            text += self.calls[f"synapse_{i}"]
        elif part.kind == "neuron":
            always = "1" if not net.refining else "!streaming || now == 1"
            text += self.calls[f"neurons_{i}"].replace("ALL", always)
        elif part.kind in ("pool", "charge"):
            text += self.present(part) if not constant else ""
            always = "!now" if constant else "now == 1"
            if part.kind == "charge" and net.ratio > 1 and not constant:
                always = "!streaming || now == 1"  # rounds more finely at every step
            always = "1" if self.present(part) else always
            text += self.calls[f"pool_{i}"].replace("ALL", always)
        elif part.kind == "output":
            text += self.present(part)
        for number in self.out[part.name]:
            text += self.calls[f"link_{number}"]
        if part.kind == "synapse" and not self.direct(part):
            width = part.width
            text += (
                f"EVERY(q_{i}) memset(y_{i} + p * {width}, 0, "
                f"{width} * sizeof *y_{i});\n"
                f"FORGET(q_{i});\n"
            )
        return text

    def present(self, part: Part) -> str:
        """What bursts add to sums at every step."""
        if self.net.refining or not part.dynamic:
            return ""
        i, size = self.index[part.name], math.prod(part.received)
        bias, held = part.arrays["bias"], f" + h_{i}[i]" if self.held(part) else ""
        more = ""
        if bias.any():
            more = f" + {self.constant(bias, 'int32_t')}[i % {bias.size}]"
        if not held and not more:
            return ""
        return f"for (uint32_t i = 0; i < {size}; i++) v_{i}[i] += 0{held}{more};\n"

    def source(self) -> str:
        net, name = self.net, self.name
        grow = ""
        for part in net.of("charge", "neuron", "pool", "output"):
            i, size = self.index[part.name], math.prod(part.received)
            if net.ratio > 1 and part.dynamic:
                each = f"for (uint32_t i = 0; i < {size}; i++) "
                grow += f"{each}v_{i}[i] *= {net.ratio};\n"
                if part.kind in ("pool", "charge"):
                    grow += (
                        f"for (uint32_t i = 0; i < {part.size}; i++) "
                        f"s_{i}[i] *= {net.ratio};\n"
                    )
        steps = "".join(self.run(part, False) for part in net.parts)
        shown, given, passed = "", [], []
        finest = net.finest if net.refining else 1
        for k, part in enumerate(net.of("input")):
            i, width = self.index[part.name], part.width
            given.append(f"const int16_t *input{k}")
            passed.append(f"input{k}")
            shown += f"""for (uint32_t p = 0; p < {self.places(part)}; p++) {{
    int32_t any = 0;
    for (uint32_t c = p * {width}; c < (p + 1) * {width}; c++) {{
      const int32_t change = (input{k}[c] - last_{i}[c]) * grown;
      n_{i}[c] = ({_type(2 * RANGE * finest)})change;
      last_{i}[c] = input{k}[c];
      any |= change;
    }}
    if (any) mark(q_{i}, p);
  }}
  """
        before = ""
        for part in net.parts:
            before += self.run(part, True)
        for part in net.of("input"):
            before += f"FORGET(q_{self.index[part.name]});\n"
        limit = "" if net.refining else "if (now >= NAME_STEPS) return -1;\n"
        tables = ""
        for part in net.of("neuron", "pool"):
            if part.dynamic:
                i = self.index[part.name]
                tables += f'{{"{part.name}", n_{i}, {part.size}, sizeof n_{i}[0]}},\n'
        outs = ""
        for k, part in enumerate(net.of("output")):
            i = self.index[part.name]
            outs += f"const int32_t *const NAME_output{k} = v_{i};\n"
        clears = "\n  ".join(self.clears)
        rest = f"""
{outs}
const NAME_population NAME_populations[NAME_POPULATIONS + 1] = {{
{tables}{{0, 0, 0, 0}}}};

static void rest(int stream) {{
  streaming = stream;
  now = 0;
  grown = stream ? {finest} : 1;
  {clears}
}}

/* What has changed since the last image reaches what is constant. */
static void present({", ".join(given)}) {{
  {shown}
  holding = 1;
  {before}
  holding = 0;
}}

static void advance(void) {{
  now++;
  if (now > 1 && !streaming) {{
    grown *= {net.ratio};
    {grow}
  }}
  {steps}
}}

void NAME_reset(void) {{ streaming = 0; }}

int NAME_infer({", ".join(given)}, int32_t steps) {{
  if (steps < 1 || steps > NAME_STEPS) return -1;
  rest(0);
  present({", ".join(passed)});
  while (now < steps) advance();
  return 0;
}}

int NAME_step({", ".join(given)}) {{
  if (!streaming) rest(1);
  {limit}present({", ".join(passed)});
  advance();
  return 0;
}}
"""
        widest = max([self.width(part) for part in net.of("synapse")] + [1])
        head = _HEAD.replace("WIDEST", str(widest))
        text = [head, *self.declared, *self.functions, self.sized(rest)]
        return "\n".join(text).replace("NAME", name)

    def header(self) -> str:
        net, name = self.net, self.name
        given = [f"const int16_t *input{k}" for k in range(len(net.of("input")))]
        arguments = ", ".join(given)
        notes = ""
        for k, part in enumerate(net.of("input")):
            unit = float(part.arrays["unit"])
            shape = "x".join(map(str, part.shape[1:]))
            notes += f"/* input{k}: {shape}, whole numbers of {unit:.9g} */\n"
            notes += f"#define NAME_INPUT{k} {part.size}\n"
        for k, part in enumerate(net.of("output")):
            unit = float(part.arrays["unit"])
            notes += f"#define NAME_OUTPUT{k} {part.size}\n"
            notes += f"#define NAME_UNIT{k} {unit:.9g}\n"
            notes += f"extern const int32_t *const NAME_output{k};\n"
        how = "the number of steps"
        if net.refining:
            how = f"{net.ratio}^(steps - 1); of a stream, by {net.finest}"
        populations = [part for part in net.of("neuron", "pool") if part.dynamic]
        names = "\n".join(f"   {i} {n}" for i, n in enumerate(self.synapses))
        text = f"""\
/* A spiking network as an event-driven program; {self.flash:,} bytes of constants,
   {self.ram:,} bytes of state. Outputs are NAME_UNIT times the whole numbers, divided
   by {how}. */
#ifndef NAME_H
#define NAME_H
#include <stddef.h>
#include <stdint.h>

#define NAME_STEPS {net.steps}
{notes}
/* One image, from rest, for 1 to NAME_STEPS steps; -1 for other numbers. */
int NAME_infer({arguments}, int32_t steps);
/* The next frame of a stream; -1 if the number of steps is exceeded. */
int NAME_step({arguments});
/* The next frame is the first of a stream. */
void NAME_reset(void);

/* What was done since the program began, for each synapse:
{names} */
#define NAME_SYNAPSES {len(self.synapses)}
typedef struct {{
  uint64_t operations; /* spikes times weights that they reach */
  uint64_t macs;       /* of what is constant, and of charges */
  uint64_t weights;    /* read */
  uint64_t sums;       /* read and written */
}} NAME_counters;
extern NAME_counters NAME_counted[NAME_SYNAPSES];

/* The spikes of the last step. */
#define NAME_POPULATIONS {len(populations)}
typedef struct {{
  const char *name;
  const void *spikes;
  uint32_t size;
  uint32_t bytes; /* of each whole number */
}} NAME_population;
extern const NAME_population NAME_populations[NAME_POPULATIONS + 1];
#endif
"""
        return text.replace("NAME", name)
