"""The supervisor: process 1 of the container, and the detached process of a local run.

It uses the standard library and the storage layer only. ``contract`` is what it and the trainer say to each other.
"""
