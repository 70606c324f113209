"""What a run leaves behind: records first, mirrors and images from them."""
