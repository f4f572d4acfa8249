"""Names that two programs must agree on: defined here once, and rendered into scripts, templates and policies."""
