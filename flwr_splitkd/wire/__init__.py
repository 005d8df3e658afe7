"""The data plane: one gRPC stream between a device and the edge for each turn, and the next one if that is lost.

Read `v1/dataplane.proto` first. Then, outside in: `server` and `client` (gRPC and who dials whom), `stream` (one connection),
`link` (one turn, as the computing thread sees it: whole messages, each exactly once), `framing` (messages in frames,
bounds), `codec` (tensors in bytes; the only module here that needs torch), `handshake`, `credentials` and `places` (who may
come in, and stay), `certificates` (for development), `failures` (errors across the wire).
"""
