"""The operators' program: registry, rollouts, inventory and their commands.

It meets agents on the wire only: hears `fleet.telemetry`, sends hints, and leaves
bundles and desired documents where the worker pool serves them.
"""
