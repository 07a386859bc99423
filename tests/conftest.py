"""Strict numerics while testing: nothing is broadcast or promoted unasked."""

import os
import signal

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_enable_compilation_cache", False)
# A command in the background is told to ignore Ctrl-C; the tests of it need the usual.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    """Compiles faster what runs once, and the slow tests as users do.

    Nearly all of a test's time is XLA's. Its emitters of fusions and the parts that it
    compiles at the same time pay where a program is optimised and runs often.
    """
    if config.option.markexpr == "not slow":
        flags = "--xla_cpu_use_fusion_emitters=false"
        flags += " --xla_cpu_parallel_codegen_split_count=1"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"


@pytest.fixture(scope="module", autouse=True)
def programs(request):
    """Compiles quickly, and forgets what was compiled.

    Most programs run once: LLVM optimises them where a module says `OPTIMISED = True`,
    because it is about that. And every program holds pages of memory, of which a
    process may have 65,530: kept for the whole suite they run out, and the next
    compilation crashes.
    """
    quickly = not getattr(request.module, "OPTIMISED", False)
    jax.config.update("jax_disable_most_optimizations", quickly)
    yield
    jax.clear_caches()


@pytest.fixture
def optimised():
    """Compiles one test as users do: numbers that grow apart step by step."""
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


@pytest.fixture(scope="module")
def float64():
    """Double precision, and no mixing of types, for a whole module of laws.

    Use as `pytestmark = pytest.mark.usefixtures("float64")`.
    """
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield
