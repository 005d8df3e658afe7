"""A program that says, in one line of JSON, what torch can do here.

It runs in a process of its own: a build for another processor or another driver may end that process, and not the command.
"""

from __future__ import annotations

import json
from typing import Any

_SIDE = 64


def look() -> dict[str, Any]:
    """Import torch, and multiply two matrices on every device that it finds."""
    import torch

    available = torch.cuda.is_available()
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count() if available else 0))]
    cuda, rocm = torch.version.cuda, torch.version.hip
    built_for = f"CUDA {cuda}" if cuda else f"ROCm {rocm}" if rocm else ""
    found: dict[str, Any] = {"version": torch.__version__, "built_for": built_for, "gpus": [], "products": {}}
    for device in devices:
        try:
            if device != "cpu":
                free, total = torch.cuda.mem_get_info(device)
                found["gpus"].append(
                    {"name": torch.cuda.get_device_name(device), "free_bytes": free, "total_bytes": total}
                )
            ones = torch.ones(_SIDE, _SIDE, device=device)
            found["products"][device] = (
                "" if bool((ones @ ones == _SIDE).all()) else "the product is not what it should be"
            )
        except RuntimeError as error:
            found["products"][device] = str(error).partition("\n")[0] or type(error).__name__
    return found


if __name__ == "__main__":
    print(json.dumps(look()))  # noqa: T201  # whoever started it reads this line
