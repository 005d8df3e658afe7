"""Cut a model in two, move layers between the halves, verify a cut.

======================  ============================================================================================
``layout``, ``find``    which tensor belongs to the stem, to a block, to the head
``halves``              `DeviceHalf` and `EdgeHalf`, under the whole model's parameter names
``encoder``             `DeviceEncoder` and `ServerEncoder`, of a model whose hidden states go on to another model
``surgery``             the stubs that replace layers, and how a model is called around them
``dropout``             dropout masks that do not depend on where a layer runs
``state``               weights and optimiser states by name
``clipping``            global-norm clipping across both halves
``shrink``, ``verify``  a tiny model of the same architecture, and the comparison of split with unsplit on it
======================  ============================================================================================
"""

from __future__ import annotations

from flwr_splitkd.split.clipping import clip_coefficient, grad_norms, scale_gradients
from flwr_splitkd.split.dropout import DropoutSeeds, seed_dropout
from flwr_splitkd.split.encoder import (
    DeviceEncoder,
    ServerEncoder,
    check_encoder,
    check_split_point,
    encoder_units,
    last_hidden_state,
)
from flwr_splitkd.split.find import find_layout
from flwr_splitkd.split.halves import DeviceHalf, EdgeHalf, refuse_trainable_shared
from flwr_splitkd.split.layout import Layout
from flwr_splitkd.split.state import (
    export_optimizer_state,
    import_optimizer_state,
    load_unit_state,
    unit_state,
)
from flwr_splitkd.split.surgery import is_token_model
from flwr_splitkd.split.verify import CutCheck, CutReport, random_batch, verify_cut, verify_encoder

__all__ = [
    "CutCheck",
    "CutReport",
    "DeviceEncoder",
    "DeviceHalf",
    "DropoutSeeds",
    "EdgeHalf",
    "Layout",
    "ServerEncoder",
    "check_encoder",
    "check_split_point",
    "clip_coefficient",
    "encoder_units",
    "export_optimizer_state",
    "find_layout",
    "grad_norms",
    "import_optimizer_state",
    "is_token_model",
    "last_hidden_state",
    "load_unit_state",
    "random_batch",
    "refuse_trainable_shared",
    "scale_gradients",
    "seed_dropout",
    "unit_state",
    "verify_cut",
    "verify_encoder",
]
