"""Classroom: the hub's configuration, honest grading, the class board and the training that it conducts."""
