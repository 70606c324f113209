"""Printing to a terminal: width, streams, tables that fit."""
