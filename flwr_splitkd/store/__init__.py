"""What survives a process: the edge's commit log, a device's cache, a run's folder. Knows nothing of Flower or gRPC."""

from __future__ import annotations

from flwr_splitkd.store.cache import DeviceCache, cache_root
from flwr_splitkd.store.commits import CommitLog, Manifest
from flwr_splitkd.store.encoders import encoder_folder, encoders_of_run, forget_old_runs
from flwr_splitkd.store.lock import FolderLock
from flwr_splitkd.store.run_folder import RunFolder

__all__ = [
    "CommitLog",
    "DeviceCache",
    "FolderLock",
    "Manifest",
    "RunFolder",
    "cache_root",
    "encoder_folder",
    "encoders_of_run",
    "forget_old_runs",
]
