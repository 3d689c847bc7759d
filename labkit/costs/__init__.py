"""Costs: what things cost, as pure arithmetic: links and the laws of speed-up."""
