"""For people who write or operate drivers: the conformance suite, and a driver that fails by script."""
