"""Paper 2: Wang et al. (SCCT), section V.

::

    settings.py   table III, and what the paper leaves open
    clock.py      what rounds take under a mechanism, in the model
    latency.py    figures 6, 7 and 9: both algorithms step by step; latency by devices and mechanism
    learning.py   figures 8, 10 and 11: curves of a training laid over those clocks
    claims.py     what the paper says of its figures, held against what came out
    tables.py     CSV
    figures.py    PNG
"""
