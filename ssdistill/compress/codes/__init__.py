"""Codes for weights of few values or mostly zeros."""
