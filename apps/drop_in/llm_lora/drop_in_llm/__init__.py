"""Federated fine-tuning of a language model with LoRA"""
