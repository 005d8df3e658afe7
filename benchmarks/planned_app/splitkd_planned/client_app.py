"""The device: that of the demo, whose folder is on the path."""

from split_kd_app.client_app import app

__all__ = ["app"]
