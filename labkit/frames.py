"""Frames: what an error's traceback keeps alive, let go."""

from __future__ import annotations

import traceback


def let_go(error: BaseException) -> None:
    """Forget the local variables of all frames that led to an error and to its causes; the traceback reads as before.

    Whoever keeps an error, as notebooks do with the last one, would else keep the models, batches and activations of
    those frames, and the GPU memory that they lie in. Frames that still run are left alone.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
