"""Federated training of a text classifier"""
