"""Split knowledge distillation as a Flower App."""
