"""What a run leaves behind: records first, mirrors and pictures from them."""
