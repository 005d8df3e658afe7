"""The edge of the chain device - edge - cloud (SCCT): N devices at once, each with its own half of its own encoder.

Read in this order: `service` (what a strategy calls), `device_round` (one device's part in a round), `iterations` (when an
iteration is over), `meter` (what they take), `half` (forward, backward, step), `cloud_link` (the stream to the cloud, `access`
says which).
`question` is an edge for one question.
"""

from __future__ import annotations

from flwr_splitkd.tiers.edge.chain.access import CloudAccess
from flwr_splitkd.tiers.edge.chain.cloud_link import CloudAnswer, CloudLink
from flwr_splitkd.tiers.edge.chain.iterations import Closed, Iterations
from flwr_splitkd.tiers.edge.chain.meter import Meter, Reading
from flwr_splitkd.tiers.edge.chain.plan import ChainSettings, DeviceOutcome, DevicePlan
from flwr_splitkd.tiers.edge.chain.question import Answered, QuestionEdge
from flwr_splitkd.tiers.edge.chain.service import ChainEdge, ChainSetup

__all__ = [
    "Answered",
    "ChainEdge",
    "ChainSettings",
    "ChainSetup",
    "Closed",
    "CloudAccess",
    "CloudAnswer",
    "CloudLink",
    "DeviceOutcome",
    "DevicePlan",
    "Iterations",
    "Meter",
    "QuestionEdge",
    "Reading",
]
