"""`ssdistill probe`: evaluate any encoders on any labeled (or unlabeled) images.

What is measured, and how, belongs in `evaluate`.
"""
