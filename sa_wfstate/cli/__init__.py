"""Internal: the commands of ``wfstate``, which is also ``python -m sa_wfstate``."""
