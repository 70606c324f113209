"""Algorithms that several protocols share, or that are too long to stand beside their own.

What a config may say and what is reported belongs in ``protocols``, a short algorithm too.
"""
