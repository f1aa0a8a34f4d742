"""Static tiles are aihwkit's; where it has no wheel, these tests are skipped. Where it has one, `make setup` must have
installed it."""

from __future__ import annotations

import importlib.util
import platform
import sys

import pytest

HAS_WHEEL = sys.platform == "linux" and platform.machine() == "x86_64" and sys.version_info[:2] in ((3, 11), (3, 12))
"""What aihwkit 1.1.0 has wheels for."""

if importlib.util.find_spec("aihwkit") is None:
    if HAS_WHEEL:
        pytest.fail("aihwkit is not installed, and there is a wheel for this machine; run make setup", pytrace=False)
    collect_ignore_glob = ["test_*.py"]
