"""What stands between a caller and a driver, outermost first:

guard (no provider IO inside a transaction) > metrics > retry > throttle > deadline > adapt > driver.

Each layer is a callable that takes a `Call` and hands it to the next one. Drivers know nothing of them.
"""
