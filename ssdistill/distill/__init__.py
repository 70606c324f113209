"""Distillation: frozen teachers, a student, and the losses between them."""
