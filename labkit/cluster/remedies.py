"""Remedies: what to do about errors that Python and torch word for their authors rather than for their users."""

from __future__ import annotations

# what the error says: what to do about it
_KNOWN = {
    "daemonic processes are not allowed to have children": (
        "start its worker with lk.connect(), or where it is started set distributed.worker.daemon to False in Dask's "
        "configuration, or use a DataLoader with num_workers=0"
    ),
    "Cannot re-initialize CUDA in forked subprocess": (
        "leave CUDA alone in a dataset and move its batches to the GPU afterwards, or give the DataLoader "
        'multiprocessing_context="spawn"'
    ),
    "Address already in use": (
        "give 0 for the port, so that the system chooses a free one, for an earlier run may still hold this one"
    ),
    "CUDA out of memory": "use smaller batches or a smaller model, and see with nvidia-smi who else is on this GPU",
}


def with_remedy(sentence: str, error: str) -> str:
    """The sentence about an error, of which `error` is the whole text, and what to do about it where that is known.

    >>> with_remedy("rank 0 failed: OSError", "OSError: [Errno 98] Address already in use")
    'rank 0 failed: OSError: give 0 for the port, so that ...'
    """
    remedy = next((remedy for words, remedy in _KNOWN.items() if words in error), None)
    return sentence if remedy is None else f"{sentence}: {remedy}."
