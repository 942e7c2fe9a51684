"""Torch for a parity test: skip where it is missing, unless JAXLEAK_REQUIRE_TORCH=1 asks for a failure."""

import importlib
import os
from types import ModuleType

import pytest


def require_torch() -> ModuleType:
    """Return torch (one thread); skip the test where it is missing, or fail if JAXLEAK_REQUIRE_TORCH=1."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        if os.environ.get("JAXLEAK_REQUIRE_TORCH") == "1":
            pytest.fail("JAXLEAK_REQUIRE_TORCH=1, but PyTorch is not installed (extra `torch`)")
        pytest.skip("PyTorch is not installed (extra `torch`)")
    torch.set_num_threads(1)
    return torch
