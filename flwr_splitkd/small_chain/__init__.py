"""A chain that is small enough to be made here: an encoder and a language model, trained on the built-in questions.

The example app's ``builtin`` models, and what the case study of SCCT trains.

::

    models.py       architectures, recipes, tokenizer; where the trained models are
    pretraining.py  how they are trained, once
    exercises.py    what they learn from
    curve.py        what a training came to
    training.py     the chain in one process, and the language model alone, on questions of several devices
"""
