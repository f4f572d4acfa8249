"""Cloud training orchestration for multi-task vision networks on AWS GPU instances."""

__version__ = "0.1.0.dev0"
