"""What a path or a name stands for: encoders to judge, and images to judge them by."""
