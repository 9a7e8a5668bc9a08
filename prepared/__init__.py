"""Queries that are compiled once. Knows no model; any app may use it."""
