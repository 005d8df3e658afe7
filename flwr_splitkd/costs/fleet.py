"""The machines and links of a run by the devices' names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr_splitkd.costs.links import Link, WiredLink
from flwr_splitkd.costs.profiles import GENERIC_DEVICE, GENERIC_SERVER, DeviceProfile, ServerProfile

__all__ = ["Fleet"]

_GENERIC_LINK = WiredLink(uplink_bps=100e6, downlink_bps=100e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What the planner starts from. Whatever is not described is taken for a common machine, until it is measured.

    Parameters
    ----------
    server
        The edge server.
    devices, links
        By the device's name: its ``device-name`` in the node config, or its partition id.
    default_device, default_link
        For devices without an entry.
    """

    server: ServerProfile = GENERIC_SERVER
    devices: Mapping[str, DeviceProfile] = field(default_factory=dict)
    links: Mapping[str, Link] = field(default_factory=dict)
    default_device: DeviceProfile = GENERIC_DEVICE
    default_link: Link = _GENERIC_LINK

    def device(self, name: str) -> DeviceProfile:
        """Return a device's profile."""
        return self.devices.get(name, self.default_device)

    def link(self, name: str) -> Link:
        """Return a device's link."""
        return self.links.get(name, self.default_link)
