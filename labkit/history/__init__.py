"""History: what a run has measured, in rows, files and lanes."""
