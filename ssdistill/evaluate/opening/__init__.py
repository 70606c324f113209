"""What a path or a name stands for: encoders to judge, and pictures to judge them by."""
