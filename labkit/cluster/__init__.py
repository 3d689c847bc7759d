"""Cluster: a Dask cluster and what runs on it, `connect`, `map` and the gang; it never sees an algorithm."""
