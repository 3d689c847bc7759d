"""Stacked: many peers as one tensor with a leading peer dimension."""
