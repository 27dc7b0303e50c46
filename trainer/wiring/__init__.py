"""Builds the service from the settings. Only this package imports every adapter."""
