"""Algorithms of several protocols, or too long for the file of their own.

What a config may say and what is reported belongs in ``protocols``, a short algorithm too.
"""
