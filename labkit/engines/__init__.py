"""Engines: three ways to drive the same generator: lockstep, stacked, cluster; they agree."""
