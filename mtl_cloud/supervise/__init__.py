"""The supervisor: process 1 of the container, and the detached process of a local run.

It uses the standard library, the storage layer and the run record only. It talks to the trainer through
``runs.scratch``.
"""
