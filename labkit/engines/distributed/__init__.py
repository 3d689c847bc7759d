"""Distributed: peers on the workers of a cluster, messages as collectives."""
