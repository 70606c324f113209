"""Evaluate several encoders on the same images, and compare each with the first.

Tables, pages and files of what is found belong in ``commands.probe``; one protocol in
``protocols``.
"""
