"""The lessons of the course by number, for whatever says where something is shown."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_STEMS = """
00_start_here 01_why_distribute 02_splitting 03_scheduling 04_synchronization 05_speed_up 06_all_reduce
07_data_parallel 08_asynchrony 09_communicate_less 10_zero 11_pipelines 12_tensor_parallel 13_co_learning
14_strategies 15_optimisation 16_without_a_centre 17_trust 18_failure 19_your_own_cluster 20_one_frontier
21_questions_and_answers
"""
LESSONS: Mapping[int, str] = MappingProxyType({int(stem[:2]): f"{stem}.ipynb" for stem in _STEMS.split()})


def titled(number: int) -> str:
    """A lesson in words.

    >>> titled(6)
    '06 · All reduce'
    """
    name = LESSONS[number].removesuffix(".ipynb")
    return f"{name[:2]} · {name[3:].replace('_', ' ').capitalize()}"
