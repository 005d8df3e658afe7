"""The data plane: one gRPC stream between a device and the edge for each turn.

Read `v1/dataplane.proto` first. Then, outside in: `server` and `client` (gRPC and nothing else), `places` (who keeps a
stream open), `stream` (one connection), `link` (whole messages for the computing thread), `framing` (messages in frames,
bounds), `codec` (tensors in bytes; the only module here that needs torch), `handshake` and `credentials` (who may come
in), `failures` (errors across the wire).
"""
