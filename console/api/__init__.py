"""The operator's part of the API."""
