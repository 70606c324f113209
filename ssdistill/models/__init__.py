"""What turns images into vectors."""
