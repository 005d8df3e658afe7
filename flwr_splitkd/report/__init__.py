"""Figures of a run, and the page that shows them.

================  ===============================================================
``load``          a run folder as data; its turns are in ``lines``
``costs``         where seconds and joules went
``figures``       the curves and the timeline, and ``figure.png``
``cost_figures``  drawings of seconds and of modelled costs
``style``         what the drawings have in common
``html``          the page, with ``svg`` for its drawings and ``words`` for its texts
``tensorboard``   the same numbers as TensorBoard events
================  ===============================================================

Needs the ``report`` extra: ``pip install 'flwr_splitkd[report]'``.
"""

from __future__ import annotations
