"""What runs once or twice compiles in less time without most of XLA's optimisations."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
