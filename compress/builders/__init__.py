"""Builders of dictionaries: which strings get an id."""
