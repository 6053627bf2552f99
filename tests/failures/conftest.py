"""Fixtures of the failures."""

import pytest

pytest.register_assert_rewrite("helpers.failures_matrix")
