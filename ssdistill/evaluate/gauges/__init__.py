"""What can be said of an encoder without any label."""
