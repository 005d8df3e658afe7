"""Figures of a run, and the page that shows them.

===============  =================================================================
``load``         a run folder as data
``figures``      the curves and the timeline, and ``figure.png``
``tensorboard``  the same numbers as TensorBoard events
===============  =================================================================

Needs the ``report`` extra: ``pip install 'flwr_splitkd[report]'``.
"""

from __future__ import annotations
