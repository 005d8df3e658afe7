"""Federated training of an image classifier"""
