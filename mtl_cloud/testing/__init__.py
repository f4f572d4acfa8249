"""Fakes of launchers and of AWS, shipped for rehearsals and for your tests."""
