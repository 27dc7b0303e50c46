"""Fails at its first import."""

import a_package_that_nobody_installed  # noqa: F401
