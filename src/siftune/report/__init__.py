"""What people read about a study: the page report.html, and the lines of `status`."""
