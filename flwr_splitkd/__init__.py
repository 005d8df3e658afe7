"""Split knowledge distillation for Flower."""
