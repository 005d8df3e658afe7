"""Paper 1: Li et al., "Split Knowledge Distillation for Large Models in IoT", section V."""
