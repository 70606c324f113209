"""`ssdistill probe`: evaluate any encoders on any labeled (or unlabeled) images."""
