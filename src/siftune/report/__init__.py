"""The views of a study: the page report.html, and the lines of `status`."""
