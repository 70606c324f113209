"""Least-squares reconstruction of a compressed network's layers."""
