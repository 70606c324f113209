"""What people read: tables, charts and pages, made from records alone."""
