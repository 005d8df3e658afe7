"""Figures of a run, and the page that shows them.

=================  ==============================================================
``load``           a run folder as data; its lines are in ``lines``, ``chain_lines``
``costs``          where seconds and joules went
``chain``          numbers of runs of the chain device - edge - cloud
``figures``        the curves and the timeline of turns, and ``figure.png``
``cost_figures``   drawings of seconds and of modelled costs
``chain_figures``  drawings of the chain: by epoch and by round
``style``          what the drawings have in common
``html``           the page; ``families`` says what it has for which kind of run
``words``          its texts, with ``chain_words``
``elements``       its tables: ``turn_tables`` and ``chain_tables``
``svg``            its drawings
``tensorboard``    the same numbers as TensorBoard events
``prometheus``     metrics of a run and of a cloud over HTTP
=================  ==============================================================

Needs the ``report`` extra: ``pip install 'flwr_splitkd[report]'``; ``prometheus`` its own.
"""

from __future__ import annotations
