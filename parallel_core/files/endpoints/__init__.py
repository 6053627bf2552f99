"""Endpoints of providers that a line of a file may ask for: a module for each."""
