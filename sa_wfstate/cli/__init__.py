"""Internal: the commands of python -m sa_wfstate."""
