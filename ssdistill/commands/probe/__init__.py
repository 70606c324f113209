"""`ssdistill probe`: any encoders, judged on any labelled (or unlabelled) pictures."""
