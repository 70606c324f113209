"""`ssdistill probe`: any encoders, judged on any labeled (or unlabeled) images."""
