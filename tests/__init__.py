"""A package, so that a process which a test spawns finds its modules here and not in another package named ``tests``,
which some distributions install.
"""
