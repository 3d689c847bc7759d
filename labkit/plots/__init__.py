"""Plots: pictures of bars, lanes, curves and frontiers, drawn by matplotlib."""
