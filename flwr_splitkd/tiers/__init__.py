"""The runtimes of the device and the edge. They know models and the wire, and nothing of Flower."""
